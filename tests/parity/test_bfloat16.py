"""Bfloat16 is no further from float32 here than in transformers, for folders with float16 weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from reference import make_reference

import bertgpt

SIZES = {
    "BertForMaskedLM": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "OpenAIGPTLMHeadModel": {"n_embd": 64, "n_layer": 4, "n_head": 4},
}
SEEDS = range(6)


def errors(name: str, folder, seed: int) -> list[np.ndarray]:
    """Our logits in bfloat16 minus the float32 logits, and the same of transformers; all from one float16 folder."""
    make_reference(name, seed, **SIZES[name]).half().save_pretrained(folder)
    ids = np.random.default_rng(seed).integers(1, 64, (8, 12))
    model, params = bertgpt.load_pretrained(folder)
    model = model.clone(dtype=jnp.bfloat16)
    found = [np.asarray(jax.jit(lambda p: model.apply({"params": p}, ids).logits)(params))]
    for dtype in (torch.bfloat16, torch.float32):
        theirs = getattr(transformers, name).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        with torch.no_grad():
            found.append(theirs.eval()(torch.tensor(ids)).logits.float().numpy())
    ours, low, exact = found
    return [ours - exact, low - exact]


@pytest.mark.parametrize("name", SIZES)
def test_bfloat16_is_as_close_to_float32_as_theirs(name, tmp_path, measured):
    found = [errors(name, tmp_path / str(seed), seed) for seed in SEEDS]
    ours, theirs = (np.sqrt(np.mean([error[side] ** 2 for error in found])) for side in (0, 1))
    ratios = [abs(error[0]).max() / abs(error[1]).max() for error in found]
    measured(name, "largest bfloat16 error / theirs, least of six models", float(min(ratios)))
    measured(name, "the same, most of six models", float(max(ratios)))
    assert measured(name, "root mean square of bfloat16 errors / theirs", float(ours / theirs)) < 1.1
