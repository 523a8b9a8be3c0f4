"""The model configuration that a run's configuration specifies."""

import dataclasses
from typing import Any

from bertgpt import presets
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError

from .sections import SIZES, RunConfig


def model_config(config: RunConfig, vocab_size: int, base: ModelConfig | None = None) -> ModelConfig:
    """Return the preset's configuration (or `base`, of the model to start from), with the fields of `model` replaced.

    Raises:
        InputError: there is neither a preset nor all sizes, or a size does not fit the tokenizer or the sequences.
    """
    section = dataclasses.asdict(config.model)
    preset = section.pop("preset")
    section.pop("attention")  # how it is computed, not what
    fields = {name: value for name, value in section.items() if value is not None and not name.startswith("init_")}
    if base is None:
        fields.setdefault("vocab_size", vocab_size)
    if base is not None:
        model = ModelConfig(**(dataclasses.asdict(base) | fields))
        _check_same_sizes(base, model)
    elif preset is not None:
        model = presets.get(preset, **fields)
    else:
        model = _without_preset(fields)
    if base is not None and model.vocab_size < vocab_size:
        raise InputError(
            f"model.init_from: its tokenizer has {vocab_size} tokens, and the embedding of its weights only "
            f"{model.vocab_size} rows; put the tokenizer of these weights into its folder, or first enlarge the "
            "embedding (resize_token_embeddings in transformers)"
        )
    if model.vocab_size < vocab_size:
        raise InputError(
            f"model.vocab_size {model.vocab_size} is under the tokenizer's {vocab_size}: token ids up to "
            f"{vocab_size - 1} would be beyond the vocabulary; add model.vocab_size=null"
        )
    if config.data.sequence_length > model.max_positions:
        raise InputError(
            f"data.sequence_length {config.data.sequence_length} is over model.max_positions {model.max_positions}; "
            + ("lower it, or raise model.max_positions" if base is None else "lower it; the weights have no more")
        )
    return model


def _check_same_sizes(base: ModelConfig, model: ModelConfig) -> None:
    """Check that no field differs from a size of the initial weights."""
    for field in SIZES:
        old, new = getattr(base, field), getattr(model, field)
        if old != new:
            raise InputError(f"model.{field} is {new}, but the initial weights have {old}; add model.{field}=null")


def _without_preset(fields: dict[str, Any]) -> ModelConfig:
    needed = ("architecture", "hidden_size", "num_layers", "num_heads", "mlp_size")
    missing = [f"model.{name}" for name in needed if name not in fields]
    if missing:
        raise InputError(f"model.preset is missing; give one of {', '.join(presets.ALL)}, or {', '.join(missing)}")
    constants: dict[str, Any] = (
        {"layer_norm_eps": 1e-5, "activation": "gelu_tanh"} if fields["architecture"] == "gpt" else {}
    )
    return ModelConfig(**(constants | fields))
