"""Multi-head self-attention, and the table of kernels that compute it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.model.dropout import Dropout
from bertgpt.model.layers import dense
from bertgpt.model.masks import cache_mask, dense_mask


class AttentionOutput(NamedTuple):
    """What a kernel returns.

    Attributes:
        mixed: [B T H W], the values under the probabilities.
        probabilities: [B H T S]; None from a kernel that never writes them out.
    """

    mixed: Array
    probabilities: Array | None = None


@struct.dataclass
class Cache:
    """The keys and values of the tokens that a layer has read, a slot a token.

    Attributes:
        key, value: [B*H S W]; with an axis for each of B and H, XLA copies those of one row.
        start: int32, the slot of the next token.
    """

    key: Array
    value: Array
    start: Array

    def append(self, key: Array, value: Array) -> "Cache":
        """The cache with those of T more tokens, [B T H W]."""
        width, count = key.shape[-1], key.shape[1]

        def written(old: Array, new: Array) -> Array:
            rows = new.swapaxes(1, 2).reshape(-1, count, width).astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, rows, (0, self.start, 0))

        return self.replace(key=written(self.key, key), value=written(self.value, value))  # type: ignore[attr-defined]

    def advance(self, count: int) -> "Cache":
        """The cache, whose next token comes `count` slots later."""
        return self.replace(start=self.start + count)  # type: ignore[attr-defined]


def empty_cache(config: ModelConfig, batch: int, slots: int, dtype: DTypeLike) -> list[Cache]:
    """A cache for each layer, for B rows of S slots."""
    shape = (batch * config.num_heads, slots, config.hidden_size // config.num_heads)
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0)) for _ in range(config.num_layers)]


class Masks(NamedTuple):
    """Who may attend to whom; fields as the arguments of `masks.dense_mask`."""

    causal: bool
    attention_mask: Array | None = None
    pack_ids: Array | None = None


class Request(NamedTuple):
    """What decides whether a kernel can be used.

    Attributes:
        device: that computes.
        dtype: of queries, keys and values.
        length: T, query tokens.
        width: W, of a head.
        dropout: of the probabilities.
        cached: whether keys and values lie in a cache.
        probabilities: whether they are to be returned.
    """

    device: Any
    dtype: DTypeLike
    length: int
    width: int
    dropout: float = 0.0
    cached: bool = False
    probabilities: bool = False


class Kernel(NamedTuple):
    """A way to compute attention. To add one, write both functions and list it in `KERNELS`.

    Attributes:
        name: shown to the user.
        obstacle: why it cannot serve a request, in one phrase; None where it can.
        function: (query, key, value, masks, cache, dropout) -> AttentionOutput.
    """

    name: str
    obstacle: Callable[[Request], str | None]
    function: Callable[..., AttentionOutput]


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
    cache: Cache | None = None,
    dropout: Dropout | None = None,
    probabilities: bool = False,
) -> AttentionOutput:
    """Self-attention by the first kernel of `KERNELS` that can serve it.

    Args:
        query, key, value: [B T H W].
        causal: whether a position sees only itself and what stands before it.
        attention_mask, pack_ids: [B T] as in `masks.py`; with a cache [B S], of its slots.
        cache: of earlier tokens, to which these keys and values have been appended; None: there are no others.
        dropout: of the probabilities.
        probabilities: whether the output has them.
    """
    rate = 0.0 if dropout is None or dropout.deterministic else dropout.rate
    request = Request(
        target_device(), query.dtype, query.shape[1], query.shape[3], rate, cache is not None, probabilities
    )
    kernel = next(kernel for kernel in KERNELS if kernel.obstacle(request) is None)
    return kernel.function(query, key, value, Masks(causal, attention_mask, pack_ids), cache, dropout)


def target_device() -> Any:
    """The device that JAX computes on here."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]  # a device, its kind, or None
    return chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]


def cudnn_obstacle(request: Request) -> str | None:
    """Why cuDNN's fused attention cannot serve."""
    device, dtype, length, width = request[:4]
    if not device.device_kind.startswith("NVIDIA"):
        return f"the device is a {device.device_kind}"
    if float(device.compute_capability) < 8:
        return f"the GPU's compute capability is {device.compute_capability}, under 8.0"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16, and this is {jnp.dtype(dtype)}"
    if width % 8 or width > 128 or length % 2:
        return f"it takes heads of a width that 8 divides, to 128, and an even length; these are {width} and {length}"
    if request.cached or request.probabilities:
        return "it takes no cache and returns no probabilities"
    if request.dropout:
        return f"JAX's call of it has no dropout, and model.attention_dropout is {request.dropout}"
    return None


def cudnn_attention(
    query: Array, key: Array, value: Array, masks: Masks, cache: None = None, dropout: Any = None, by: Any = "cudnn"
) -> AttentionOutput:
    """`dot_product_attention` by `jax.nn.dot_product_attention`, which never writes the scores out under cuDNN."""
    length = query.shape[1]
    mask = dense_mask(length, **masks._replace(causal=False)._asdict())
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, length, length))
    options = {"mask": mask, "is_causal": masks.causal, "implementation": by}
    return AttentionOutput(jax.nn.dot_product_attention(query, key, value, **options))


def decode_obstacle(request: Request) -> str | None:
    """Why attention of one new token a row cannot serve."""
    if not request.cached or request.length != 1:
        return "it takes one token a row and a cache"
    return "it has no dropout and returns no probabilities" if request.dropout or request.probabilities else None


def decode_attention(
    query: Array, key: Array, value: Array, masks: Masks, cache: Cache, dropout: Any = None
) -> AttentionOutput:
    """`dot_product_attention` of one token a row over a cache.

    Without an axis for the token, XLA reads the cache where it lies; with one it copies it first.
    """
    batch, _, heads, width = query.shape
    rows = query.reshape(batch * heads, width).astype(cache.key.dtype)
    mask = cache_mask(1, cache.key.shape[1], cache.start, **masks._asdict())[:, 0]  # [B 1 S]
    scores = jnp.einsum("NW,NSW->NS", rows, cache.key, preferred_element_type=jnp.float32) / width**0.5
    scores = jnp.where(mask, scores.reshape(batch, heads, -1), jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(cache.value.dtype)  # [B H S]
    mixed = jnp.einsum("NS,NSW->NW", probabilities.reshape(batch * heads, -1), cache.value)
    return AttentionOutput(mixed.reshape(query.shape))


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    masks: Masks,
    cache: Cache | None = None,
    dropout: nn.Module | None = None,
) -> AttentionOutput:
    """softmax(query key^T / sqrt(W)) value, the softmax in float32; the plain form that the others are compared with.

    query, key and value are [B T H W]; `masks`, `cache` and `dropout` as of `attend`. Source: Vaswani et al. 2017,
    section 3.2.1.
    """
    if cache is None:
        mask = dense_mask(query.shape[1], **masks._asdict())
    else:
        mask = cache_mask(query.shape[1], cache.key.shape[1], cache.start, **masks._asdict())
        rows = (query.shape[0], query.shape[2], *cache.key.shape[1:])  # B H S W
        key, value = (part.reshape(rows).swapaxes(1, 2) for part in (cache.key, cache.value))
        query = query.astype(key.dtype)
    scores = jnp.einsum("BTHW,BSHW->BHTS", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(value.dtype)  # [B H T S]
    if dropout is not None:
        probabilities = dropout(probabilities)
    return AttentionOutput(jnp.einsum("BHTS,BSHW->BTHW", probabilities, value), probabilities)


KERNELS = (  # best first; the last one can do everything
    Kernel("decode", decode_obstacle, decode_attention),
    Kernel("cuDNN", cudnn_obstacle, cudnn_attention),
    Kernel("plain", lambda request: None, dot_product_attention),
)


class Attention(nn.Module):
    """Multi-head self-attention: x [B T D] -> [B T D]. Source: Vaswani et al. 2017, section 3.2.2."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None,
        pack_ids: Array | None,
        deterministic: bool = True,
        cache: Cache | None = None,
    ) -> tuple[Array, Cache | None]:
        """The output, and the cache with this layer's keys and values of x."""
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.hidden_size // config.num_heads)  # B T H W
        query, key, value = (
            dense(config.hidden_size, config, self.dtype, name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        cache = None if cache is None else cache.append(key, value)
        mixed = attend(
            query,
            key,
            value,
            causal=self.causal,
            attention_mask=attention_mask,
            pack_ids=pack_ids,
            cache=cache,
            dropout=Dropout(config.attention_dropout, deterministic=deterministic),
        ).mixed.astype(self.dtype)
        cache = None if cache is None else cache.advance(x.shape[1])
        return dense(config.hidden_size, config, self.dtype, "out")(mixed.reshape(x.shape)), cache
