"""Attention masks: boolean [B 1 T S], True = query t may attend to key s.

The axis letters of the whole library: B batch, T query position, S key position, H heads, D width,
W width of a head, F feed-forward width, V vocabulary, L layers, P masked positions of a row.
"""

import jax.numpy as jnp
from jax import Array


def padding_mask(attention_mask: Array) -> Array:
    """attention_mask [B S], nonzero = a real token -> [B 1 1 S]: no position attends to padding."""
    return (attention_mask != 0)[:, None, None, :]


def key_mask(attention_mask: Array) -> Array:
    """A model's `attention_mask`, nonzero = may be attended to -> [B 1 1 or T S].

    [B S] is the same for all queries (`padding_mask`). [B T S] and [B 1 T S] say it for each query.
    """
    if attention_mask.ndim == 2:
        return padding_mask(attention_mask)
    return (attention_mask if attention_mask.ndim == 4 else attention_mask[:, None]) != 0


def causal_mask(length: int) -> Array:
    """[1 1 T T], True where s <= t: a position attends to itself and earlier positions."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def packed_mask(pack_ids: Array) -> Array:
    """pack_ids [B T], one number per example of a row -> [B 1 T T]: tokens attend only within their example."""
    return (pack_ids[:, :, None] == pack_ids[:, None, :])[:, None]


def dense_mask(
    length: int, *, causal: bool, attention_mask: Array | None = None, pack_ids: Array | None = None
) -> Array | None:
    """The AND of all given masks: [B or 1, 1, T or 1, S]; None if no mask is given. `attention_mask` as of `key_mask`.

    The softmax of a query with no allowed key (padding in a packed row) is uniform. Callers must ignore its output.
    """
    masks = [causal_mask(length)] if causal else []
    masks += [key_mask(attention_mask)] if attention_mask is not None else []
    masks += [packed_mask(pack_ids)] if pack_ids is not None else []
    if not masks:
        return None
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined


def cache_mask(
    length: int,
    cache_length: int,
    start: Array,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
) -> Array:
    """The mask of T new tokens, whose keys are in slots `start`, `start` + 1, ... of a cache: [B or 1, 1, T, S].

    `attention_mask` is as of `key_mask`, `pack_ids` is [B S]. No position attends to a slot that has not been written.
    """
    slot = start + jnp.arange(length)  # [T]
    seen = jnp.arange(cache_length)  # [S]
    last = slot if causal else jnp.broadcast_to(slot[-1], slot.shape)
    mask = (seen[None] <= last[:, None])[None, None]
    if attention_mask is not None:
        mask = mask & key_mask(attention_mask)
    if pack_ids is not None:
        mask = mask & (pack_ids[:, slot][:, :, None] == pack_ids[:, None, :])[:, None]
    return mask
