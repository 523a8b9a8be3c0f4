"""Fine-tuning tasks: the model class of each, how its rows are encoded, and the predictions of a fine-tuned model."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.config import ModelConfig
from bertgpt.data.tasks.classification import most_choices
from bertgpt.data.tasks.making import LEAST, PROBLEMS, make_task
from bertgpt.data.tasks.readers import make_row
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example, TaskData, TaskExamples, TaskSettings, encode_rows
from bertgpt.errors import InputError, check_ids
from bertgpt.inference.decoding import generate
from bertgpt.model.blocks import Model


class Spec(NamedTuple):
    """The model of a kind of task.

    Attributes:
        architectures: the model class, by `ModelConfig.architecture`.
        outputs: the fields of its output that a prediction is computed from.
        problem: Hugging Face's `problem_type`; None if the task has none.
    """

    architectures: dict[str, str]
    outputs: tuple[str, ...]
    problem: str | None = None


CLASSIFIERS = {"bert": "BertForSequenceClassification", "gpt": "OpenAIGPTForSequenceClassification"}
SPECS = {  # by kind of task
    "classification": Spec(CLASSIFIERS, ("logits",), PROBLEMS["classification"]),
    "multi_label": Spec(CLASSIFIERS, ("logits",), PROBLEMS["multi_label"]),
    "regression": Spec(CLASSIFIERS, ("logits",), PROBLEMS["regression"]),
    "multiple_choice": Spec({"bert": "BertForMultipleChoice", "gpt": "OpenAIGPTDoubleHeadsModel"}, ("mc_logits",)),
    "question_answering": Spec({"bert": "BertForQuestionAnswering"}, ("start_logits", "end_logits")),
    "tagging": Spec({"bert": "BertForTokenClassification"}, ("logits",)),
    "sft": Spec({"gpt": "OpenAIGPTLMHeadModel"}, ()),
}


def architecture_of(kind: str, family: str) -> str:
    """Return the model class for a kind of task.

    Raises:
        InputError: the family, "bert" or "gpt", has no class for this kind.
    """
    found = SPECS[kind].architectures.get(family)
    if found is None:
        raise InputError(f"task.kind {kind} needs a {'GPT-1' if family == 'bert' else 'BERT'}; start from one")
    return found


def kind_of(model: Model) -> str:
    """Return the kind of task of a model's head.

    Raises:
        InputError: the model has no task head.
    """
    name, config = type(model).__name__, model.config
    for kind, spec in SPECS.items():
        if name in spec.architectures.values() and spec.problem in (None, config.problem):
            return kind
    raise InputError(f"a {name} has no task head; fine-tune it first")


def task_data(
    settings: TaskSettings, config: ModelConfig, tokenizer: Tokenizer, length: int, choices: int = 2
) -> TaskData:
    """Return the encoding of a task's rows for a model.

    Args:
        settings: the kind of task and the columns.
        config: the model's configuration, with its labels.
        tokenizer: the model's tokenizer, with the task's tokens.
        length: T, tokens of an input, from 8 to `max_positions`.
        choices: C, the number of choices of a multiple-choice task.

    Raises:
        InputError: the length is below 8 or above the model's positions.
    """
    if not LEAST <= length <= config.max_positions:
        raise InputError(
            f"the length is {length} tokens; it must be from {LEAST} to the model's {config.max_positions} positions"
        )
    labels = config.labels or tuple(f"LABEL_{index}" for index in range(config.num_labels))  # Hugging Face's names
    return make_task(settings, tokenizer, length, causal=config.causal, labels=labels, choices=choices)


def predict(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    rows: Sequence[dict[str, Any]],
    settings: TaskSettings | None = None,
    *,
    length: int | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Return the predictions of a fine-tuned model.

    Args:
        model: a model with a task head; for generated responses (sft) use `respond`.
        params: its parameters.
        tokenizer: the model's tokenizer.
        rows: dictionaries by column name, such as {"text": "A fine film."}.
        settings: the names of columns, and thresholds; None: the defaults. The model's head decides the kind.
        length: tokens of an input; None: the model's positions.
        batch_size: the number of inputs per batch.

    Returns:
        The result of the task's `decode` for each row: labels and probabilities, a score, spans or tags.

    Raises:
        InputError: the model has no task head, or a row cannot be used.
    """
    config = model.config
    settings = dataclasses.replace(settings or TaskSettings(), kind=kind_of(model))
    if settings.kind == "sft":
        raise InputError("predict does not generate responses (sft); use bertgpt.inference.predict.respond")
    records = [make_row(f"row {number}", row) for number, row in enumerate(rows, 1)]
    choices = most_choices(records, settings.choices)
    data = task_data(settings, config, tokenizer, length or config.max_positions, choices)
    return predict_rows(model, params, data, records, SPECS[str(settings.kind)].outputs, batch_size)


def predict_rows(
    model: Model, params: Any, data: TaskData, rows: Sequence[Row], fields: tuple[str, ...], batch_size: int = 32
) -> list[dict[str, Any]]:
    """Like `predict`, for rows with a given encoding (`data`) and given output fields."""
    examples = list(encode_rows(data, rows, labelled=False))
    source = TaskExamples(data, examples)
    outputs = []
    for start in range(0, len(source), batch_size):
        batch = _trimmed(source.batch(np.arange(start, start + batch_size)), data.per_token)
        check_ids(batch["input_ids"], model.config.vocab_size)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        found = _apply(model, params, inputs, fields)
        outputs += [dict(zip(fields, row, strict=True)) for row in zip(*map(np.asarray, found), strict=True)]
    return decode_all(data, examples, outputs)


def decode_all(
    data: TaskData, examples: Sequence[Example], outputs: Sequence[dict[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Return one prediction per example, from the outputs of all features in order; surplus outputs are ignored."""
    predictions, at = [], 0
    for example in examples:
        predictions.append(data.decode(example, outputs[at : at + len(example.features)]))
        at += len(example.features)
    return predictions


def respond(
    model: Model, params: Any, data: TaskData, rows: Sequence[Row], max_new_tokens: int = 64, **sampling: Any
) -> list[str]:
    """Generate the responses of a fine-tuned language model to prompts or conversations.

    `sampling` are keyword arguments of `bertgpt.generate` that say how tokens are chosen. Long prompts are truncated on
    the left.
    """
    prompts = [data.encode(row, labelled=False).features[0]["input_ids"].tolist() for row in rows]
    positions = model.config.max_positions
    count = min(max_new_tokens, max(positions // 2, positions - max(map(len, prompts))))
    prompts = [ids[:1] + ids[1:][-(positions - count - 1) :] for ids in prompts]  # truncate as in training
    written = generate(model, params, prompts, count, end_id=data.template.end, **sampling)
    decode = data.template.tokenizer.decode
    return [decode(ids[len(prompt) :].tolist()) for ids, prompt in zip(written, prompts, strict=True)]


def _trimmed(batch: dict[str, np.ndarray], per_token: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the batch without columns that are padding in all rows; the width is a power of two or unchanged."""
    longest = int(batch["attention_mask"].sum(-1).max())
    width = min(1 << (longest - 1).bit_length(), batch["attention_mask"].shape[-1])
    return {name: value[..., :width] if name in per_token else value for name, value in batch.items()}


@functools.partial(jax.jit, static_argnames=("model", "fields"))
def _apply(model: Any, params: Any, inputs: dict[str, Array], fields: tuple[str, ...]) -> tuple[Array, ...]:
    output = model.apply({"params": params}, **inputs)
    return tuple(getattr(output, field) for field in fields)
