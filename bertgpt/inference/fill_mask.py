"""What a BERT says: filled masks, whether one sentence follows another, vectors of texts."""

from typing import Any

import jax
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.data.pretraining.sentence_pairs import IS_NEXT, encode
from bertgpt.errors import InputError, check_ids
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
    """The likeliest pieces for every [MASK] of a text, best first, with their probabilities.

    Args:
        model: a `BertForPreTraining`.
        params: its parameters.
        tokenizer: the model's.
        text: one sequence, with at least one [MASK].
        top_k: pieces for each.

    Raises:
        InputError: the text has no [MASK], or is longer than the model's positions.
    """
    batch = encode(tokenizer, text)
    masked = np.flatnonzero(batch["input_ids"][0] == special_id(tokenizer, "[MASK]"))
    if not masked.size:
        raise InputError(f"{text!r} has no [MASK]; put one where a word is to be filled in")
    logits = _forward(model, params, batch, "mlm_logits")[0, masked]
    probabilities = np.asarray(jax.nn.softmax(logits))  # [masks V]
    best = np.argsort(-probabilities, axis=1)[:, :top_k]
    return [
        [(tokenizer.id_to_token(int(index)) or "", float(row[index])) for index in order]
        for row, order in zip(probabilities, best, strict=True)
    ]


def next_sentence_probability(model: Model, params: Any, tokenizer: Tokenizer, first: str, second: str) -> float:
    """The probability that `second` follows `first` in one document; arguments as `fill_mask`."""
    logits = _forward(model, params, encode(tokenizer, first, second), "nsp_logits")
    return float(jax.nn.softmax(logits[0])[IS_NEXT])


def _forward(model: Model, params: Any, batch: dict[str, np.ndarray], field: str) -> Array:
    """One field of the output, if the model has a head for it."""
    if type(model).__name__ not in HEADS[field]:
        raise InputError(f"{type(model).__name__} has no {field}; load it as {HEADS[field][0]}, which does")
    length, positions = batch["input_ids"].shape[1], model.config.max_positions
    if length > positions:
        raise InputError(f"the text has {length} tokens, over the model's {positions} positions; shorten it")
    check_ids(batch["input_ids"], model.config.vocab_size)
    return apply_field(model, params, batch, field)
