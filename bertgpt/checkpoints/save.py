"""Write model folders in Hugging Face's layout."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertgpt.checkpoints import hf_config, hf_mapping
from bertgpt.checkpoints.atomic_folder import CARD, atomic_folder
from bertgpt.checkpoints.formats.huggingface import WEIGHTS
from bertgpt.checkpoints.formats.safetensors import SHARD_BYTES, write_tensors
from bertgpt.checkpoints.parameters import Params, to_hf_tensors
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import TOKENIZER_FILES, export_tokenizer


def save_pretrained(
    folder: str | Path,
    model: Model,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `load_pretrained` and Hugging Face's `AutoModel...from_pretrained` can read.

    A new folder appears complete or not at all. In an existing folder each file is replaced atomically. Old weights in
    another layout are removed, and, if a tokenizer is given, the files of the old tokenizer. An existing README.md is
    kept.

    Args:
        folder: created if it is missing.
        model: a model of one of this library's architectures.
        params: its parameters; written as float32.
        tokenizer: written too if given, as Hugging Face's tokenizer files.
        shard_bytes: the largest size of a weight file, in bytes.

    Raises:
        InputError: Hugging Face's code does not support the model, or `params` are not its parameters.
    """
    folder, name = Path(folder), type(model).__name__
    family_name = hf_mapping.family_of(name)
    if family_name is None:
        raise InputError(f"{name} cannot be exported; give a model of this library")
    family = hf_mapping.FAMILIES[family_name]
    tensors = to_hf_tensors(family, name, model, params)
    pads = [tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>")] if tokenizer else []
    pad = next((index for index in pads if index is not None), None)
    model_config: ModelConfig = model.config
    config = hf_config.to_hf(model_config, name, pad)
    superseded = [*WEIGHTS, *(TOKENIZER_FILES if tokenizer else ())]
    with atomic_folder(folder, superseded) as new:
        write_tensors(new, tensors, shard_bytes)
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (new / CARD).write_text(_card(name, model_config, tensors), encoding="utf-8")
        if tokenizer is not None:
            export_tokenizer(tokenizer, new, model_config.max_positions)


def _card(name: str, config: ModelConfig, tensors: dict[str, np.ndarray]) -> str:
    """A short model card."""
    count = sum(array.size for array in tensors.values())
    auto = "AutoModel" if name in ("BertModel", "OpenAIGPTModel") else name
    return f"""---
library_name: transformers
tags: [bertgpt, {"bert" if config.architecture == "bert" else "openai-gpt"}]
---

# {name}

{count:,} parameters in float32: {config.num_layers} layers of width {config.hidden_size} with {config.num_heads} heads,
{config.max_positions} positions, a vocabulary of {config.vocab_size:,}.
Trained and written by bertgpt.

```python
from transformers import {auto}

model = {auto}.from_pretrained("this folder")
```

In JAX: `model, params = bertgpt.load_pretrained("this folder")`.

Before you share this model, describe its training text, its intended use and its evaluation results here.
"""
