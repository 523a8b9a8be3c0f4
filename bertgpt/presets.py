"""The published models by name. Each function accepts any `ModelConfig` field as a keyword, to override it.

Sources: Radford et al. 2018 and openai/finetune-transformer-lm (gpt1); Devlin et al. 2019 and google-research/bert
(base, large); Turc et al. 2019, arXiv 1908.08962 (tiny to medium).
"""

from typing import Any

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, quoted


def _bert(num_layers: int, hidden_size: int, changes: dict[str, Any]) -> ModelConfig:
    """A BERT with heads of width 64 and `mlp_size` 4 x `hidden_size`, like all released ones."""
    fields: dict[str, Any] = {
        "architecture": "bert",
        "vocab_size": 30522,  # the released uncased vocabulary
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": hidden_size // 64,
        "mlp_size": 4 * hidden_size,
    }
    return ModelConfig(**(fields | changes))


def _gpt(changes: dict[str, Any]) -> ModelConfig:
    """The released GPT-1."""
    fields: dict[str, Any] = {
        "architecture": "gpt",
        "vocab_size": 40478,  # 40,000 merges, 238 characters with and without </w>, <unk> and a few more
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_size": 3072,
        "layer_norm_eps": 1e-5,
        "activation": "gelu_tanh",  # the form in OpenAI's code
    }
    return ModelConfig(**(fields | changes))


def bert_tiny(**changes: Any) -> ModelConfig:
    """2 layers of width 128; 4,385,920 parameters with pooler."""
    return _bert(2, 128, changes)


def bert_mini(**changes: Any) -> ModelConfig:
    """4 layers of width 256; 11,170,560 parameters with pooler."""
    return _bert(4, 256, changes)


def bert_small(**changes: Any) -> ModelConfig:
    """4 layers of width 512; 28,763,648 parameters with pooler."""
    return _bert(4, 512, changes)


def bert_medium(**changes: Any) -> ModelConfig:
    """8 layers of width 512; 41,373,184 parameters with pooler."""
    return _bert(8, 512, changes)


def bert_base(**changes: Any) -> ModelConfig:
    """12 layers of width 768; 109,482,240 parameters with pooler, 110,106,428 with both pretraining heads."""
    return _bert(12, 768, changes)


def bert_large(**changes: Any) -> ModelConfig:
    """24 layers of width 1024; 335,141,888 parameters with pooler, 336,226,108 with both pretraining heads."""
    return _bert(24, 1024, changes)


def gpt1(**changes: Any) -> ModelConfig:
    """12 layers of width 768; 116,534,784 parameters."""
    return _gpt(changes)


def gpt1_762(**changes: Any) -> ModelConfig:
    """Width 762 and feed-forward width 2048, as some sources report for GPT-1; 6 heads, since 12 do not divide 762."""
    return _gpt({"hidden_size": 762, "num_heads": 6, "mlp_size": 2048} | changes)


ALL = {
    preset.__name__: preset
    for preset in (bert_tiny, bert_mini, bert_small, bert_medium, bert_base, bert_large, gpt1, gpt1_762)
}


def get(name: str, **changes: Any) -> ModelConfig:
    """Return the preset of this name, with `changes` applied.

    Raises:
        InputError: no preset has this name.
    """
    if name not in ALL:
        raise InputError(f"model.preset {quoted(name)} is unknown; choose one of {', '.join(ALL)}")
    return ALL[name](**changes)
