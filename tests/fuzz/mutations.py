"""Changed inputs: a pure function of the generator's state."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

TOKENS = (
    b"\0", b"\n", b"\r\n", b"\n\n", b'"', b"[", b"{", b"]", b"}", b",", b":", b"-1", b"1e999", b"NaN", b"null", b"true",
    b"\xff", b"\xef\xbb\xbf", b"\xc0\x80", b"\\ud800", b"\x1b[2J", b"../", b"9" * 5000, b"[" * 5000, b"A" * 70_000,
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "a", "\ud800", "\0",
    "a" * 5000, [], {}, [[]], [0], [-1, 2**62], [None], ["a", "a"], {"": ""}, {"a": [1]}, "../a", "0", "bert",
)  # fmt: skip


def mutate(rng: np.random.Generator, data: bytes, others: Sequence[bytes]) -> bytes:
    """One input changed in up to three places; half of the time within the structure of JSON, where it is JSON."""
    for _ in range(rng.integers(1, 4)):
        data = (rng.random() < 0.5 and _mutate_json(rng, data)) or _mutate_bytes(rng, data, others)
    return data


def _mutate_bytes(rng: np.random.Generator, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.integers(0, len(data) + 1, 2))
    end = min(end, start + int(2 ** rng.integers(0, 12)))
    number = NUMBERS[rng.integers(len(NUMBERS))].to_bytes(8, "little")[: 2 ** rng.integers(0, 4)]
    other = others[rng.integers(len(others))]
    middle = (
        bytes(byte ^ 1 << int(rng.integers(8)) for byte in data[start : start + 1]) + data[start + 1 : end],  # a bit
        b"",
        data[start:end] * 2,
        TOKENS[rng.integers(len(TOKENS))],
        TOKENS[rng.integers(len(TOKENS))] + data[start:end],
        number + data[start:end][len(number) :],
        other[rng.integers(len(other) + 1) :][: 2 ** rng.integers(0, 12)],
        rng.bytes(end - start),
    )[rng.integers(8)]
    return data[:start] + middle + (b"" if rng.random() < 0.05 else data[end:])


def _mutate_json(rng: np.random.Generator, data: bytes) -> bytes | None:
    """JSON, or a line of JSONL, with one value replaced, removed, repeated or moved; None where it is neither."""
    lines = data.split(b"\n") if b"\n{" in data.strip() else [data]
    index = rng.integers(len(lines))
    try:
        value = json.loads(lines[index])
        places = list(_places(value))
        lines[index] = json.dumps(_changed(rng, value, places)).encode()
    except (ValueError, RecursionError):
        return None
    return b"\n".join(lines)


def _places(value: Any) -> Any:
    """(container, key) of every value inside another."""
    for key in range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ():
        yield value, key
        yield from _places(value[key])


def _changed(rng: np.random.Generator, value: Any, places: list[Any]) -> Any:
    new = VALUES[rng.integers(len(VALUES))]
    if not places:
        return new
    holder, key = places[rng.integers(len(places))]
    kind = rng.integers(5)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, second = places[rng.integers(len(places))]
        holder[key], other[second] = json.loads(json.dumps([other[second], holder[key]]))
    elif kind == 2 and isinstance(holder, dict):
        holder[str(new)[:100]] = holder.pop(key)
    else:
        holder[key] = new
    return value
