"""Cross-entropy over the vocabulary, computed in blocks without materializing all logits."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bertgpt.devices import target_device

POSITIONS_ON_CPU = 1024  # per block: measured; with 40,478 tokens, the logits of a block take 166 MB
BYTES = 2**30  # of the logits of a block on other devices, where each block reads and writes the whole table's gradient


class LMHead(NamedTuple):
    """The inputs of an LM head, whose logits are x embedding^T + bias.

    Attributes:
        x: [B P D], the hidden states; their dtype, float32 or bfloat16, is that of the product (float32 sums).
        embedding: [V D], the token embeddings.
        bias: [V]; None: no bias.
    """

    x: Array
    embedding: Array
    bias: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits, [B P V]."""
        return (*self.x.shape[:2], self.embedding.shape[0])

    def logits(self) -> Array:
        """Return the logits, float32 [B P V]."""
        table = self.embedding.astype(self.x.dtype)
        logits = jnp.einsum("BPD,VD->BPV", self.x, table, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias[None, None]


def log_probabilities(head: LMHead, labels: Array) -> Array:
    """Return log softmax(logits)[label] in nats, float32 [B P], for labels int [B P]; logits are computed in blocks."""

    def block(rows: Any) -> Array:
        x, labels = rows
        logits = head._replace(x=x).logits()
        return _at(logits, labels) - jax.nn.logsumexp(logits, axis=-1)

    found = jax.lax.map(block, _blocks(head.shape[-1], head.x, labels))
    return found.reshape(-1, labels.shape[1])[: labels.shape[0]]


@jax.custom_jvp
def summed_cross_entropy(head: LMHead, labels: Array, weights: Array) -> Array:
    """Return the sum of weights x -log softmax(logits)[label] in nats, a float32 scalar.

    labels are int [B P], each an existing class; weights are float32 [B P]. The result equals `losses.cross_entropy` of
    the logits, but only the logits of one block of rows exist at a time. Under differentiation the gradient is computed
    in the same pass, so logits are not computed twice. It supports forward-mode, reverse-mode and repeated
    differentiation.
    """

    return summed_loss_and_hits(head, labels, weights, weights)[0]


def summed_loss_and_hits(head: LMHead, labels: Array, weights: Array, counts: Array) -> tuple[Array, Array]:
    """Return the loss of `summed_cross_entropy`, and the sum of `counts` [B P] where the label has the highest logit.

    The logits are computed once for both.
    """
    return _automatic(_loss_and_hits, (head, labels, weights, counts), (jnp.zeros(()), jnp.zeros(())))


def _loss_and_hits(head: LMHead, labels: Array, weights: Array, counts: Array) -> tuple[Array, Array]:
    def block(rows: Any) -> tuple[Array, Array]:
        x, labels, weights, counts = rows
        logits = head._replace(x=x).logits()
        losses = jax.nn.logsumexp(logits, axis=-1) - _at(logits, labels)
        return (losses * weights).sum(), ((logits.argmax(-1) == labels) * counts).sum()

    losses, hits = jax.lax.map(block, _blocks(head.shape[-1], head.x, labels, weights, counts))
    return losses.sum(), hits.sum()


@summed_cross_entropy.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    losses, slope = _automatic(_with_gradient, primals, (primals[1], primals[0]))
    moved, _, moved_weights = tangents
    along = jax.tree.map(lambda part, by: jnp.sum(part.astype(jnp.float32) * by), slope, moved)
    return (losses * primals[2]).sum(), sum(jax.tree.leaves(along)) + (losses * moved_weights).sum()


def _with_gradient(head: LMHead, labels: Array, weights: Array) -> tuple[Array, LMHead]:
    """Return the loss of each position [B P], and the gradient of their weighted sum."""
    table = head.embedding.astype(head.x.dtype)

    def block(summed: Any, rows: Any) -> Any:
        x, labels, weights = rows
        logits = LMHead(x, table, head.bias).logits()
        highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        raised = jnp.exp(logits - highest)
        total = raised.sum(-1, keepdims=True)
        losses = (jnp.log(total) + highest)[..., 0] - _at(logits, labels)
        hit = labels[..., None] == jnp.arange(logits.shape[-1])[None, None]
        slope = (raised / total - hit) * weights[..., None]  # the gradient of the logits
        narrow = slope.astype(x.dtype)
        dx = jnp.einsum("BPV,VD->BPD", narrow, table, preferred_element_type=jnp.float32).astype(x.dtype)
        d_table = jnp.einsum("BPV,BPD->VD", narrow, x, preferred_element_type=jnp.float32)
        d_bias = None if head.bias is None else summed[1] + slope.sum((0, 1))
        return (summed[0] + d_table, d_bias), (losses, dx)

    # under shard_map the carry must vary by device, so add 0 * x
    zero = sum(0 * part.ravel()[:1].astype(jnp.float32).sum() for part in jax.tree.leaves((head, labels, weights)))
    zeros = jax.tree.map(lambda part: jnp.full(part.shape, zero), (table, head.bias))
    (d_table, d_bias), made = jax.lax.scan(block, zeros, _blocks(head.shape[-1], head.x, labels, weights))
    losses, dx = (part.reshape(-1, *part.shape[2:])[: labels.shape[0]] for part in made)
    return losses, LMHead(dx, d_table, d_bias)


def _automatic(function: Callable[..., Any], arguments: tuple, like: Any) -> Any:
    """Call a function. On a mesh with explicit axes, XLA shards the work inside it, as on other meshes, because JAX
    cannot derive how blocks of rows are sharded. The results are sharded as the arrays `like`."""
    if not jax.sharding.get_abstract_mesh().explicit_axes:
        return function(*arguments)
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, like)
    return jax.sharding.auto_axes(function, out_sharding=specs)(*arguments)


def _at(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _blocks(classes: int, *arrays: Array) -> tuple[Array, ...]:
    """Reshape each [B P ...] to [N R P ...], N blocks of R rows; the last block is padded with zeros."""
    batch, positions = arrays[0].shape[:2]
    count = max(1, math.ceil(batch / max(1, _positions(classes) // max(1, positions))))
    rows = math.ceil(batch / count)
    fill = count * rows - batch
    return tuple(jnp.pad(x, ((0, fill), *[(0, 0)] * (x.ndim - 1))).reshape(count, rows, *x.shape[1:]) for x in arrays)


def _positions(classes: int) -> int:
    """The number of positions of a block, unless one row has more."""
    return POSITIONS_ON_CPU if target_device().platform == "cpu" else BYTES // (4 * classes)
