"""Self-attention as one TPU kernel, with dropout inside: scores and probabilities never leave the chip.

A grid step takes some rows of the batch and as many heads as fill 128 columns, the width of a TPU's registers and
products. One of two heads is picked by zeros in the columns of the other: a product over 64 columns takes as long as
one over 128. So queries, keys, values and the output stay [B T D], as the dense layers have them.

Scores are kept as [S Q], keys by queries, since sums over rows are cheaper than over columns. A task is one head of one
block of queries. `_pipelined` interleaves tasks, so that matrix units and vector units work at the same time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bertgpt.devices import target_device
from bertgpt.model.dropout import SPREAD, keeps

LANES = 128
LONGEST = 512  # tokens of a row
TOKENS = 1024  # of a grid step, at most: fewer leave matrix and vector units idle at its start and end
QUERIES = 128  # of a block; in a causal row, a block leaves out the keys after it
HIDDEN = np.iinfo(np.int32).min  # the id of a key to which nobody attends
LEAST = float(jnp.finfo(jnp.float32).min)
WIDTHS = (32, 64, 128)  # of heads
# Cycles of a grid step and of each 1,024 scores, forward and backward (v5e, benchmarks/tpu_attention.py), and what the
# matrix units of a kind of device can do in a cycle (peak / clock in train/). So the compiler and our estimates know
# how long a kernel takes; other kinds than v5e are assumed to need as many cycles.
CYCLES = {1: (600, 8), 3: (1000, 12)}
FLOPS_PER_CYCLE = {"TPU v5 lite": 4 * 2 * 128**2, "TPU v5": 8 * 2 * 128**2, "TPU v6 lite": 4 * 2 * 256**2}
PLAIN = (((1,), (0,)), ((), ()))  # x @ y
OVER_COLUMNS = (((1,), (1,)), ((), ()))  # x @ y.T
OVER_ROWS = (((0,), (0,)), ((), ()))  # x.T @ y


class Sizes(NamedTuple):
    """The fixed facts of a call.

    Attributes:
        rows: of the batch in a grid step.
        length: T.
        heads: H.
        width: W, of a head.
        causal: whether a query sees only itself and earlier keys.
        masked: whether there are ids of keys and queries.
        rate: of dropout.
        interpret: run as ordinary operations, on any device; for tests.
    """

    rows: int
    length: int
    heads: int
    width: int
    causal: bool
    masked: bool
    rate: float
    interpret: bool

    @property
    def together(self) -> int:
        """The number of heads in a grid step."""
        return LANES // self.width

    @property
    def scale(self) -> np.float32:
        """1 / sqrt(W)."""
        return np.float32(self.width**-0.5)


class Task(NamedTuple):
    """One head of one block of queries: its row and head in the grid step, the first query, and the keys before `stop`
    that it sees."""

    row: int
    head: int
    start: int
    stop: int

    @property
    def queries(self) -> tuple[int, slice]:
        """The place of its queries in a block [R T 128]."""
        return self.row, slice(self.start, self.start + QUERIES)

    @property
    def keys(self) -> tuple[int, slice]:
        """The place of its keys in a block [R T 128]."""
        return self.row, slice(0, self.stop)


def obstacle(length: int, heads: int, width: int, dtype: Any, kind: str = "TPU v5 lite") -> str | None:
    """Return why the kernel cannot compute attention of these sizes on a device, in one phrase; None if it can."""
    if kind not in FLOPS_PER_CYCLE:
        return f"it was compiled for {', '.join(FLOPS_PER_CYCLE)}, and the device is {kind}"
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"it needs bfloat16, and the dtype is {jnp.dtype(dtype)}"
    if length % QUERIES or not 0 < length <= LONGEST:
        return f"it needs a length that is a multiple of {QUERIES} up to {LONGEST}, and the length is {length}"
    if width not in WIDTHS or heads * width % LANES:
        widths = ", ".join(map(str, WIDTHS))
        return f"it needs heads of {widths} that fill {LANES} columns, and there are {heads} heads of {width}"
    return None


def rows_of_step(batch: int, length: int) -> int:
    """Return the number of rows that a grid step takes."""
    return max(n for n in range(1, TOKENS // length + 1) if batch % n == 0)


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    rate: float = 0.0,
    words: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Compute what `attention.dot_product_attention` does, with the same probabilities dropped.

    It has a gradient, but no forward-mode derivative.

    Args:
        query, key, value: [B T H W].
        causal, attention_mask, pack_ids: as in `attention.Masks`.
        rate: the dropout rate.
        words: the two words of the dropout key, uint32 [2]; None at rate 0.
        interpret: see `Sizes`.

    Returns:
        [B T H W]. For a query without an allowed key, the result is meaningless, and not that of the plain form.
    """
    batch, length, heads, width = query.shape
    rows = rows_of_step(batch, length)
    masked = attention_mask is not None or pack_ids is not None
    sizes = Sizes(rows, length, heads, width, causal, masked, rate, interpret)
    words = jnp.zeros(2, jnp.uint32) if words is None else words
    given: tuple[Array, ...] = (jax.lax.bitcast_convert_type(words, jnp.int32)[None],)  # [1 2]: vmap needs two axes
    if masked:
        of_queries = jnp.zeros((batch, length), jnp.int32) if pack_ids is None else pack_ids.astype(jnp.int32)
        of_keys = of_queries if attention_mask is None else jnp.where(attention_mask != 0, of_queries, HIDDEN)
        given += (of_keys[:, None], of_queries[:, None])
    flat = (x.reshape(batch, length, heads * width) for x in (query, key, value))
    return _attention(*flat, given, sizes).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query: Array, key: Array, value: Array, given: Any, sizes: Sizes) -> Array:
    return _call(_forward, (query, key, value), given, 1, sizes)[0]


def _with_residuals(query: Array, key: Array, value: Array, given: Any, sizes: Sizes) -> tuple[Array, Any]:
    return _attention(query, key, value, given, sizes), (query, key, value, given)


def _gradients(sizes: Sizes, residuals: Any, slope: Array) -> tuple[Any, ...]:
    query, key, value, given = residuals
    return *_call(_backward, (query, key, value, slope), given, 3, sizes), None


_attention.defvjp(_with_residuals, _gradients)


def _call(kernel: Any, arrays: tuple[Array, ...], given: tuple[Array, ...], results: int, sizes: Sizes) -> Any:
    """Run a kernel over rows and heads. Arrays and results are [B T D]; `given` is the key's words and the ids."""
    batch, length, columns = arrays[0].shape
    block = pl.BlockSpec((sizes.rows, length, LANES), lambda row, group: (row, 0, group))
    ids = pl.BlockSpec((sizes.rows, 1, length), lambda row, group: (row, 0, 0))
    grid = batch // sizes.rows, columns // LANES
    scores = batch * sizes.heads * sum(QUERIES * stop for _, stop in _blocks(sizes))
    of_step, of_scores = CYCLES[results]
    flops_per_cycle = FLOPS_PER_CYCLE.get(target_device().device_kind, FLOPS_PER_CYCLE["TPU v5 lite"])
    cost = pl.CostEstimate(
        flops=(of_step * math.prod(grid) + of_scores * scores // 1024) * flops_per_cycle,
        transcendentals=scores,
        bytes_accessed=(len(arrays) + results) * arrays[0].size * arrays[0].dtype.itemsize,
    )
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=grid,
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *[ids] * (len(given) - 1), *[block] * len(arrays)],
        out_specs=[block] * results,
        out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=cost,
        interpret=sizes.interpret,
    )(*given, *arrays)


def _forward(words: Any, *refs: Any, sizes: Sizes) -> None:
    *ids, query, key, value, out = refs
    sums: dict[Any, Array] = {}

    def scores(task: Task) -> Array:
        return _scores(_columns_of(task.head, query[task.queries], sizes), key[task.keys])

    def dropped(task: Task, scores: Array) -> Array:
        raised, total = _softmax(scores, task, ids, sizes)
        probabilities = raised * (1 / (total * np.float32(1 - sizes.rate)))
        if sizes.rate:
            probabilities = jnp.where(_kept(words, task, sizes), probabilities, 0)
        return probabilities.astype(value.dtype)

    def mixed(task: Task, probabilities: Array) -> None:
        _add(sums, "out", _columns_of(task.head, _dot(probabilities, value[task.keys], OVER_ROWS), sizes))
        if task.head == sizes.together - 1:
            out[task.queries] = sums.pop("out").astype(out.dtype)

    _pipelined(sizes, scores, dropped, mixed)


def _backward(words: Any, *refs: Any, sizes: Sizes) -> None:
    *ids, query, key, value, slope, d_query, d_key, d_value = refs
    sums: dict[Any, Array] = {}
    of_dropout = np.float32(1 / (1 - sizes.rate))  # a constant factor, like the scale: left to the smallest arrays

    def products(task: Task) -> tuple[Array, ...]:
        queries, slopes = (_columns_of(task.head, x[task.queries], sizes) for x in (query, slope))
        return queries, slopes, _scores(queries, key[task.keys]), _dot(value[task.keys], slopes, OVER_COLUMNS)

    def of_softmax(task: Task, given: tuple[Array, ...]) -> tuple[Array, ...]:
        queries, slopes, scores, of_dropped = given
        raised, total = _softmax(scores, task, ids, sizes)
        probabilities = dropped = raised * (1 / total)
        if sizes.rate:
            kept = _kept(words, task, sizes)
            of_dropped, dropped = (jnp.where(kept, x, 0) for x in (of_dropped, probabilities))
        of_scores = probabilities * (of_dropped - (of_dropped * probabilities).sum(0, keepdims=True))
        return queries, slopes, of_scores.astype(queries.dtype), dropped.astype(queries.dtype)

    def gradients(task: Task, given: tuple[Array, ...]) -> None:
        queries, slopes, of_scores, dropped = given
        _add(sums, "query", _columns_of(task.head, _dot(of_scores, key[task.keys], OVER_ROWS), sizes))
        for name, product in (("key", _dot(of_scores, queries, PLAIN)), ("value", _dot(dropped, slopes, PLAIN))):
            for first in range(0, task.stop, QUERIES):
                _add(sums, (name, first), product[first : first + QUERIES])
        if task.head < sizes.together - 1:
            return
        d_query[task.queries] = (sums.pop("query") * (of_dropout * sizes.scale)).astype(d_query.dtype)
        if task.start + QUERIES == sizes.length:
            for first in range(0, sizes.length, QUERIES):
                place = task.row, slice(first, first + QUERIES)
                d_key[place] = (sums.pop(("key", first)) * (of_dropout * sizes.scale)).astype(d_key.dtype)
                d_value[place] = (sums.pop(("value", first)) * of_dropout).astype(d_value.dtype)

    _pipelined(sizes, products, of_softmax, gradients)


def _pipelined(sizes: Sizes, first: Callable[..., Any], second: Callable[..., Any], third: Callable[..., None]) -> None:
    """Run three stages for each task, the first of a task before the second of the one before."""
    tasks = [
        Task(row, head, start, stop)
        for row in range(sizes.rows)
        for start, stop in _blocks(sizes)
        for head in range(sizes.together)
    ]
    begun: dict[int, Any] = {}
    for number in range(len(tasks) + 2):
        if number < len(tasks):
            begun[number] = first(tasks[number])
        if 0 < number <= len(tasks):
            begun[number - 1] = second(tasks[number - 1], begun[number - 1])
        if number > 1:
            third(tasks[number - 2], begun.pop(number - 2))


def _blocks(sizes: Sizes) -> list[tuple[int, int]]:
    """For each block of queries the first one, and the number of keys that they see."""
    starts = range(0, sizes.length, QUERIES)
    return [(start, start + QUERIES if sizes.causal else sizes.length) for start in starts]


def _add(sums: dict[Any, Array], name: Any, x: Array) -> None:
    sums[name] = sums[name] + x if name in sums else x


def _dot(x: Array, y: Array, over: Any) -> Array:
    # products of bfloat16 are exact in float32, and the compiler takes no other precision, whatever JAX's default is
    given = {"precision": jax.lax.Precision.DEFAULT, "preferred_element_type": jnp.float32}
    return jax.lax.dot_general(x, y, over, **given)


def _columns_of(head: int, x: Array, sizes: Sizes) -> Array:
    """Return x [N 128] with zeros outside the columns of a head."""
    if sizes.together == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(lane // sizes.width == head, x, jnp.zeros_like(x))


def _scores(queries: Array, keys: Array) -> Array:
    """Return the products [S Q] of keys and queries, without the scale."""
    return _dot(keys, queries, OVER_COLUMNS)


def _softmax(scores: Array, task: Task, ids: list[Any], sizes: Sizes) -> tuple[Array, Array]:
    """Return exp(scale x score - highest) [S Q] under the masks, and its sums [1 Q], both float32."""
    scores = scores * sizes.scale
    if sizes.causal:
        key, query = (jax.lax.broadcasted_iota(jnp.int32, (QUERIES, QUERIES), axis) for axis in (0, 1))
        last = jnp.where(key <= query, scores[task.start :], LEAST)
        scores = jnp.concatenate([scores[: task.start], last]) if task.start else last
    if sizes.masked:
        of_keys, of_queries = ids
        rows = jnp.broadcast_to(of_keys[task.row][:, : task.stop], (QUERIES, task.stop))
        scores = jnp.where(of_queries[task.row][:, task.queries[1]] == rows.T, scores, LEAST)
    raised = jnp.exp(scores - scores.max(0, keepdims=True))
    return raised, raised.sum(0, keepdims=True)


def _kept(words: Any, task: Task, sizes: Sizes) -> Array:
    """Return which probabilities [S Q] dropout keeps: those of `Dropout` on the whole [B H T S]."""
    row, group = pl.program_id(0) * sizes.rows + task.row, pl.program_id(1) * sizes.together + task.head
    first = ((row * sizes.heads + group) * sizes.length + task.start) * sizes.length
    key, query = (jax.lax.broadcasted_iota(jnp.uint32, (task.stop, QUERIES), axis) for axis in (0, 1))
    spread = (query * np.uint32(sizes.length) + key) * SPREAD
    moved = words[0, 0].astype(jnp.uint32) + first.astype(jnp.uint32) * SPREAD
    return keeps(spread, (moved, words[0, 1].astype(jnp.uint32)), sizes.rate)
