"""Random Hugging Face models, and how their names of inputs and outputs map to ours."""

import numpy as np
import torch
import transformers

from bertgpt.checkpoints.hf_mapping import FAMILIES

ARCHITECTURES = [name for family in FAMILIES.values() for name in family.architectures]
CHOICES = ("BertForMultipleChoice", "OpenAIGPTDoubleHeadsModel")
VOCAB, LENGTH = 64, 12
# Large initial values, so that every bias, gain and nonlinearity shows.
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GPT = {
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "summary_first_dropout": 0.0,
}


def make_reference(name: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A tiny model of theirs whose every parameter is far from its initial value."""
    torch.manual_seed(seed)
    labels = 2 if name == "BertForQuestionAnswering" else 3
    bert = name.startswith("Bert")
    kind = transformers.BertConfig if bert else transformers.OpenAIGPTConfig
    config = kind(**({"vocab_size": VOCAB, "num_labels": labels} | (BERT if bert else GPT) | changes))
    config._attn_implementation = "eager"  # the others return no probabilities
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def random_ids(name: str, rng: np.random.Generator) -> np.ndarray:
    """[B T], or [B C T] where there are choices; never the padding token."""
    return rng.integers(1, VOCAB, (2, 3, LENGTH) if name in CHOICES else (4, LENGTH))


def make_inputs(name: str, case: str) -> dict[str, np.ndarray]:
    """Inputs under the names that both libraries share."""
    rng = np.random.default_rng(1)
    ids = random_ids(name, rng)
    if case == "ids":
        return {"input_ids": ids}
    place = np.arange(LENGTH)
    lengths = rng.integers(4, LENGTH, ids.shape[:-1])[..., None]
    lengths[0] = LENGTH
    right = case == "right padding"
    mask = place < lengths if right else place >= LENGTH - lengths
    inputs = {"input_ids": np.where(mask, ids, 0), "attention_mask": mask.astype(np.int64)}
    if not right:
        inputs["position_ids"] = np.maximum(0, place - (LENGTH - lengths)) + 3
    if name.startswith("Bert"):
        inputs["token_type_ids"] = (mask & (place > 5)).astype(np.int64)
    if name == "OpenAIGPTDoubleHeadsModel":
        inputs["mc_token_ids"] = (lengths[..., 0] - 1) if right else np.full(ids.shape[:-1], LENGTH - 1)
    return inputs


def to_torch(name: str, inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Their OpenAIGPTDoubleHeadsModel takes [B C T] ids, but fails unless masks and positions are [B*C T]."""
    flat = ("attention_mask", "position_ids") if name == "OpenAIGPTDoubleHeadsModel" else ()
    return {key: torch.tensor(x.reshape(-1, LENGTH) if key in flat else x) for key, x in inputs.items()}


def differences(ours, theirs, attention_mask: np.ndarray | None) -> dict[str, float]:
    """The largest absolute difference of every output of theirs, at real positions where it has positions."""
    result = {}
    for key, value in theirs.items():
        if key == "cross_attentions":  # empty, and not part of these models
            continue
        mine = getattr(ours, key)
        pairs = list(zip(mine, value, strict=True)) if isinstance(value, tuple) else [(mine, value)]
        assert pairs
        arrays = [(np.asarray(a), b.detach().numpy()) for a, b in pairs]
        if key == "attentions":  # [B H T S]: the queries' axis takes the place of the positions
            arrays = [(a.swapaxes(1, 2), b.swapaxes(1, 2)) for a, b in arrays]
        result[key] = max(_difference(a, b, attention_mask) for a, b in arrays)
    return result


def _difference(a: np.ndarray, b: np.ndarray, attention_mask: np.ndarray | None) -> float:
    a = a.reshape(b.shape)
    if attention_mask is not None and a.size >= attention_mask.size and a.ndim >= 2:
        flat = attention_mask.astype(bool)
        if a.shape[: flat.ndim] == flat.shape:
            a, b = a[flat], b[flat]
        elif a.shape[:2] == (flat[..., 0].size, flat.shape[-1]):
            a, b = (x[flat.reshape(-1, flat.shape[-1])] for x in (a, b))
    return float(abs(a - b).max())
