"""Text from a GPT-1: one pass over the prompts, then one token at a time over what the cache remembers.

Prompts are padded on the left: every row's next token then has the same slot. Parameters are cast once, at the start.
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

BUCKET = 16  # batches of one size share a compiled program up to 16, 32, 64, ... tokens of prompt and continuation


@struct.dataclass
class Sampling:
    """How a token is drawn; all but `greedy` and `filtered` are arrays, so that other values need no compilation.

    Attributes:
        greedy: takes the likeliest token; the rest does not matter then.
        filtered: whether top_k or top_p act.
        temperature: logits are divided by it.
        top_k: only that many of the likeliest tokens; the vocabulary's size for all.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        key: of `jax.random`; the number of the token is folded into it.
        end_id: a row is over after this token; -1 for none.
    """

    greedy: bool = struct.field(pytree_node=False)
    filtered: bool = struct.field(pytree_node=False)
    temperature: Array
    top_k: Array
    top_p: Array
    key: Array
    end_id: Array


class State(NamedTuple):
    """What a continuation carries.

    Attributes:
        ids: [B S] int32, a slot a token: padding, prompt, continuation.
        cache: the keys and values of every layer.
        token: [B] int32, the newest of each row, not read yet.
        pad: [B] int32, how many slots of a row are padding.
        done: [B] bool, rows that have had their end token.
        added: int32, how many tokens were.
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
    """Continues prompts.

    Args:
        model: an `OpenAIGPTLMHeadModel`.
        params: its parameters.
        prompt_ids: [B T] int, T at least 1; or a list of B lists of ids, each of a length of its own. One prompt is
            `[ids]`.
        max_new_tokens: how many to add.
        temperature: 0 takes the likeliest token; above, samples from softmax(logits / temperature).
        key: of the sampling; needed where temperature is above 0.
        top_k: samples from that many of the likeliest tokens; 0 from all.
        top_p: samples from the likeliest tokens that together reach this probability; 1 from all.
        end_id: nothing is added to a row after this token.
        cut_left: a prompt that leaves no room for `max_new_tokens` loses its beginning instead of being refused.

    Returns:
        For an array [B T + max_new_tokens] int32, the prompts first, `end_id` repeated where a row ended. For lists, a
        list of int32 arrays, each a prompt with its continuation, up to and with its end token.

    Raises:
        InputError: the model has no next-token head, a prompt is empty or too long, an id or a setting is impossible.
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
    """The tokens that `generate` adds to one prompt [T], each as soon as it is known; ends after `end_id`."""
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
        raise InputError(f"{type(model).__name__} does not write text; load it as OpenAIGPTLMHeadModel")
    positions = model.config.max_positions
    if not 0 <= max_new_tokens < positions:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 0 and under {positions} positions")


def _checked(model: Any, prompt_ids: Any, max_new_tokens: int, cut_left: bool) -> np.ndarray:
    """A prompt that leaves room for what is to come, [T] int32."""
    positions, prompt = model.config.max_positions, np.asarray(prompt_ids)
    if prompt.ndim != 1:
        raise InputError(f"a prompt has {prompt.ndim} axes instead of one; give a list of prompts: one is [ids]")
    if not prompt.size:
        raise InputError("the prompt has no tokens; give at least one word")
    if prompt.dtype.kind not in "iu":
        raise InputError(f"token ids are whole numbers, not {prompt.dtype}")
    check_ids(prompt, model.config.vocab_size)
    if len(prompt) + max_new_tokens > positions and not cut_left:
        raise InputError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones are over the model's {positions} "
            "positions; shorten the prompt, ask for fewer, or have its left cut (cut_left, --cut-left)"
        )
    return prompt[-(positions - max_new_tokens) :].astype(np.int32)


def _sampling(
    temperature: float, key: Array | None, top_k: int, top_p: float, end_id: int | None, vocab_size: int
) -> Sampling:
    if not (temperature == 0 or 1e-4 <= temperature < 1e4):
        raise InputError(f"temperature {temperature} must be 0, or from 0.0001 to 10000")
    if top_k < 0:
        raise InputError(f"top_k {top_k} must be at least 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} must be above 0, up to 1")
    if end_id is not None and not 0 <= end_id < vocab_size:
        raise InputError(f"end_id {end_id} does not fit the vocabulary of {vocab_size}")
    if temperature and key is None:
        raise InputError("sampling needs a key: key=jax.random.key(0)")
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
    """The next of 16, 32, 64, ..."""
    return max(BUCKET, 1 << (length - 1).bit_length())


def _padded(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of any lengths as [B P] with padding on the left, and how much of it [B]."""
    width = _bucket(max(map(len, prompts)))
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    return ids, np.array([width - len(prompt) for prompt in prompts], np.int32)


def _ended(row: np.ndarray, prompt: int, end_id: int | None) -> np.ndarray:
    """A row up to its end token."""
    ends = np.flatnonzero(row[prompt:] == end_id) if end_id is not None else np.zeros(0, int)
    return row[: prompt + ends[0] + 1] if ends.size else row


def _on_cpu() -> bool:
    """Where products of one bfloat16 vector are slower than of a float32 one."""
    return jax.default_backend() == "cpu"


def cast_for_decoding(params: Any, dtype: DTypeLike, batch: int) -> Any:
    """Parameters for a continuation of `batch` rows: kernels, and as `head` the token embeddings, rounded to the dtype
    once and not for every token.

    On a CPU they stay float32 arrays where `batch` is 1, for the products' sake.
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
    """Reads prompts [B P], `pad` [B] slots of each being padding, and adds the first token; `params` as
    `cast_for_decoding` gives them."""
    batch, width = ids.shape
    empty = empty_cache(config, batch, cache_length, jnp.float32 if _on_cpu() else dtype)
    logits, cache = _forward(params, ids, empty, pad, config, dtype)
    ids = jnp.pad(ids, ((0, 0), (0, cache_length - width)))  # where a row ended, what stands here is not read
    state = State(ids, cache, ids[:, 0], pad, jnp.zeros(batch, bool), jnp.int32(0))
    return _add(state, logits, sampling)


def decode_step(params: Any, state: State, sampling: Sampling, *, config: ModelConfig, dtype: DTypeLike) -> State:
    """Reads the newest tokens, and adds one to every row."""
    logits, cache = _forward(params, state.token[:, None], state.cache, state.pad, config, dtype)
    return _add(state._replace(cache=cache), logits, sampling)


def _add(state: State, logits: Array, sampling: Sampling) -> State:
    """Chooses by logits [B V] what goes into the next slot."""
    token = jnp.where(state.done, sampling.end_id, _choose(logits, sampling, state.added))  # [B]
    ids = jax.lax.dynamic_update_slice(state.ids, token[:, None], (0, state.cache[0].start))
    return state._replace(ids=ids, token=token, done=token == sampling.end_id, added=state.added + 1)


def _choose(logits: Array, sampling: Sampling, count: Array) -> Array:
    """[B V] -> [B] int32."""
    if sampling.greedy:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.filtered:
        logits = filter_top_k_top_p(logits, sampling.top_k, sampling.top_p)
    return jax.random.categorical(jax.random.fold_in(sampling.key, count), logits).astype(jnp.int32)


def filter_top_k_top_p(logits: Array, top_k: Array | int, top_p: Array | float) -> Array:
    """[B V] with -inf at all but the `top_k` likeliest tokens, and of these all but the fewest that reach `top_p`."""
    ordered = -jnp.sort(-logits, axis=-1)
    kept = jnp.broadcast_to(jnp.arange(logits.shape[-1]) < top_k, logits.shape)
    probabilities = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf))
    kept &= jnp.cumsum(probabilities, axis=-1) - probabilities < jnp.maximum(top_p, 1e-9)
    least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


def _forward(
    params: Any, ids: Array, cache: list[Cache], pad: Array, config: ModelConfig, dtype: DTypeLike
) -> tuple[Array, list[Cache]]:
    """Reads ids [B T] into the next slots: the next token's logits [B V], and the cache with them."""
    slot = cache[0].start + jnp.arange(ids.shape[1])  # [T]
    position = jnp.maximum(slot[None] - pad[:, None], 0)  # [B T]
    real = jnp.arange(cache[0].key.shape[1])[None] >= pad[:, None]  # [B S]
    with nn.intercept_methods(_as_held):
        model = OpenAIGPTModel(config, dtype)
        output: Any = model.apply({"params": params["transformer"]}, ids, real, position, cache=cache)
    head = LMHead(output.last_hidden_state[:, -1:].astype(params["head"].dtype), params["head"])
    return head.logits()[:, 0], output.cache


def _as_held(linen: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
    """Dense layers multiply by their kernels as `cast_for_decoding` gives them, sum in float32, and round once."""
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
    """Prompts [B P] -> [B slots] with `count` tokens added, or fewer where all rows ended."""
    return jax.lax.while_loop(
        lambda state: (state.added < count) & ~state.done.all(),
        lambda state: decode_step(params, state, sampling, config=config, dtype=dtype),
        prefill(params, ids, pad, sampling, config=config, dtype=dtype, cache_length=cache_length),
    ).ids
