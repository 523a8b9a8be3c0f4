"""Who may attend to whom: boolean masks [B 1 T S], True = query t may attend to key s.

The axis alphabet of the whole library: B batch, T query position, S key position, H heads, D width,
W width of a head, F feed-forward width, V vocabulary, L layers, P masked positions of a row.
"""

import jax.numpy as jnp
from jax import Array


def padding_mask(attention_mask: Array) -> Array:
    """attention_mask [B S], nonzero = a real token -> [B 1 1 S]: nobody attends to padding."""
    return (attention_mask != 0)[:, None, None, :]


def causal_mask(length: int) -> Array:
    """[1 1 T T], True where s <= t: a position sees itself and what stands before it."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def packed_mask(pack_ids: Array) -> Array:
    """pack_ids [B T], one number per example of a row -> [B 1 T T]: only tokens of one example see each other."""
    return (pack_ids[:, :, None] == pack_ids[:, None, :])[:, None]


def dense_mask(
    length: int, *, causal: bool, attention_mask: Array | None = None, pack_ids: Array | None = None
) -> Array | None:
    """All that forbid, combined by AND: [B or 1, 1, T or 1, S]; None where everybody may attend to everybody.

    A query that may attend to nobody (padding in a packed row) is the caller's to ignore: its softmax is uniform.
    """
    masks = [causal_mask(length)] if causal else []
    masks += [padding_mask(attention_mask)] if attention_mask is not None else []
    masks += [packed_mask(pack_ids)] if pack_ids is not None else []
    if not masks:
        return None
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined


def cache_mask(
    length: int,
    slots: int,
    start: Array,
    causal: bool,
    attention_mask: Array | None = None,
    pack_ids: Array | None = None,
) -> Array:
    """As `dense_mask` for T new tokens whose keys stand in a cache of S slots, from `start` on: [B or 1, 1, T, S].

    `attention_mask` and `pack_ids` are [B S]. Slots that nothing has been written to are seen by nobody.
    """
    slot = start + jnp.arange(length)  # [T]
    seen = jnp.arange(slots)  # [S]
    last = slot if causal else jnp.broadcast_to(slot[-1], slot.shape)
    mask = (seen[None] <= last[:, None])[None, None]
    if attention_mask is not None:
        mask = mask & padding_mask(attention_mask)
    if pack_ids is not None:
        mask = mask & (pack_ids[:, slot][:, :, None] == pack_ids[:, None, :])[:, None]
    return mask
