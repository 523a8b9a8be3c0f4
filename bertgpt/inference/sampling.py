"""How the next token is chosen: its logits are penalized, the end token is held back, then greedy or sampled."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bertgpt.errors import InputError


@struct.dataclass
class Sampling:
    """How the next token is chosen.

    Arrays may change without a new compilation. The other fields, and whether an optional array is None, belong to the
    program: what is not used costs nothing.

    Attributes:
        greedy: whether to take the likeliest token; `temperature`, `top_k`, `top_p` and `key` then have no effect.
        filtered: whether top_k or top_p has an effect.
        output_log_probs: whether the log-probability of each token is kept.
        temperature: the divisor of the logits.
        top_k: sample from the `top_k` likeliest tokens; the size of the vocabulary for all tokens.
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to at least `top_p` (Holtzman et
            al. 2020).
        key: a `jax.random` key; the index of the new token is folded into it.
        end_id: a row ends after this token; -1: no end token.
        repetition_penalty: see `penalize`; None: no penalty.
        min_new_tokens: `end_id` is not chosen before so many tokens were added; None: it may be the first one.
    """

    greedy: bool = struct.field(pytree_node=False)
    filtered: bool = struct.field(pytree_node=False)
    output_log_probs: bool = struct.field(pytree_node=False)
    temperature: Array
    top_k: Array
    top_p: Array
    key: Array
    end_id: Array
    repetition_penalty: Array | None
    min_new_tokens: Array | None


def make_sampling(
    vocab_size: int,
    max_new_tokens: int = 0,
    temperature: float = 0.0,
    key: Array | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    min_new_tokens: int = 0,
    end_id: int | None = None,
    output_log_probs: bool = False,
) -> Sampling:
    """Check the arguments of `generate` that say how tokens are chosen, and make a `Sampling` of them.

    Raises:
        InputError: one of them is invalid.
    """
    if not (temperature == 0 or 1e-4 <= temperature < 1e4):
        raise InputError(f"temperature {temperature} must be 0, or at least 0.0001 and below 10000")
    if top_k < 0:
        raise InputError(f"top_k {top_k} must be at least 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} must be above 0 and at most 1")
    if not 1e-4 <= repetition_penalty < 1e4:
        raise InputError(f"repetition_penalty {repetition_penalty} must be at least 0.0001 and below 10000; 1: none")
    if end_id is not None and not 0 <= end_id < vocab_size:
        raise InputError(f"end_id {end_id} does not fit the vocabulary of {vocab_size}; give one of its ids")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise InputError(f"min_new_tokens {min_new_tokens} must be from 0 to max_new_tokens, {max_new_tokens}")
    if min_new_tokens and end_id is None:
        raise InputError("min_new_tokens needs end_id, the token that it holds back")
    if temperature and key is None:
        raise InputError("a temperature above 0 needs a key, such as key=jax.random.key(0)")
    greedy = not temperature
    return Sampling(
        greedy=greedy,
        filtered=not greedy and (top_k > 0 or top_p < 1),
        output_log_probs=output_log_probs,
        temperature=jnp.float32(temperature or 1),
        top_k=jnp.int32(min(top_k or vocab_size, vocab_size)),
        top_p=jnp.float32(top_p),
        key=jax.random.key(0) if key is None else key,
        end_id=jnp.int32(-1 if end_id is None else end_id),
        repetition_penalty=None if repetition_penalty == 1 else jnp.float32(repetition_penalty),
        min_new_tokens=jnp.int32(min_new_tokens) if min_new_tokens else None,
    )


def choose(logits: Array, sampling: Sampling, count: Array, ids: Array, start: Array, stop: Array) -> Array:
    """Choose one token per row. The order of the steps is that of transformers.

    Args:
        logits: [B V], of the next token.
        sampling: how to choose.
        count: int32, the number of tokens added so far.
        ids: [B S] int32, the text so far: its slots are those from `start` until before `stop`.
        start: [B] int32.
        stop: int32.

    Returns:
        [B] int32.
    """
    if sampling.repetition_penalty is not None:
        logits = penalize(logits, ids, start, stop, sampling.repetition_penalty)
    if sampling.min_new_tokens is not None:
        held_back = (jnp.arange(logits.shape[-1]) == sampling.end_id) & (count < sampling.min_new_tokens)
        logits = jnp.where(held_back[None], -jnp.inf, logits)
    if sampling.greedy:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.filtered:
        logits = filter_top_k_top_p(logits, sampling.top_k, sampling.top_p)
    return jax.random.categorical(jax.random.fold_in(sampling.key, count), logits).astype(jnp.int32)


def penalize(logits: Array, ids: Array, start: Array, stop: Array, penalty: Array | float) -> Array:
    """Return logits [B V] in which the tokens of the text are less likely if `penalty` is above 1.

    A positive logit is divided by the penalty, once, however often the token occurs (Keskar et al. 2019, section 4.1).
    A negative one is multiplied by it, as in transformers; the paper divides it too, which makes the token likelier.

    Args:
        logits: [B V].
        ids: [B S] int32, the text, of which only the slots from `start` [B] until before `stop` count.
        start: [B] int32, the number of padding slots.
        stop: int32.
        penalty: above 0; below 1, the tokens of the text become likelier.
    """
    slot = jnp.arange(ids.shape[1])[None]
    ids = jnp.where((slot >= start[:, None]) & (slot < stop), ids, logits.shape[-1])  # others are beyond the vocabulary
    seen = jnp.take_along_axis(logits, ids, axis=1, mode="clip")
    seen = jnp.where(seen > 0, seen / penalty, seen * penalty)
    return logits.at[jnp.arange(len(ids))[:, None], ids].set(seen, mode="drop")


def filter_top_k_top_p(logits: Array, top_k: Array | int, top_p: Array | float) -> Array:
    """Return logits [B V] with -inf for every token that top-k or top-p sampling excludes.

    The `top_k` likeliest tokens are kept. Of these, after renormalization, the smallest set of likeliest tokens is kept
    whose probabilities sum to at least `top_p`. Tokens that tie with the last kept one are kept too.
    """
    ordered = -jnp.sort(-logits, axis=-1)
    kept = jnp.broadcast_to(jnp.arange(logits.shape[-1]) < top_k, logits.shape)
    probabilities = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf))
    kept &= jnp.cumsum(probabilities, axis=-1) - probabilities < jnp.maximum(top_p, 1e-9)
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
