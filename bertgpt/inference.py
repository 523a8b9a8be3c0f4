"""What a pretrained model says: continued text, filled masks, whether one sentence follows another."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from bertgpt.data.bert import IS_NEXT, encode
from bertgpt.errors import InputError
from bertgpt.gpt import OpenAIGPTLMHeadModel
from bertgpt.tokenizers import special_id


def generate(
    model: nn.Module,
    params: Any,
    prompt_ids: Array | np.ndarray,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Continues prompts of one length.

    Args:
        model: an `OpenAIGPTLMHeadModel`.
        params: its parameters.
        prompt_ids: [B T] int, T at least 1.
        max_new_tokens: how many to add.
        temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
        key: of the sampling; needed where temperature is above 0.

    Returns:
        [B T + max_new_tokens] int32, the prompts first.

    Raises:
        InputError: the model has no next-token head, the prompt is empty, or the result is longer than its positions.
    """
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise InputError(f"{type(model).__name__} does not write text; load it as OpenAIGPTLMHeadModel")
    prompt_ids = np.asarray(prompt_ids, np.int32)
    length, positions = prompt_ids.shape[1], model.config.max_positions
    _check_ids(prompt_ids, model.config.vocab_size)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    if not length:
        raise InputError("the prompt has no tokens; give at least one word")
    if length + max_new_tokens > positions:
        raise InputError(
            f"a prompt of {length} tokens and {max_new_tokens} new ones are over the model's {positions} positions; "
            "shorten the prompt or ask for fewer"
        )
    if temperature and key is None:
        raise InputError("sampling needs a key: key=jax.random.key(0)")
    return _continue(model, params, jnp.asarray(prompt_ids), max_new_tokens, temperature, key)


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """JAX would clamp an id beyond the vocabulary in silence."""
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise InputError(f"token ids from {ids.min()} to {ids.max()} do not fit the vocabulary of {vocab_size}")


@functools.partial(jax.jit, static_argnames=("model", "count", "temperature"))
def _continue(
    model: nn.Module, params: Any, prompt_ids: Array, count: int, temperature: float, key: Array | None
) -> Array:
    """The whole text is read anew for every token: what is to come is causal-masked, so its zeros do not matter."""
    start = prompt_ids.shape[1]

    def add_token(position: Array, ids: Array) -> Array:
        logits = model.apply({"params": params}, ids).logits  # type: ignore[union-attr]
        logits = jax.lax.dynamic_index_in_dim(logits, position - 1, 1, keepdims=False)  # [B V]
        if key is not None and temperature:
            token = jax.random.categorical(jax.random.fold_in(key, position), logits / temperature)
        else:
            token = logits.argmax(-1)
        return ids.at[:, position].set(token.astype(jnp.int32))

    return jax.lax.fori_loop(start, start + count, add_token, jnp.pad(prompt_ids, ((0, 0), (0, count))))


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


def _forward(model: nn.Module, params: Any, batch: dict[str, np.ndarray], field: str) -> Array:
    """One field of the output."""
    length, positions = batch["input_ids"].shape[1], model.config.max_positions  # type: ignore[attr-defined]
    if length > positions:
        raise InputError(f"the text has {length} tokens, over the model's {positions} positions; shorten it")
    _check_ids(batch["input_ids"], model.config.vocab_size)  # type: ignore[attr-defined]
    found = getattr(_apply(model, params, batch), field)
    if found is None:
        raise InputError(f"{type(model).__name__} has no {field}; load it as BertForPreTraining, which does")
    return found


@functools.partial(jax.jit, static_argnames=("model",))
def _apply(model: nn.Module, params: Any, batch: dict[str, Any]) -> Any:
    return model.apply({"params": params}, **batch)
