"""Text generation with a GPT-1: one pass over the prompts, then one token at a time with a key-value cache.

Prompts are padded on the left, so the next token has the same slot in all rows. Parameters are cast once, at the start.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.errors import InputError, check_ids
from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache, empty_cache
from bertgpt.model.gpt import OpenAIGPTLMHeadModel, OpenAIGPTModel

BUCKET = 16  # lengths of prompts and continuations are rounded up to 16, 32, 64, ..., to compile fewer programs


@struct.dataclass
class Sampling:
    """How the next token is chosen.

    All fields except `greedy` and `filtered` are arrays, so new values need no new compilation.

    Attributes:
        greedy: whether to take the likeliest token; the fields up to `key` then have no effect.
        filtered: whether top_k or top_p has an effect.
        temperature: the divisor of the logits.
        top_k: sample from the `top_k` likeliest tokens; the size of the vocabulary for all tokens.
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to at least `top_p` (Holtzman et
            al. 2020).
        key: a `jax.random` key; the index of the new token is folded into it.
        end_id: a row ends after this token; -1: no end token.
    """

    greedy: bool = struct.field(pytree_node=False)
    filtered: bool = struct.field(pytree_node=False)
    temperature: Array
    top_k: Array
    top_p: Array
    key: Array
    end_id: Array


class State(NamedTuple):
    """The state of the decoding loop.

    Attributes:
        ids: [B S] int32, one token per slot: padding, prompt, continuation.
        cache: the keys and values of each layer.
        token: [B] int32, the newest token of each row, which the model has not processed yet.
        pad: [B] int32, the number of padding slots of each row.
        done: [B] bool, whether a row has ended.
        added: int32, the number of tokens added to each row.
    """

    ids: Array
    cache: list[Cache]
    token: Array
    pad: Array
    done: Array
    added: Array


def generate(
    model: Any,
    params: Any,
    prompt_ids: Any,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: Array | None = None,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    end_id: int | None = None,
    cut_left: bool = False,
) -> Any:
    """Generate continuations of prompts.

    Args:
        model: an `OpenAIGPTLMHeadModel`.
        params: its parameters.
        prompt_ids: [B T] int, T at least 1; or a list of B lists of ids, which may differ in length. For one prompt,
            give `[ids]`.
        max_new_tokens: the number of tokens to add; fewer if `end_id` is generated.
        temperature: 0: take the likeliest token; above 0: sample from softmax(logits / temperature).
        key: the random key for sampling; required if temperature is above 0.
        top_k: sample from the `top_k` likeliest tokens; 0: from all.
        top_p: sample from the smallest set of likeliest tokens whose probabilities sum to at least `top_p`; 1: from
            all.
        end_id: the end token, after which a row is not continued; None: no end token.
        cut_left: whether to remove the beginning of a prompt that leaves no room for `max_new_tokens`; if False, such a
            prompt raises an error.

    Returns:
        For an array: [B T + max_new_tokens] int32, the prompts with their continuations; a row that ended is filled
        with `end_id`. For lists: a list of int32 arrays, each a prompt with its continuation, up to and including its
        end token.

    Raises:
        InputError: the model has no LM head, a prompt is empty or too long, or an id or a setting is invalid.
    """
    _check_model(model, max_new_tokens)
    prompts = [_checked(model, prompt, max_new_tokens, cut_left) for prompt in prompt_ids]
    sampling = _sampling(temperature, key, top_k, top_p, end_id, model.config.vocab_size)
    if not prompts or not max_new_tokens:
        added = np.zeros((len(prompts), 0), np.int32)
    else:
        ids, pad = _padded(prompts)
        cache_length = ids.shape[1] + _bucket(max_new_tokens)
        held = cast_for_decoding(params, model.dtype, len(ids))
        run = _run(
            held, ids, pad, max_new_tokens, sampling, config=model.config, dtype=model.dtype, cache_length=cache_length
        )
        added = np.asarray(run)[:, ids.shape[1] :][:, :max_new_tokens]
        if end_id is not None:
            added = np.where(np.cumsum(added == end_id, axis=1) > 0, end_id, added)
    rows = [np.concatenate(pair) for pair in zip(prompts, added, strict=True)]
    if isinstance(prompt_ids, np.ndarray | Array):
        none = np.zeros((0, prompt_ids.shape[-1] + max_new_tokens))
        return jnp.asarray(np.stack(rows) if rows else none, jnp.int32)
    return [_ended(row, len(prompt), end_id) for row, prompt in zip(rows, prompts, strict=True)]


def stream(
    model: Any,
    params: Any,
    prompt_ids: Sequence[int] | np.ndarray,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    key: Array | None = None,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    end_id: int | None = None,
    cut_left: bool = False,
) -> Iterator[int]:
    """Yield the tokens that `generate` would add to one prompt [T], each as soon as it is computed.

    Arguments are as in `generate`, and so are errors. The iterator ends after `end_id` or `max_new_tokens` tokens.
    """
    _check_model(model, max_new_tokens)
    prompt = _checked(model, prompt_ids, max_new_tokens, cut_left)
    return _tokens(
        model,
        params,
        prompt,
        max_new_tokens,
        _sampling(temperature, key, top_k, top_p, end_id, model.config.vocab_size),
    )


def _tokens(model: Any, params: Any, prompt: np.ndarray, count: int, sampling: Sampling) -> Iterator[int]:
    ids, pad = _padded([prompt])
    params = cast_for_decoding(params, model.dtype, 1)
    constants = {"config": model.config, "dtype": model.dtype}
    cache_length = ids.shape[1] + _bucket(count)
    for number in range(count):
        if number == 0:
            state = _start(params, ids, pad, sampling, **constants, cache_length=cache_length)
        else:
            state = _next(params, state, sampling, **constants)
        yield int(state.token[0])
        if state.done[0]:
            return


def _check_model(model: Any, max_new_tokens: int) -> None:
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise InputError(f"{type(model).__name__} cannot generate text; load a GPT-1 as OpenAIGPTLMHeadModel")
    positions = model.config.max_positions
    if not 0 <= max_new_tokens < positions:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 0 and below {positions} positions")


def _checked(model: Any, prompt_ids: Any, max_new_tokens: int, cut_left: bool) -> np.ndarray:
    """Return a valid prompt, [T] int32, truncated on the left if `cut_left` is set and it is too long."""
    positions, prompt = model.config.max_positions, np.asarray(prompt_ids)
    if prompt.ndim != 1:
        raise InputError(f"a prompt has {prompt.ndim} axes instead of one; give a list of prompts, such as [ids]")
    if not prompt.size:
        raise InputError("the prompt has no tokens; give at least one word")
    if prompt.dtype.kind not in "iu":
        raise InputError(f"token ids must be integers, not {prompt.dtype}")
    check_ids(prompt, model.config.vocab_size)
    if len(prompt) + max_new_tokens > positions and not cut_left:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones exceed the model's {positions} "
            "positions; shorten the prompt, lower max_new_tokens, or set cut_left"
        )
    return prompt[-(positions - max_new_tokens) :].astype(np.int32)


def _sampling(
    temperature: float, key: Array | None, top_k: int, top_p: float, end_id: int | None, vocab_size: int
) -> Sampling:
    if not (temperature == 0 or 1e-4 <= temperature < 1e4):
        raise InputError(f"temperature {temperature} must be 0, or at least 0.0001 and below 10000")
    if top_k < 0:
        raise InputError(f"top_k {top_k} must be at least 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} must be above 0 and at most 1")
    if end_id is not None and not 0 <= end_id < vocab_size:
        raise InputError(f"end_id {end_id} does not fit the vocabulary of {vocab_size}; give one of its ids")
    if temperature and key is None:
        raise InputError("a temperature above 0 needs a key, such as key=jax.random.key(0)")
    greedy = not temperature
    return Sampling(
        greedy=greedy,
        filtered=not greedy and (top_k > 0 or top_p < 1),
        temperature=jnp.float32(temperature or 1),
        top_k=jnp.int32(min(top_k or vocab_size, vocab_size)),
        top_p=jnp.float32(top_p),
        key=jax.random.key(0) if key is None else key,
        end_id=jnp.int32(-1 if end_id is None else end_id),
    )


def _bucket(length: int) -> int:
    """Round a length up to 16, 32, 64, ..."""
    return max(BUCKET, 1 << (length - 1).bit_length())


def _padded(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts of any lengths as [B P], padded on the left, and the number of padding tokens per row [B]."""
    width = _bucket(max(map(len, prompts)))
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    return ids, np.array([width - len(prompt) for prompt in prompts], np.int32)


def _ended(row: np.ndarray, prompt: int, end_id: int | None) -> np.ndarray:
    """Return a row up to and including its end token, which is searched after the prompt."""
    ends = np.flatnonzero(row[prompt:] == end_id) if end_id is not None else np.zeros(0, int)
    return row[: prompt + ends[0] + 1] if ends.size else row


def _on_cpu() -> bool:
    """Whether JAX computes on a CPU, where products with one bfloat16 vector are slower than with a float32 one."""
    return jax.default_backend() == "cpu"


def cast_for_decoding(params: Any, dtype: DTypeLike, batch: int) -> Any:
    """Return the parameters for decoding `batch` rows, as {"transformer": ..., "head": token embeddings}.

    Kernels and head are rounded to `dtype` here, once, instead of for each token. On a CPU with `batch` 1, the rounded
    values are stored as float32, since products with one float32 vector are faster there (docs/performance.md).
    """
    params = {"transformer": params["transformer"], "head": params["transformer"]["token"]["embedding"]}
    widened = _on_cpu() and batch == 1
    if all(x.dtype == dtype for x in jax.tree.leaves(params)) and (dtype == jnp.float32 or not widened):
        return params
    return _rounded(params, dtype=jnp.dtype(dtype), widened=widened)


@functools.partial(jax.jit, static_argnames=("dtype", "widened"))
def _rounded(params: Any, *, dtype: DTypeLike, widened: bool) -> Any:
    kind = jnp.finfo(dtype)

    def rounded(path: Any, x: Array) -> Array:
        if path[-1].key not in ("kernel", "head"):
            return x
        x = x.astype(jnp.float32)
        return jax.lax.reduce_precision(x, kind.nexp, kind.nmant) if widened else x.astype(dtype)

    return jax.tree.map_with_path(rounded, params)


def prefill(
    params: Any, ids: Array, pad: Array, sampling: Sampling, *, config: ModelConfig, dtype: DTypeLike, cache_length: int
) -> State:
    """Process prompts [B P] in one pass, and add the first token to each row.

    Args:
        params: the parameters, from `cast_for_decoding`.
        ids: [B P] int32, the prompts, padded on the left.
        pad: [B] int32, the number of padding tokens of each row.
        sampling: how to choose tokens.
        config: the model's configuration.
        dtype: the dtype of the computation.
        cache_length: S, the slots of the cache: P and room for the continuation.
    """
    batch, width = ids.shape
    empty = empty_cache(config, batch, cache_length, jnp.float32 if _on_cpu() else dtype)
    logits, cache = _forward(params, ids, empty, pad, config, dtype)
    ids = jnp.pad(ids, ((0, 0), (0, cache_length - width)))  # slots after the end of a row are not read
    state = State(ids, cache, ids[:, 0], pad, jnp.zeros(batch, bool), jnp.int32(0))
    return _add(state, logits, sampling)


def decode_step(params: Any, state: State, sampling: Sampling, *, config: ModelConfig, dtype: DTypeLike) -> State:
    """Process the newest token of each row, and add the next one."""
    logits, cache = _forward(params, state.token[:, None], state.cache, state.pad, config, dtype)
    return _add(state._replace(cache=cache), logits, sampling)


def _add(state: State, logits: Array, sampling: Sampling) -> State:
    """Choose the next tokens from logits [B V], and write them into the next slot; ended rows get `end_id`."""
    token = jnp.where(state.done, sampling.end_id, _choose(logits, sampling, state.added))  # [B]
    ids = jax.lax.dynamic_update_slice(state.ids, token[:, None], (0, state.cache[0].start))
    return state._replace(ids=ids, token=token, done=token == sampling.end_id, added=state.added + 1)


def _choose(logits: Array, sampling: Sampling, count: Array) -> Array:
    """Choose one token per row: logits [B V] -> [B] int32."""
    if sampling.greedy:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.filtered:
        logits = filter_top_k_top_p(logits, sampling.top_k, sampling.top_p)
    return jax.random.categorical(jax.random.fold_in(sampling.key, count), logits).astype(jnp.int32)


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


def _forward(
    params: Any, ids: Array, cache: list[Cache], pad: Array, config: ModelConfig, dtype: DTypeLike
) -> tuple[Array, list[Cache]]:
    """Process ids [B T] in the next slots. Return the logits of the next token [B V] and the updated cache."""
    slot = cache[0].start + jnp.arange(ids.shape[1])  # [T]
    position = jnp.maximum(slot[None] - pad[:, None], 0)  # [B T]
    real = jnp.arange(cache[0].key.shape[1])[None] >= pad[:, None]  # [B S]
    with nn.intercept_methods(_as_held):
        model = OpenAIGPTModel(config, dtype)
        output: Any = model.apply({"params": params["transformer"]}, ids, real, position, cache=cache)
    head = LMHead(output.last_hidden_state[:, -1:].astype(params["head"].dtype), params["head"])
    return head.logits()[:, 0], output.cache


def _as_held(linen: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
    """Intercept dense layers: multiply in the kernel's dtype (see `cast_for_decoding`), sum in float32, round once."""
    layer = context.module
    if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
        return linen(*arguments, **options)
    kernel, bias = layer.variables["params"]["kernel"], layer.variables["params"]["bias"]
    x = arguments[0].astype(kernel.dtype)
    y = jnp.einsum("BTI,IO->BTO", x, kernel, preferred_element_type=jnp.float32) + bias[None, None]
    return y.astype(layer.dtype)


STATIC = ("config", "dtype", "cache_length")
_start = jax.jit(prefill, static_argnames=STATIC)
_next = jax.jit(decode_step, static_argnames=("config", "dtype"), donate_argnames="state")


@functools.partial(jax.jit, static_argnames=STATIC)
def _run(
    params: Any,
    ids: Array,
    pad: Array,
    count: Array,
    sampling: Sampling,
    *,
    config: ModelConfig,
    dtype: DTypeLike,
    cache_length: int,
) -> Array:
    """Prompts [B P] -> [B S] with `count` tokens added, or fewer if all rows end earlier."""
    return jax.lax.while_loop(
        lambda state: (state.added < count) & ~state.done.all(),
        lambda state: decode_step(params, state, sampling, config=config, dtype=dtype),
        prefill(params, ids, pad, sampling, config=config, dtype=dtype, cache_length=cache_length),
    ).ids
