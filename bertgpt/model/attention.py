"""Multi-head self-attention, and the kernels that compute it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from bertgpt.config import ModelConfig
from bertgpt.devices import target_device
from bertgpt.errors import InputError
from bertgpt.model.dropout import Dropout
from bertgpt.model.layers import dense
from bertgpt.model.masks import cache_mask, dense_mask


class AttentionOutput(NamedTuple):
    """The output of a kernel.

    Attributes:
        mixed: [B T H W], the sum of the values, weighted by the probabilities.
        probabilities: [B H T S]; None from a kernel that does not materialize them.
    """

    mixed: Array
    probabilities: Array | None = None


@struct.dataclass
class Cache:
    """The keys and values of the tokens that a layer has processed, one slot per token.

    Tokens beyond the last slot give NaN.

    Attributes:
        key, value: [B*H S W]. With separate axes for B and H, XLA copies the keys and values of a batch of one row.
        start: int32, the slot of the next token.
    """

    key: Array
    value: Array
    start: Array

    def append(self, key: Array, value: Array) -> "Cache":
        """Return the cache with the keys and values of T more tokens, [B T H W]; `start` is unchanged."""
        width, count = key.shape[-1], key.shape[1]

        def written(old: Array, new: Array) -> Array:
            rows = new.swapaxes(1, 2).reshape(-1, count, width).astype(old.dtype)
            return jax.lax.dynamic_update_slice(old, rows, (0, self.start, 0))

        return self.replace(key=written(self.key, key), value=written(self.value, value))  # type: ignore[attr-defined]

    def advance(self, count: int) -> "Cache":
        """Return the cache with `start` moved by `count` slots."""
        return self.replace(start=self.start + count)  # type: ignore[attr-defined]


def empty_cache(config: ModelConfig, batch: int, cache_length: int, dtype: DTypeLike) -> list[Cache]:
    """Return one empty cache per layer, for `batch` rows of up to `cache_length` tokens."""
    shape = (batch * config.num_heads, cache_length, config.hidden_size // config.num_heads)
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0)) for _ in range(config.num_layers)]


class Masks(NamedTuple):
    """Which positions may attend to which; the fields are the arguments of `masks.dense_mask`."""

    causal: bool
    attention_mask: Array | None = None
    pack_ids: Array | None = None


class Request(NamedTuple):
    """The facts that decide whether a kernel can be used.

    Attributes:
        device: the device that computes.
        dtype: the dtype of queries, keys and values.
        length: T, the number of query tokens.
        heads: H, the number of heads.
        width: W, the width of a head.
        dropout: the dropout rate of the probabilities.
        cached: whether keys and values are in a cache.
        probabilities: whether the probabilities must be returned.
        per_query: whether `attention_mask` says for each query to which keys it may attend.
    """

    device: Any
    dtype: DTypeLike
    length: int
    heads: int
    width: int
    dropout: float = 0.0
    cached: bool = False
    probabilities: bool = False
    per_query: bool = False


class Kernel(NamedTuple):
    """A way to compute attention. To add one, write both functions and list it in `KERNELS`.

    Attributes:
        name: the name shown to the user.
        obstacle: a function that returns why the kernel cannot serve a request, in one phrase; None if it can.
        function: (query, key, value, masks, cache, dropout) -> AttentionOutput.
        device: of a fused kernel: how the names of its devices begin.
    """

    name: str
    obstacle: Callable[[Request], str | None]
    function: Callable[..., AttentionOutput]
    device: str = ""

    def serves(self, request: Request, choice: str) -> bool:
        """Whether the kernel can serve a request under a choice of CHOICES."""
        if self.device and choice == "plain":
            return False
        return request.device.device_kind.startswith(self.device) and self.obstacle(request) is None


# A function of one's own in place of the kernels: query, key and value [B T H W] (key and value [B S H W] with a cache)
# and the mask, bool, of shape [B or 1, 1, T or 1, S], True = may attend, or None if all may -> [B T H W].
AttentionFunction = Callable[[Array, Array, Array, Array | None], Array]
CHOICES = ("auto", "plain", "fused")


def chosen(request: Request, choice: str = "auto") -> Kernel:
    """Return the first kernel of `KERNELS` that can serve a request.

    Args:
        request: what is to be computed.
        choice: auto: a fused kernel if one can; plain: no fused kernel; fused: a fused kernel or an error. With a cache
            or when probabilities are returned, fused is the same as auto, since no fused kernel can do either.

    Raises:
        InputError: `choice` is fused, but no fused kernel can serve the request; or it is not in CHOICES.
    """
    if choice not in CHOICES:
        raise InputError(f"model.attention is {choice!r}; it must be one of {', '.join(CHOICES)}")
    kernel = next(kernel for kernel in KERNELS if kernel.serves(request, choice))
    if choice == "fused" and not (kernel.device or request.cached or request.probabilities):
        raise InputError(
            f"model.attention is fused, but attention must be plain here ({why_plain(request)}); set "
            "model.attention=auto"
        )
    return kernel


def why_plain(request: Request, choice: str = "auto") -> str:
    """Return why no fused kernel serves a request, in one phrase."""
    if choice == "plain":
        return "by model.attention"
    kind = request.device.device_kind
    kernels = [kernel for kernel in KERNELS if kernel.device and kind.startswith(kernel.device)]
    reasons = [f"{kernel.name} not used: {kernel.obstacle(request)}" for kernel in kernels]
    return "; ".join(reasons) or f"no fused kernel for a {kind}"


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
    choice: str | AttentionFunction = "auto",
) -> AttentionOutput:
    """Compute self-attention with the first kernel of `KERNELS` that can, or with a given function.

    Args:
        query, key, value: [B T H W].
        causal: whether a position attends only to itself and earlier positions.
        attention_mask, pack_ids: [B T]; with a cache [B S], one value per slot. `attention_mask` may also be [B T S] or
            [B 1 T S], as in `masks.key_mask`.
        cache: the cache with earlier tokens, to which these keys and values were already appended; None: no cache.
        dropout: dropout of the probabilities.
        probabilities: whether to return the probabilities.
        choice: as of `chosen`. Sizes that are symbols, in an exported program for any batch and length, are plain. Or
            an `AttentionFunction`: it is called in place of a kernel, and applies no dropout unless it does so itself.

    Raises:
        InputError: as `chosen`; or probabilities are requested of a function.
    """
    masks = Masks(causal, attention_mask, pack_ids)
    if callable(choice):
        if probabilities:
            raise InputError(
                "output_attentions needs attention probabilities, but attention is a function; leave one out"
            )
        key, value, mask = with_cache(query, key, value, masks, cache)
        return AttentionOutput(choice(query.astype(key.dtype), key, value, mask))
    rate = 0.0 if dropout is None or dropout.deterministic else dropout.rate
    _, length, heads, width = query.shape
    per_query = attention_mask is not None and attention_mask.ndim > 2
    facts = (rate, cache is not None, probabilities, per_query)
    request = Request(target_device(), query.dtype, length, heads, width, *facts)
    if not all(isinstance(size, int) for size in query.shape):  # symbolic sizes, of a program for any batch and length
        choice = "plain"
    return chosen(request, choice).function(query, key, value, masks, cache, dropout)


def cudnn_obstacle(request: Request) -> str | None:
    """Return why cuDNN's fused attention cannot serve a request; None if it can."""
    device, dtype, length, _, width = request[:5]
    if float(device.compute_capability) < 8:
        return f"it needs compute capability 8.0 or higher, and the GPU has {device.compute_capability}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, and the dtype is {jnp.dtype(dtype)}"
    if width % 8 or width > 128 or length % 2:
        return (
            "it needs a head width that is a multiple of 8 up to 128, and an even length; "
            f"they are {width} and {length}"
        )
    if request.cached or request.probabilities:
        return "it supports no cache and returns no probabilities"
    if request.dropout:
        return f"it supports no dropout in JAX, and model.attention_dropout is {request.dropout}"
    return None


def cudnn_attention(
    query: Array,
    key: Array,
    value: Array,
    masks: Masks,
    cache: None = None,
    dropout: None = None,
    implementation: Any = "cudnn",
) -> AttentionOutput:
    """The same as our `dot_product_attention`, by `jax.nn.dot_product_attention`: cuDNN never writes the scores out."""
    length = query.shape[1]
    mask = dense_mask(length, **masks._replace(causal=False)._asdict())
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], 1, length, length))
    options = {"mask": mask, "is_causal": masks.causal, "implementation": implementation}
    return AttentionOutput(jax.nn.dot_product_attention(query, key, value, **options))


def tpu_obstacle(request: Request) -> str | None:
    """Return why our TPU kernel cannot serve a request; None if it can."""
    if request.cached or request.probabilities:
        return "it supports no cache and returns no probabilities"
    if request.per_query:
        return "it supports no attention_mask of queries and keys"
    from bertgpt.model import tpu_attention  # only here: Pallas takes time to import

    return tpu_attention.obstacle(
        request.length, request.heads, request.width, request.dtype, request.device.device_kind
    )


def of_tpu(
    query: Array,
    key: Array,
    value: Array,
    masks: Masks,
    cache: None = None,
    dropout: Dropout | None = None,
    interpret: bool = False,
) -> AttentionOutput:
    """The same as our `dot_product_attention`, with the same probabilities dropped, by `tpu_attention`."""
    from bertgpt.model import tpu_attention

    if dropout is None or dropout.deterministic or not dropout.rate:
        return AttentionOutput(tpu_attention.attention(query, key, value, **masks._asdict(), interpret=interpret))
    batch, length, heads, _ = query.shape
    dropout.check(batch * heads * length**2)
    given = masks._asdict() | {"rate": dropout.rate, "words": dropout.words(), "interpret": interpret}
    return AttentionOutput(tpu_attention.attention(query, key, value, **given))


def decode_obstacle(request: Request) -> str | None:
    """Return why the kernel for one new token per row cannot serve a request; None if it can."""
    if not request.cached or request.length != 1:
        return "it needs one token per row and a cache"
    return "it supports no dropout and returns no probabilities" if request.dropout or request.probabilities else None


def decode_attention(
    query: Array, key: Array, value: Array, masks: Masks, cache: Cache, dropout: Any = None
) -> AttentionOutput:
    """Compute `dot_product_attention` for one token per row over a cache.

    Without an axis for the token, XLA reads the cache in place. With one, it copies the cache first.
    """
    batch, _, heads, width = query.shape
    rows = query.reshape(batch * heads, width).astype(cache.key.dtype)
    mask = cache_mask(1, cache.key.shape[1], cache.start, **masks._asdict())[:, 0]  # [B 1 S]
    scores = jnp.einsum("NW,NSW->NS", rows, cache.key, preferred_element_type=jnp.float32) / width**0.5
    scores = jnp.where(mask, scores.reshape(batch, heads, -1), jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(cache.value.dtype)  # [B H S]
    mixed = jnp.einsum("NS,NSW->NW", probabilities.reshape(batch * heads, -1), cache.value)
    return AttentionOutput(mixed.reshape(query.shape))


def with_cache(
    query: Array, key: Array, value: Array, masks: Masks, cache: Cache | None
) -> tuple[Array, Array, Array | None]:
    """Return key and value [B S H W], those of the cache if there is one, and the dense mask of them."""
    length = query.shape[1]
    if cache is None:
        return key, value, dense_mask(length, **masks._asdict())
    rows = (query.shape[0], query.shape[2], *cache.key.shape[1:])  # B H S W
    key, value = (part.reshape(rows).swapaxes(1, 2) for part in (cache.key, cache.value))
    return key, value, cache_mask(length, cache.key.shape[1], cache.start, **masks._asdict())


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    masks: Masks,
    cache: Cache | None = None,
    dropout: nn.Module | None = None,
) -> AttentionOutput:
    """Return softmax(query key^T / sqrt(W)) value, with the softmax in float32: the reference for the other kernels.

    query, key and value are [B T H W]; `masks`, `cache` and `dropout` are as in `attend`. Source: Vaswani et al. 2017,
    section 3.2.1.
    """
    key, value, mask = with_cache(query, key, value, masks, cache)
    query = query.astype(key.dtype)
    scores = jnp.einsum("BTHW,BSHW->BHTS", query, key, preferred_element_type=jnp.float32) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(scores).astype(value.dtype)  # [B H T S]
    if dropout is not None:
        probabilities = dropout(probabilities)
    return AttentionOutput(jnp.einsum("BHTS,BSHW->BTHW", probabilities, value), probabilities)


KERNELS = (  # in order of preference; the last one serves every request
    Kernel("decode", decode_obstacle, decode_attention),
    Kernel("cuDNN", cudnn_obstacle, cudnn_attention, "NVIDIA"),
    Kernel("the TPU kernel", tpu_obstacle, of_tpu, "TPU"),
    Kernel("plain", lambda request: None, dot_product_attention),
)


class Attention(nn.Module):
    """Multi-head self-attention: x [B T D] -> [B T D]. Source: Vaswani et al. 2017, section 3.2.2."""

    config: ModelConfig
    causal: bool
    dtype: DTypeLike = jnp.float32
    choice: str | AttentionFunction = "auto"

    @nn.compact
    def __call__(
        self,
        x: Array,
        attention_mask: Array | None,
        pack_ids: Array | None,
        deterministic: bool = True,
        cache: Cache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Array, Cache | None, Array | None]:
        """Return the output, the cache with the keys and values of x added (None without a cache), and the
        probabilities [B H T S] (None unless `output_attentions`)."""
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.hidden_size // config.num_heads)  # B T H W
        query, key, value = (
            dense(config.hidden_size, config, self.dtype, name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        cache = None if cache is None else cache.append(key, value)
        mixed, probabilities = attend(
            query,
            key,
            value,
            causal=self.causal,
            attention_mask=attention_mask,
            pack_ids=pack_ids,
            cache=cache,
            dropout=Dropout(config.attention_dropout, deterministic=deterministic),
            probabilities=output_attentions,
            # parameters are made with a row of one token, which no fused kernel takes
            choice="plain" if self.is_initializing() and not callable(self.choice) else self.choice,
        )
        mixed = mixed.astype(self.dtype)
        if cache is not None:
            cache = cache.advance(x.shape[1])
            mixed = jnp.where(cache.start > cache.key.shape[1], jnp.nan, mixed)  # more tokens than slots
        x = dense(config.hidden_size, config, self.dtype, "out")(mixed.reshape(x.shape))
        return x, cache, probabilities if output_attentions else None
