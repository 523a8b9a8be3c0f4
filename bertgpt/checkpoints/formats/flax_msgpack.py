"""Reading flax_model.msgpack, which transformers 4's Flax classes write, whole or sharded.

The file is one msgpack value: nested maps from module names to arrays (`flax.serialization`). It is memory-mapped, and
only the few kinds of values that such a tree consists of are accepted. Every length is checked against the bytes that
are there before anything is allocated. (msgpack's general reader allocates a list as long as its header claims.)
"""

import functools
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, registers bfloat16 with NumPy
import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor, open_sharded
from bertgpt.errors import InputError

FLAX, FLAX_INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
FLOATS = ("float64", "float32", "float16", "bfloat16")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's names -> torch's
CHUNKED = "__msgpack_chunked_array__"  # marks the map in which flax stores an array of over 1 GiB
ARRAY = 1  # flax's number for an array among msgpack's extension types
SIZED = {  # first byte of a value -> its kind, and the bytes of the length, count or number that follow
    **{0xC2: ("bool", 0), 0xC3: ("bool", 0)},
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)},
    **{0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4)},
    **{0xCC: ("number", 1), 0xCD: ("number", 2), 0xCE: ("number", 4), 0xCF: ("number", 8)},
    **{0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
# BERT has about 30 names per layer, eight deep, of at most 21 characters.
MAX_NAMES, MAX_DEPTH, MAX_NAME, MAX_AXES = 20_000, 16, 100, 8


def open_flax(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the names and with the layouts of Hugging Face's torch models.

    Values are not read yet.

    Raises:
        InputError: the file is damaged or contains something other than a tree of arrays.
    """
    return _to_torch(_open_tree(file), file)


def open_flax_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index lists, like `open_flax`.

    Raises:
        InputError: a shard or a tensor is missing, or a file is damaged.
    """
    return _to_torch(open_sharded(index, _open_tree), index)


def _to_torch(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return tensors under torch's names: `a/b/kernel` [in, out] as `a.b.weight` [out, in]."""
    found: dict[str, Tensor] = {}
    for path, tensor in tensors.items():
        module, _, leaf = path.rpartition("/")
        name = f"{module.replace('/', '.')}.{LEAVES.get(leaf, leaf)}".removeprefix(".")
        if name in found:
            raise InputError(f"{file}: contains {name} twice; remove one")
        found[name] = tensor.transposed() if leaf == "kernel" else tensor
    return found


class _Array(NamedTuple):
    """An array in a file: its bytes in one or more consecutive parts."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[memoryview, ...]


def _open_tree(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under Flax's names, such as `bert/pooler/dense/kernel`."""
    try:
        with file.open("rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(memoryview(data))
        tree = cursor.read_map(cursor.expect("map"), 1)
        cursor.check_end()
        arrays = dict(_flatten(tree, ""))
    except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{file}: damaged, or not a tree of arrays that flax wrote: {error}; copy it again") from error
    return {
        path: Tensor(array.shape, functools.partial(_read, array, path, file), array.dtype)
        for path, array in arrays.items()
    }


def _read(array: _Array, path: str, file: Path) -> np.ndarray:
    if array.dtype not in FLOATS:
        raise InputError(f"{file}: {path} has dtype {array.dtype}; it must be one of {', '.join(FLOATS)}")
    parts = [np.frombuffer(part, array.dtype).astype(np.float32) for part in array.parts]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(array.shape)


def _flatten(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, _Array]]:
    """Yield the path and the array of each leaf; arrays in chunks are joined."""
    for name, value in tree.items():
        if isinstance(value, dict) and CHUNKED in value:
            value = _join(value)
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, _Array):
            yield f"{prefix}{name}", value
        else:
            raise ValueError(f"{prefix}{name} is no array")


def _join(value: dict[str, Any]) -> _Array:
    """Return the array of which a map holds the shape and the chunks, each numbered "0", "1", ..."""
    shape, chunks = (_numbered(value.get(key)) for key in ("shape", "chunks"))
    dtypes = {chunk.dtype for chunk in chunks if isinstance(chunk, _Array)}
    if not all(isinstance(size, int) for size in shape) or not all(isinstance(chunk, _Array) for chunk in chunks):
        raise ValueError("an array in chunks lacks its shape or its chunks")
    if len(dtypes) != 1:
        raise ValueError("the chunks of an array do not have one dtype")
    return _check(_Array(tuple(shape), dtypes.pop(), tuple(part for chunk in chunks for part in chunk.parts)))


def _numbered(value: Any) -> list[Any]:
    if not isinstance(value, dict) or value.keys() != {str(index) for index in range(len(value))}:
        raise ValueError("an array in chunks lacks its shape or its chunks")
    return [value[str(index)] for index in range(len(value))]


def _check(array: _Array) -> _Array:
    """Return the array if it has as many bytes as its shape needs, and any; other dtypes than floats are never read."""
    size = sum(map(len, array.parts))
    if len(array.shape) > MAX_AXES:
        raise ValueError(f"an array has {len(array.shape)} axes, over {MAX_AXES}")
    if array.dtype in FLOATS and not 0 < math.prod(array.shape) * np.dtype(array.dtype).itemsize == size:
        raise ValueError(f"an array of shape {array.shape} and dtype {array.dtype} has {size} bytes")
    return array


class _Cursor:
    """Reads msgpack values in order; raises ValueError where they are cut short or of another kind than expected."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 0
        self.names = 0

    def take(self, count: int) -> memoryview:
        """Return the next bytes, as a view."""
        if count > len(self.data) - self.place:
            raise ValueError(f"it ends at byte {len(self.data)}, within a value")
        self.place += count
        return self.data[self.place - count : self.place]

    def head(self) -> tuple[str, int]:
        """Return the kind of the next value, and its length, its count of entries, or the number itself."""
        first = self.take(1)[0]
        for end, start, kind in ((0x80, 0, "number"), (0x90, 0x80, "map"), (0xA0, 0x90, "list"), (0xC0, 0xA0, "text")):
            if first < end:
                return kind, first - start
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first not in SIZED:
            raise ValueError(f"byte {self.place - 1} begins a value that no array has")
        kind, width = SIZED[first]
        return kind, int.from_bytes(self.take(width), "big")

    def expect(self, *kinds: str) -> int:
        """Return the second part of the next head, which must be of one of these kinds."""
        kind, number = self.head()
        if kind not in kinds:
            raise ValueError(f"before byte {self.place} it contains {kind} where flax writes {kinds[0]}")
        return number

    def text(self) -> str:
        size = self.expect("text", "bytes")
        if size > MAX_NAME:
            raise ValueError(f"a name has {size} bytes, over {MAX_NAME}")
        return str(self.take(size), "utf-8")

    def read_map(self, count: int, depth: int) -> dict[str, Any]:
        """Return a map of maps, arrays and numbers, after its head."""
        self.names += count
        if self.names > MAX_NAMES or depth > MAX_DEPTH:
            raise ValueError(f"it has over {MAX_NAMES} names, or over {MAX_DEPTH} levels")
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in found or "/" in name:
                raise ValueError(f"it contains {name} twice, or a / in this name")
            kind, number = self.head()
            if kind == "map":
                found[name] = self.read_map(number, depth + 1)
            elif kind == "extension":
                found[name] = self.read_array(number)
            elif kind in ("number", "bool"):
                found[name] = number
            else:
                raise ValueError(f"{name} is no array and no map")
        return found

    def read_array(self, size: int) -> _Array:
        """Return the array in an extension value, after its head: a list of shape, dtype and bytes."""
        code = self.take(1)[0]
        if code != ARRAY:
            raise ValueError(f"it contains a value of extension type {code}")
        inner = _Cursor(self.take(size))
        parts, axes = inner.expect("list"), inner.expect("list")
        if parts != 3 or axes > MAX_AXES:
            raise ValueError(f"an array has {parts} parts and {axes} axes")
        shape = tuple(inner.expect("number") for _ in range(axes))
        dtype = inner.text()
        data = inner.take(inner.expect("bytes"))
        inner.check_end()
        return _check(_Array(shape, dtype, (data,)))

    def check_end(self) -> None:
        if self.place != len(self.data):
            raise ValueError(f"{len(self.data) - self.place} bytes follow after its end")
