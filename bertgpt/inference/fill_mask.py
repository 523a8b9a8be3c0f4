"""Predictions of a BERT's pretraining heads: masked tokens, and whether one sentence follows another."""

from typing import Any

import jax
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.data.pretraining.sentence_pairs import IS_NEXT, encode
from bertgpt.errors import InputError, check_ids, quoted
from bertgpt.inference.forward import apply_field
from bertgpt.model.blocks import Model
from bertgpt.tokenizers import special_id

HEADS = {
    "mlm_logits": ("BertForPreTraining", "BertForMaskedLM"),
    "nsp_logits": ("BertForPreTraining", "BertForNextSentencePrediction"),
}


def fill_mask(
    model: Model, params: Any, tokenizer: Tokenizer, text: str, top_k: int = 5
) -> list[list[tuple[str, float]]]:
    """Return the likeliest tokens for each [MASK] of a text, best first, with their probabilities.

    Args:
        model: a `BertForPreTraining` or `BertForMaskedLM`.
        params: its parameters.
        tokenizer: the model's tokenizer.
        text: one text with at least one [MASK].
        top_k: the number of tokens per [MASK].

    Raises:
        InputError: the text has no [MASK] or is longer than the model's positions, or the model has no MLM head.
    """
    batch = encode(tokenizer, text)
    masked = np.flatnonzero(batch["input_ids"][0] == special_id(tokenizer, "[MASK]"))
    if not masked.size:
        raise InputError(f"{quoted(text)} has no [MASK]; put one in place of the word to predict")
    logits = _forward(model, params, batch, "mlm_logits")[0, masked]
    probabilities = np.asarray(jax.nn.softmax(logits))  # [masks V]
    best = np.argsort(-probabilities, axis=1)[:, :top_k]
    return [
        [(tokenizer.id_to_token(int(index)) or "", float(row[index])) for index in order]
        for row, order in zip(probabilities, best, strict=True)
    ]


def next_sentence_probability(model: Model, params: Any, tokenizer: Tokenizer, first: str, second: str) -> float:
    """Return the probability that `second` follows `first` in one document.

    Args:
        model: a `BertForPreTraining` or `BertForNextSentencePrediction`.
        params: its parameters.
        tokenizer: the model's tokenizer.
        first: a text.
        second: a text.

    Raises:
        InputError: the texts are longer than the model's positions, or the model has no NSP head.
    """
    logits = _forward(model, params, encode(tokenizer, first, second), "nsp_logits")
    return float(jax.nn.softmax(logits[0])[IS_NEXT])


def _forward(model: Model, params: Any, batch: dict[str, np.ndarray], field: str) -> Array:
    """Return one field of the output; raise InputError if the model has no head for it."""
    if type(model).__name__ not in HEADS[field]:
        head = "MLM" if field == "mlm_logits" else "NSP"
        classes = " or ".join(HEADS[field])
        raise InputError(f"{type(model).__name__} has no {head} head; use a {classes}, or pretrain this model first")
    length, positions = batch["input_ids"].shape[1], model.config.max_positions
    if length > positions:
        raise InputError(f"the text has {length} tokens, over the model's {positions} positions; shorten it")
    check_ids(batch["input_ids"], model.config.vocab_size)
    return apply_field(model, params, batch, field)
