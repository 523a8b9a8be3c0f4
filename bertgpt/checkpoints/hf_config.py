"""Conversion between Hugging Face's config.json and ModelConfig; unsupported settings are rejected."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from bertgpt import presets
from bertgpt.checkpoints.hf_mapping import has_lm_head
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError

# Field of ModelConfig -> key of config.json. A missing key has the value of the published model, as in Hugging Face.
BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
GPT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "max_positions": "n_positions",
    "hidden_dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "classifier_dropout": "summary_first_dropout",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
BERT_ACTIVATIONS = {  # Hugging Face's name -> ours; the first of several names is the one that is written
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
GPT_ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}  # "gelu" of GPT-1 is the tanh form
MAX_LABELS = 1_000_000
MAX_SIZE = 2**31 - 1  # the largest int32, JAX's index type
SUPPORTED: dict[str, tuple[Any, ...]] = {  # keys that change the equations, and their supported values
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}
SUPPORTED_TIED: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": (None, True)}  # only with a vocabulary head
SUPPORTED_CHOICE: dict[str, tuple[Any, ...]] = {  # only for OpenAIGPTDoubleHeadsModel
    "summary_type": (None, "cls_index"),
    "summary_use_proj": (None, True),
    "summary_proj_to_labels": (None, True),
    "summary_activation": (None,),
}


def from_hf(config: dict[str, Any], architecture: str, file: Path) -> ModelConfig:
    """Return the ModelConfig that a config.json describes; `file` is the name used in errors.

    Raises:
        InputError: a value has the wrong type, is unknown, or is not supported by this library.
    """
    bert = config["model_type"] == "bert"
    rules = SUPPORTED | (SUPPORTED_TIED if has_lm_head(architecture) else {})
    rules |= SUPPORTED_CHOICE if architecture == "OpenAIGPTDoubleHeadsModel" else {}
    for key, values in rules.items():
        if config.get(key) not in values:
            raise InputError(f"{file}: {key} {config[key]!r} is not supported; it must be {values[-1]!r}")
    base = presets.bert_base() if bert else presets.gpt1(classifier_dropout=0.1)
    fields = dataclasses.asdict(base)
    for field, hf_key in (BERT_KEYS if bert else GPT_KEYS).items():
        if hf_key in config:
            fields[field] = _number(config[hf_key], fields[field], f"{file}: {hf_key}")
    if not bert:
        fields["mlp_size"] = 4 * fields["hidden_size"]
        if config.get("embd_pdrop", fields["hidden_dropout"]) != fields["hidden_dropout"]:
            warnings.warn(f"{file}: embd_pdrop is ignored; embeddings use resid_pdrop too", stacklevel=3)
    activation = config.get("hidden_act" if bert else "afn", "gelu")
    names = BERT_ACTIVATIONS if bert else GPT_ACTIVATIONS
    if not isinstance(activation, str) or activation not in names:
        raise InputError(f"{file}: activation {activation!r} is unknown; choose one of {', '.join(names)}")
    fields |= {"activation": names[activation], "problem_type": config.get("problem_type")} | _labels(config, file)
    try:
        return ModelConfig(**fields)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _number(value: Any, example: Any, where: str) -> Any:
    """Return `value` if it is a number of the type of `example`, or None if `example` is None too."""
    if example is None and value is None:
        return None
    whole = isinstance(example, int)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InputError(f"{where} is {value!r}; it must be {'a whole number' if whole else 'a number'}")
    if not abs(value) <= MAX_SIZE:  # true for NaN too
        raise InputError(f"{where} is {value}; it must be at most {MAX_SIZE}")
    return value if whole else float(value)


def _labels(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return `num_labels` and `labels`.

    `labels` is () if the names are LABEL_0, LABEL_1, ..., are not numbered 0, 1, 2, ... or are not distinct.
    """
    names = config.get("id2label") or {}
    if not isinstance(names, dict):
        raise InputError(f"{file}: id2label is {names!r}; it must map 0, 1, 2, ... to names")
    count = config.get("num_labels")  # takes precedence over the names, as in Hugging Face
    count = _number(len(names) or 2 if count is None else count, 2, f"{file}: num_labels")
    if count > MAX_LABELS:
        raise InputError(f"{file}: num_labels is {count}; it must be at most {MAX_LABELS}")
    numbered = len(names) == count and all(str(index) in names for index in range(count))
    labels = [str(names[str(index)]) for index in range(count)] if numbered else []
    labels = labels if len(set(labels)) == len(labels) else []  # duplicate names are unusable
    return {"num_labels": count, "labels": () if labels == _default_labels(count) else tuple(labels)}


def _default_labels(count: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(count)]


def to_hf(model: ModelConfig, architecture: str, pad_token_id: int | None = None) -> dict[str, Any]:
    """Return the config.json of a model.

    Raises:
        InputError: Hugging Face's code does not support the model.
    """
    bert = model.architecture == "bert"
    keys, names = (BERT_KEYS, BERT_ACTIVATIONS) if bert else (GPT_KEYS, GPT_ACTIVATIONS)
    activation = next((hf_name for hf_name, name in names.items() if name == model.activation), None)
    if activation is None:
        raise InputError(f"activation {model.activation} cannot be exported: Hugging Face's GPT-1 does not support it")
    if not bert and model.mlp_size != 4 * model.hidden_size:
        raise InputError(
            f"mlp_size {model.mlp_size} cannot be exported: Hugging Face's GPT-1 always has "
            f"4 x hidden_size = {4 * model.hidden_size}"
        )
    config: dict[str, Any] = {"architectures": [architecture], "model_type": "bert" if bert else "openai-gpt"}
    config |= {hf_key: getattr(model, field) for field, hf_key in keys.items()}
    for field in ("layer_norm_eps", "initializer_range"):
        config[keys[field]] = float(config[keys[field]])  # Hugging Face's class rejects an int here
    config |= {"hidden_act" if bert else "afn": activation, "tie_word_embeddings": True, "dtype": "float32"}
    if not bert:
        config |= {"summary_first_dropout": model.head_dropout, "embd_pdrop": model.hidden_dropout}
    if model.problem_type:
        config["problem_type"] = model.problem_type
    answers = architecture == "BertForQuestionAnswering"  # Hugging Face's num_labels is its two logits
    labels = _default_labels(2) if answers else model.labels or _default_labels(model.num_labels)
    config["id2label"] = {str(index): name for index, name in enumerate(labels)}
    config["label2id"] = {name: index for index, name in enumerate(labels)}
    config["pad_token_id"] = 0 if bert and pad_token_id is None else pad_token_id
    return config
