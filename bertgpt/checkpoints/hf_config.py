"""Hugging Face's config.json to a ModelConfig and back; what cannot be computed as they do is refused."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from bertgpt import presets
from bertgpt.checkpoints.hf_mapping import has_vocabulary_head
from bertgpt.config import ModelConfig
from bertgpt.errors import InputError

# Ours to theirs. Keys that a file leaves out have the published model's value, as with Hugging Face.
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
BERT_ACTIVATIONS = {  # theirs to ours; the first name of each of ours is the one written
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
GPT_ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}  # their "gelu" is the tanh form here
MAX_LABELS = 1_000_000
MAX_SIZE = 2**31 - 1  # of any size: what JAX's int32 indices reach
SUPPORTED: dict[str, tuple[Any, ...]] = {  # what changes the equations, with the values that leave them as they are
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
}
SUPPORTED_TIED: dict[str, tuple[Any, ...]] = {"tie_word_embeddings": (None, True)}  # the same for vocabulary heads
SUPPORTED_CHOICE: dict[str, tuple[Any, ...]] = {  # and for OpenAIGPTDoubleHeadsModel alone
    "summary_type": (None, "cls_index"),
    "summary_use_proj": (None, True),
    "summary_proj_to_labels": (None, True),
    "summary_activation": (None,),
}


def from_hf(config: dict[str, Any], architecture: str, file: Path) -> ModelConfig:
    """The ModelConfig that a config.json describes; `file` is named in errors.

    Raises:
        InputError: a value is of the wrong kind, unknown, or asks for what this library does not compute.
    """
    bert = config["model_type"] == "bert"
    rules = SUPPORTED | (SUPPORTED_TIED if has_vocabulary_head(architecture) else {})
    rules |= SUPPORTED_CHOICE if architecture == "OpenAIGPTDoubleHeadsModel" else {}
    for key, values in rules.items():
        if config.get(key) not in values:
            raise InputError(f"{file}: {key} {config[key]!r} is not supported; it must be {values[-1]!r}")
    base = presets.bert_base() if bert else presets.gpt1(classifier_dropout=0.1)
    fields = dataclasses.asdict(base)
    for ours, theirs in (BERT_KEYS if bert else GPT_KEYS).items():
        if theirs in config:
            fields[ours] = _number(config[theirs], fields[ours], f"{file}: {theirs}")
    if not bert:
        fields["mlp_size"] = 4 * fields["hidden_size"]
        if config.get("embd_pdrop", fields["hidden_dropout"]) != fields["hidden_dropout"]:
            warnings.warn(f"{file}: embd_pdrop is not kept; dropout is resid_pdrop everywhere", stacklevel=3)
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
    """`value`, if it is a number of the kind of `example`, or as absent as it may be."""
    if example is None and value is None:
        return None
    whole = isinstance(example, int)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InputError(f"{where} is {value!r}; it must be {'a whole number' if whole else 'a number'}")
    if not abs(value) <= MAX_SIZE:  # NaN is not, either
        raise InputError(f"{where} is {value}; it must be at most {MAX_SIZE}")
    return value if whole else float(value)


def _labels(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """num_labels, and the labels' names where they are more than LABEL_0, LABEL_1, ... and numbered as they should."""
    names = config.get("id2label") or {}
    if not isinstance(names, dict):
        raise InputError(f"{file}: id2label is {names!r}; it must map 0, 1, 2, ... to names")
    count = config.get("num_labels")  # it goes before the names, as with Hugging Face
    count = _number(len(names) or 2 if count is None else count, 2, f"{file}: num_labels")
    if count > MAX_LABELS:
        raise InputError(f"{file}: num_labels is {count}; it must be at most {MAX_LABELS}")
    numbered = len(names) == count and all(str(index) in names for index in range(count))
    labels = [str(names[str(index)]) for index in range(count)] if numbered else []
    labels = labels if len(set(labels)) == len(labels) else []  # a name for two classes names none
    return {"num_labels": count, "labels": () if labels == _default_labels(count) else tuple(labels)}


def _default_labels(count: int) -> list[str]:
    return [f"LABEL_{index}" for index in range(count)]


def to_hf(model: ModelConfig, architecture: str, pad_token_id: int | None = None) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
        InputError: their code cannot express it.
    """
    bert = model.architecture == "bert"
    keys, names = (BERT_KEYS, BERT_ACTIVATIONS) if bert else (GPT_KEYS, GPT_ACTIVATIONS)
    activation = next((theirs for theirs, ours in names.items() if ours == model.activation), None)
    if activation is None:
        raise InputError(f"activation {model.activation} cannot be exported: Hugging Face's GPT-1 has no such one")
    if not bert and model.mlp_size != 4 * model.hidden_size:
        raise InputError(
            f"mlp_size {model.mlp_size} cannot be exported: Hugging Face's GPT-1 always has 4 x hidden_size, "
            f"{4 * model.hidden_size}"
        )
    config: dict[str, Any] = {"architectures": [architecture], "model_type": "bert" if bert else "openai-gpt"}
    config |= {theirs: getattr(model, ours) for ours, theirs in keys.items()}
    for ours in ("layer_norm_eps", "initializer_range"):
        config[keys[ours]] = float(config[keys[ours]])  # their class takes no whole number there
    config |= {"hidden_act" if bert else "afn": activation, "tie_word_embeddings": True, "dtype": "float32"}
    if not bert:
        config |= {"summary_first_dropout": model.head_dropout, "embd_pdrop": model.hidden_dropout}
    if model.problem_type:
        config["problem_type"] = model.problem_type
    answers = architecture == "BertForQuestionAnswering"  # its two logits are theirs by num_labels
    labels = _default_labels(2) if answers else model.labels or _default_labels(model.num_labels)
    config["id2label"] = {str(index): name for index, name in enumerate(labels)}
    config["label2id"] = {name: index for index, name in enumerate(labels)}
    config["pad_token_id"] = 0 if bert and pad_token_id is None else pad_token_id
    return config
