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
from jax import Array
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from bertgpt.errors import InputError, check_ids
from bertgpt.inference.sampling import Sampling, choose, make_sampling
from bertgpt.inference.stop_strings import StopStrings, make_stop_strings
from bertgpt.losses.chunked_cross_entropy import LMHead
from bertgpt.model.attention import Cache, empty_cache
from bertgpt.model.gpt import OpenAIGPTLMHeadModel, OpenAIGPTModel

BUCKET = 16  # lengths of prompts and continuations are rounded up to 16, 32, 64, ..., to compile fewer programs


class State(NamedTuple):
    """The state of the decoding loop.

    Attributes:
        ids: [B S] int32, one token per slot: padding, prompt, continuation.
        cache: the keys and values of each layer.
        token: [B] int32, the newest token of each row, which the model has not processed yet.
        pad: [B] int32, the number of padding slots of each row.
        done: [B] bool, whether a row has ended.
        added: int32, the number of tokens added to each row.
        log_probs: [B S] float32, the model's log-probability of each added token in its slot, and 0 in all other slots;
            None: not kept.
    """

    ids: Array
    cache: list[Cache]
    token: Array
    pad: Array
    done: Array
    added: Array
    log_probs: Array | None = None


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
    repetition_penalty: float = 1.0,
    min_new_tokens: int = 0,
    end_id: int | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    num_return_sequences: int = 1,
    output_log_probs: bool = False,
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
        repetition_penalty: above 1, tokens of the prompt and of the continuation so far become less likely: a positive
            logit is divided by the penalty, and a negative one multiplied by it (Keskar et al. 2019, section 4.1).
            Padding does not count. Below 1, they become likelier.
        min_new_tokens: `end_id` is not chosen before so many tokens were added. Stop strings may end a row earlier.
        end_id: the end token, after which a row is not continued; None: no end token.
        stop_strings: a row ends after the token that completes one of these strings in its text, which is the prompt
            with the continuation; so a string may begin in the prompt. The token is kept whole, even if the string ends
            inside it. Slower, since the text is checked after each token.
        tokenizer: decodes the ids; required for `stop_strings`.
        num_return_sequences: the number of samples of each prompt; above 1 only if temperature is above 0.
        output_log_probs: whether to return log-probabilities too.
        cut_left: whether to remove the beginning of a prompt that leaves no room for `max_new_tokens`; if False, such a
            prompt raises an error.

    Returns:
        For an array: [B T + max_new_tokens] int32, the prompts with their continuations; a row that ended is filled
        with `end_id`. For lists: a list of int32 arrays, each a prompt with its continuation, up to and including its
        end token. With `num_return_sequences` N there are B*N rows, first those of the first prompt.

        With `output_log_probs`, a pair of these ids and the log-probability of each added token under the model, that
        is, the log softmax of its logits before penalty, temperature and filters. For an array: [B max_new_tokens]
        float32, 0 after the end of a row. For lists: a list of float32 arrays, as long as the continuations.

    Raises:
        InputError: the model has no LM head, a prompt is empty or too long, or an id or a setting is invalid.
    """
    _check_model(model, max_new_tokens)
    _check_samples(num_return_sequences, temperature)
    prompts = [_checked(model, prompt, max_new_tokens, cut_left) for prompt in prompt_ids]
    choice = (temperature, key, top_k, top_p, repetition_penalty, min_new_tokens, end_id, output_log_probs)
    sampling = make_sampling(model.config.vocab_size, max_new_tokens, *choice)
    stop = make_stop_strings(stop_strings, tokenizer)
    as_array = isinstance(prompt_ids, np.ndarray | Array)
    if as_array and stop is not None and end_id is None:
        raise InputError("stop_strings with an array of prompts needs end_id, which fills ended rows; or give lists")
    ids, log_probs, lengths = _added(model, params, prompts, max_new_tokens, sampling, stop, num_return_sequences)
    prompts = [prompt for prompt in prompts for _ in range(num_return_sequences)]
    result: Any
    if as_array:
        beginnings = np.stack(prompts) if prompts else np.zeros((0, prompt_ids.shape[-1]))
        result = jnp.asarray(np.concatenate([beginnings, ids], axis=1), jnp.int32), jnp.asarray(log_probs)
    else:
        rows = [np.concatenate([prompt, row[:size]]) for prompt, row, size in zip(prompts, ids, lengths, strict=True)]
        result = rows, [row[:size] for row, size in zip(log_probs, lengths, strict=True)]
    return result if output_log_probs else result[0]


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
    repetition_penalty: float = 1.0,
    min_new_tokens: int = 0,
    end_id: int | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    cut_left: bool = False,
) -> Iterator[int]:
    """Yield the tokens that `generate` would add to one prompt [T], each as soon as it is computed.

    Arguments are as in `generate`, and so are errors. The iterator ends after `end_id`, after the token that completes
    a stop string, or after `max_new_tokens` tokens.
    """
    _check_model(model, max_new_tokens)
    prompt = _checked(model, prompt_ids, max_new_tokens, cut_left)
    choice = (temperature, key, top_k, top_p, repetition_penalty, min_new_tokens, end_id)
    sampling = make_sampling(model.config.vocab_size, max_new_tokens, *choice)
    stop = make_stop_strings(stop_strings, tokenizer)
    states = _states(model, params, [prompt], max_new_tokens, sampling, stop)
    return (int(state.token[0]) for state in states)


def _added(
    model: Any,
    params: Any,
    prompts: list[np.ndarray],
    count: int,
    sampling: Sampling,
    stop: StopStrings | None,
    samples: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is added to N rows: ids and log-probabilities [N count], and the length of each row's part [N].

    After their length, ids are the end token and log-probabilities 0, as all of them are if they are not kept.
    """
    size = len(prompts) * samples
    lengths, done = np.zeros(size, int), np.zeros(size, bool)
    if not prompts or not count:
        return np.zeros((size, count), np.int32), np.zeros((size, count), np.float32), lengths
    if stop is None:
        ids, pad = _padded(prompts)
        held, cache_length = cast_for_decoding(params, model.dtype, size), ids.shape[1] + _bucket(count)
        room = {"cache_length": cache_length, "num_return_sequences": samples}
        text, kept = _run(held, ids, pad, count, sampling, encoder=encoder_of(model), **room)
    else:
        for state in _states(model, params, prompts, count, sampling, stop, samples):
            lengths, done = lengths + ~done, np.array(state.done)
        text, kept = state.ids, state.log_probs
    new = slice(text.shape[1] - _bucket(count), text.shape[1] - _bucket(count) + count)
    added = np.asarray(text)[:, new]
    log_probs = np.zeros(added.shape, np.float32) if kept is None else np.asarray(kept)[:, new]
    if stop is None:
        ended = added == np.asarray(sampling.end_id)
        lengths = np.where(ended.any(1), ended.argmax(1) + 1, count)
    past = np.arange(count) >= lengths[:, None]
    return np.where(past, np.asarray(sampling.end_id), added), log_probs, lengths


def _states(
    model: Any,
    params: Any,
    prompts: list[np.ndarray],
    count: int,
    sampling: Sampling,
    stop: StopStrings | None,
    samples: int = 1,
) -> Iterator[State]:
    """Yield the state after each new token until all rows have ended. The next step overwrites it."""
    ids, pad = _padded(prompts)
    params = cast_for_decoding(params, model.dtype, len(ids) * samples)
    encoder = encoder_of(model)
    first = {"cache_length": ids.shape[1] + _bucket(count), "num_return_sequences": samples}
    rows = [prompt.tolist() for prompt in prompts for _ in range(samples)]
    for number in range(count):
        if number == 0:
            state = _start(params, ids, pad, sampling, encoder=encoder, **first)
        else:
            state = _next(params, state, sampling, encoder=encoder)
        if stop is not None:
            state = _stopped(state, rows, stop)
        yield state
        if state.done.all():
            return


def _stopped(state: State, rows: list[list[int]], stop: StopStrings) -> State:
    """Add the new tokens to the rows of ids, and mark those as done whose text completes a stop string."""
    token, done = np.array(state.token), np.array(state.done)
    for index in np.flatnonzero(~done):
        rows[index].append(int(token[index]))
        done[index] = stop.end_at(rows[index])
    # Without an end token, ended rows have -1, for which the model would give NaN.
    return state._replace(token=jnp.asarray(np.maximum(token, 0)), done=jnp.asarray(done))


def _check_model(model: Any, max_new_tokens: int) -> None:
    if not isinstance(model, OpenAIGPTLMHeadModel):
        raise InputError(f"{type(model).__name__} cannot generate text; load a GPT-1 as OpenAIGPTLMHeadModel")
    positions = model.config.max_positions
    if not 0 <= max_new_tokens < positions:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 0 and below {positions} positions")


def _check_samples(num_return_sequences: int, temperature: float) -> None:
    if num_return_sequences < 1:
        raise InputError(f"num_return_sequences {num_return_sequences} must be at least 1")
    if num_return_sequences > 1 and not temperature:
        raise InputError(
            f"num_return_sequences {num_return_sequences} needs a temperature above 0; at 0, all samples are the same"
        )


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


def _bucket(length: int) -> int:
    """Round a length up to 16, 32, 64, ..."""
    return max(BUCKET, 1 << (length - 1).bit_length())


def _padded(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts of any lengths as [B P], padded on the left, and the number of padding tokens per row [B]."""
    width = _bucket(max(map(len, prompts)))
    ids = np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts])
    return ids, np.array([width - len(prompt) for prompt in prompts], np.int32)


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


def encoder_of(model: Any) -> OpenAIGPTModel:
    """Return the encoder of an `OpenAIGPTLMHeadModel`, which processes tokens in the same way."""
    return OpenAIGPTModel(model.config, model.dtype, attention=model.attention)


def prefill(
    params: Any,
    ids: Array,
    pad: Array,
    sampling: Sampling,
    *,
    encoder: OpenAIGPTModel,
    cache_length: int,
    num_return_sequences: int = 1,
) -> State:
    """Process prompts [B P] in one pass, and add the first token to each row.

    Args:
        params: the parameters, from `cast_for_decoding`.
        ids: [B P] int32, the prompts, padded on the left.
        pad: [B] int32, the number of padding tokens of each row.
        sampling: how to choose tokens.
        encoder: from `encoder_of`.
        cache_length: S, the slots of the cache: P and room for the continuation.
        num_return_sequences: the number of rows of each prompt in the state, one after another.
    """
    batch, width = ids.shape
    empty = empty_cache(encoder.config, batch, cache_length, jnp.float32 if _on_cpu() else encoder.dtype)
    logits, cache = _forward(params, ids, empty, pad, encoder)
    if num_return_sequences > 1:
        logits, cache, ids, pad = _repeated((logits, cache, ids, pad), batch, num_return_sequences)
    ids = jnp.pad(ids, ((0, 0), (0, cache_length - width)))  # slots after the end of a row are not read
    done = jnp.zeros(batch * num_return_sequences, bool)
    log_probs = jnp.zeros(ids.shape, jnp.float32) if sampling.output_log_probs else None
    state = State(ids, cache, ids[:, 0], pad, done, jnp.int32(0), log_probs)
    return _add(state, logits, sampling)


def _repeated(arrays: Any, batch: int, times: int) -> Any:
    """Repeat each of B rows: [B ...] -> [B*N ...]; the cache's arrays [B*H ...] have H rows of theirs for each."""

    def repeated(x: Array) -> Array:
        if not x.ndim:
            return x
        rows = jnp.repeat(x.reshape(batch, -1, *x.shape[1:]), times, axis=0)
        return rows.reshape(-1, *x.shape[1:])

    return jax.tree.map(repeated, arrays)


def decode_step(params: Any, state: State, sampling: Sampling, *, encoder: OpenAIGPTModel) -> State:
    """Process the newest token of each row, and add the next one."""
    logits, cache = _forward(params, state.token[:, None], state.cache, state.pad, encoder)
    return _add(state._replace(cache=cache), logits, sampling)


def _add(state: State, logits: Array, sampling: Sampling) -> State:
    """Choose the next tokens from logits [B V], and write them into the next slot; ended rows get `end_id`."""
    slot = state.cache[0].start
    token = choose(logits, sampling, state.added, state.ids, state.pad, slot)  # [B]
    token = jnp.where(state.done, sampling.end_id, token)
    ids = jax.lax.dynamic_update_slice(state.ids, token[:, None], (0, slot))
    log_probs = state.log_probs
    if log_probs is not None:
        new = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1, mode="clip")
        log_probs = jax.lax.dynamic_update_slice(log_probs, jnp.where(state.done[:, None], 0, new), (0, slot))
    done, added = token == sampling.end_id, state.added + 1
    return state._replace(ids=ids, token=token, done=done, added=added, log_probs=log_probs)


def _forward(
    params: Any, ids: Array, cache: list[Cache], pad: Array, encoder: OpenAIGPTModel
) -> tuple[Array, list[Cache]]:
    """Process ids [B T] in the next slots. Return the logits of the next token [B V] and the updated cache."""
    slot = cache[0].start + jnp.arange(ids.shape[1])  # [T]
    position = jnp.maximum(slot[None] - pad[:, None], 0)  # [B T]
    real = jnp.arange(cache[0].key.shape[1])[None] >= pad[:, None]  # [B S]
    with nn.intercept_methods(_as_held):
        output: Any = encoder.apply({"params": params["transformer"]}, ids, real, position, cache=cache)
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


STATIC = ("encoder", "cache_length", "num_return_sequences")
_start = jax.jit(prefill, static_argnames=STATIC)
_next = jax.jit(decode_step, static_argnames="encoder", donate_argnames="state")


@functools.partial(jax.jit, static_argnames=STATIC)
def _run(
    params: Any,
    ids: Array,
    pad: Array,
    count: Array,
    sampling: Sampling,
    *,
    encoder: OpenAIGPTModel,
    cache_length: int,
    num_return_sequences: int = 1,
) -> tuple[Array, Array | None]:
    """Prompts [B P] -> [B*N S] with `count` tokens added, or fewer if all rows end earlier; their log-probabilities."""
    room = {"cache_length": cache_length, "num_return_sequences": num_return_sequences}
    state = jax.lax.while_loop(
        lambda state: (state.added < count) & ~state.done.all(),
        lambda state: decode_step(params, state, sampling, encoder=encoder),
        prefill(params, ids, pad, sampling, encoder=encoder, **room),
    )
    return state.ids, state.log_probs
