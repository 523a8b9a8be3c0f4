"""What a BERT says: filled masks, whether one sentence follows another, vectors of texts."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.sentence_pairs import IS_NEXT, encode
from bertgpt.errors import InputError, check_ids
from bertgpt.model.bert import BertModel
from bertgpt.model.gpt import OpenAIGPTModel
from bertgpt.tokenizers import special_id

HEADS = {
    "mlm_logits": ("BertForPreTraining", "BertForMaskedLM"),
    "nsp_logits": ("BertForPreTraining", "BertForNextSentencePrediction"),
}


def fill_mask(
    model: nn.Module, params: Any, tokenizer: Tokenizer, text: str, top_k: int = 5
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


def next_sentence_probability(model: nn.Module, params: Any, tokenizer: Tokenizer, first: str, second: str) -> float:
    """The probability that `second` follows `first` in one document; arguments as `fill_mask`."""
    logits = _forward(model, params, encode(tokenizer, first, second), "nsp_logits")
    return float(jax.nn.softmax(logits[0])[IS_NEXT])


def embed(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: str = "mean",
    batch_size: int = 32,
) -> np.ndarray:
    """A vector for every text, from the last layer.

    Args:
        model: a BERT or GPT-1 with any head or none.
        params: its parameters.
        tokenizer: the model's.
        texts: of any number.
        pooling: "mean" over a text's tokens (BERT's [CLS] and [SEP] too), or "cls", the state at BERT's [CLS].
        batch_size: texts read at once.

    Returns:
        [N D] float32, not normalised.

    Raises:
        InputError: a text is empty or longer than the model's positions, or pooling is neither.
    """
    config = model.config  # type: ignore[attr-defined]
    if pooling not in ("mean", "cls") or (pooling == "cls" and config.causal):
        raise InputError(f"pooling is {pooling!r}; choose mean, or for BERT also cls")
    if isinstance(texts, str) or batch_size < 1:
        raise InputError("embed takes a list of texts, and a batch_size of at least 1")
    encoder: nn.Module = OpenAIGPTModel(config) if config.causal else BertModel(config, add_pooling_layer=False)
    encoder = encoder.clone(dtype=model.dtype)  # type: ignore[attr-defined]
    inner = params.get("transformer" if config.causal else "bert", params)  # a bare encoder's are its own
    ids = [_text_ids(tokenizer, text, number, config) for number, text in enumerate(texts, 1)]
    vectors = np.zeros((len(ids), config.hidden_size), np.float32)
    order = np.argsort([len(row) for row in ids], kind="stable")  # texts of like length share a batch
    for first in range(0, len(ids), batch_size):
        chosen = order[first : first + batch_size]
        batch = _padded([ids[row] for row in chosen], batch_size, config.max_positions)
        states = _apply(encoder, inner, batch, "last_hidden_state").astype(jnp.float32)
        weight = batch["attention_mask"] if pooling == "mean" else np.arange(states.shape[1])[None] == 0
        weight = weight / weight.sum(1, keepdims=True)  # [B T]
        vectors[chosen] = np.einsum("BTD,BT->BD", np.asarray(states), weight)[: len(chosen)]
    return vectors


def _text_ids(tokenizer: Tokenizer, text: str, number: int, config: ModelConfig) -> list[int]:
    ids = tokenizer.encode(text).ids if config.causal else encode(tokenizer, text)["input_ids"][0].tolist()
    if len(ids) <= (0 if config.causal else 2):
        raise InputError(f"text {number} is empty; leave it out")
    if len(ids) > config.max_positions:
        raise InputError(f"text {number} has {len(ids)} tokens, over the model's {config.max_positions}; shorten it")
    check_ids(np.array(ids), config.vocab_size)
    return ids


def _padded(ids: list[list[int]], rows: int, positions: int) -> dict[str, np.ndarray]:
    """[R T], R and T powers of two up to rows and positions, so that few programs are compiled; a missing row is one
    token of padding."""
    width = min(_power_of_two(max(map(len, ids))), positions)
    rows = min(_power_of_two(len(ids)), rows)
    tokens, mask = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    mask[len(ids) :, 0] = 1
    for row, text in enumerate(ids):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": tokens, "attention_mask": mask}


def _forward(model: nn.Module, params: Any, batch: dict[str, np.ndarray], field: str) -> Array:
    """One field of the output, if the model has a head for it."""
    if type(model).__name__ not in HEADS[field]:
        raise InputError(f"{type(model).__name__} has no {field}; load it as {HEADS[field][0]}, which does")
    length, positions = batch["input_ids"].shape[1], model.config.max_positions  # type: ignore[attr-defined]
    if length > positions:
        raise InputError(f"the text has {length} tokens, over the model's {positions} positions; shorten it")
    check_ids(batch["input_ids"], model.config.vocab_size)  # type: ignore[attr-defined]
    return _apply(model, params, batch, field)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


@functools.partial(jax.jit, static_argnames=("model", "field"))
def _apply(model: nn.Module, params: Any, batch: dict[str, Any], field: str) -> Any:
    """Only what the field needs is computed."""
    return getattr(model.apply({"params": params}, **batch), field)
