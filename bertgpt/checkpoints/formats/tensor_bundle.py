"""Reading TensorFlow's checkpoints (`Saver` version 2, "tensor bundle") without TensorFlow.

`NAME.index` is a table in LevelDB's format, from names to messages that describe tensors; the values lie in
`NAME.data-00000-of-00001`, ... The formats are documented in TensorFlow's tensorflow/core/lib/io/format.h and
tensorflow/core/protobuf/tensor_bundle.proto. Every block of the index and every tensor has a CRC-32C.
"""

import functools
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import ml_dtypes
import numpy as np

from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError, check_regular
from bertgpt.json_files import read_at_most

MAX_INDEX = 1 << 22  # bytes; BERT-large's with Adam's slots takes 70,000
MAX_TENSORS = 20_000
MAX_NAME = 1000  # bytes
MAX_AXES = 8
FOOTER, TRAILER = 48, 5  # bytes: of the table; of a block, its type and its checksum
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
SLICE = b"\0"  # first byte of the name of a partitioned variable's slice; the variable has an entry of its own
MASK = 0xA282EAD8  # added to rotated checksums
FLOATS = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 14: np.dtype(ml_dtypes.bfloat16), 19: np.dtype("<f2")}
OTHERS = {3: "int32", 7: "string", 9: "int64", 10: "bool", 20: "resource", 21: "variant"}  # of types.proto, for errors


class _Entry(NamedTuple):
    """BundleEntryProto: a tensor's type, shape, place and masked checksum; `parts` counts a partitioned variable's."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    parts: int


def open_bundle(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by TensorFlow's names, without reading their values.

    A value's checksum is verified when it is read. Reading raises InputError for a tensor that is not floating-point or
    that is stored in several slices.

    Args:
        index: the file that ends in `.index`.

    Raises:
        InputError: the index is damaged, compressed or of another byte order, or a data file is missing or too short.
    """
    try:
        entries = dict(_read_table(index))
        shards = _read_header(index, entries.pop(b"", None))
        whole = {key: value for key, value in entries.items() if not key.startswith(SLICE)}
        found = {_name(index, key): _read_entry(value) for key, value in whole.items()}
    except (IndexError, struct.error) as error:
        raise _damaged(index, "an entry is incomplete") from error
    files = {shard: _find_shard(index, shard, shards) for shard in sorted({entry.shard for entry in found.values()})}
    sizes = {shard: file.stat().st_size for shard, file in files.items()}
    for name, entry in found.items():
        if entry.offset + entry.size > sizes[entry.shard]:
            raise InputError(f"{files[entry.shard]}: too short for {name}; copy it again")
    return {
        name: Tensor(entry.shape, functools.partial(_read, files[entry.shard], name, entry), _dtype_name(entry.dtype))
        for name, entry in found.items()
    }


def _damaged(file: Path, why: str) -> InputError:
    return InputError(f"{file}: damaged or not a TensorFlow checkpoint: {why}; copy it again")


def _has_checksum(data: bytes, masked: int) -> bool:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF == masked


def _read_table(index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of a table, which must ascend, and their values."""
    check_regular(index)
    try:
        with index.open("rb") as opened:
            data = read_at_most(opened, MAX_INDEX + 1)
    except OSError as error:
        raise InputError(f"{index}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_INDEX:
        raise InputError(f"{index}: over {MAX_INDEX} bytes, too large for the index of a BERT")
    if len(data) < FOOTER or not data.endswith(MAGIC):
        raise _damaged(index, "it does not end as one")
    footer = data[-FOOTER:]
    _, place = _handle(footer, 0)  # of an empty block
    handle, _ = _handle(footer, place)
    last, count = None, 0
    for _, block in _read_block(index, data, handle):
        for key, value in _read_block(index, data, _handle(block, 0)[0]):
            if last is not None and key <= last:
                raise _damaged(index, "its names are not in order")
            last, count = key, count + 1
            if count > MAX_TENSORS:
                raise InputError(f"{index}: over {MAX_TENSORS} tensors, too many for a BERT")
            yield key, value


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Return the (offset, size) of a block, and the place after it."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _read_block(index: Path, data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block. A key shares its first bytes with the key before it."""
    offset, size = handle
    end = offset + size
    if size < 8 or end + TRAILER > len(data):
        raise _damaged(index, "a block lies outside the file")
    if not _has_checksum(data[offset : end + 1], *struct.unpack_from("<I", data, end + 1)):
        raise _damaged(index, "wrong checksum")
    if data[end]:
        raise InputError(
            f"{index}: its blocks are compressed (type {data[end]}), which is not supported; write the checkpoint with "
            "tf.compat.v1.train.Saver, which does not compress"
        )
    (restarts,) = struct.unpack_from("<I", data, end - 4)
    if 4 * (restarts + 1) > size:
        raise _damaged(index, "a block has no place for its entries")
    block, key, place = data[offset : end - 4 * (restarts + 1)], b"", 0
    while place < len(block):
        shared, place = _varint(block, place)
        new, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or shared + new > MAX_NAME or place + new + length > len(block):
            raise _damaged(index, "an entry lies outside its block")
        key = key[:shared] + block[place : place + new]
        place += new + length
        yield key, block[place - length : place]


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, 7 bits a byte, and the place after it.

    Raises:
        IndexError: the data end before the number.
    """
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise IndexError(place)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and value of each field of a protocol buffer; an unknown field is yielded too.

    Raises:
        IndexError, struct.error: the message is incomplete.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = _varint(message, place)
        elif tag & 7 == 5:
            (value,), place = struct.unpack_from("<I", message, place), place + 4
        elif tag & 7 == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        else:
            raise IndexError(place)
        if place > len(message):
            raise IndexError(place)
        yield tag >> 3, value


def _number(fields: dict[int, int | bytes], key: int) -> int:
    """Return a number of a message; 0 if it is absent.

    Raises:
        IndexError: it is not a number.
    """
    value = fields.get(key, 0)
    if isinstance(value, bytes):
        raise IndexError(key)
    return value


def _read_header(index: Path, message: bytes | None) -> int:
    """Return the number of data files of a BundleHeaderProto."""
    if message is None:
        raise _damaged(index, "it has no header")
    fields = dict(_fields(message))
    if _number(fields, 2):
        raise InputError(f"{index}: its numbers are big-endian, which is not supported")
    return _number(fields, 1)


def _read_entry(message: bytes) -> _Entry:
    """Return a BundleEntryProto.

    Raises:
        IndexError, struct.error: it is damaged.
    """
    listed = list(_fields(message))
    fields = dict(listed)
    shape = fields.get(2, b"")
    if isinstance(shape, int):
        raise IndexError(2)
    axes = [dict(_fields(axis)) for key, axis in _fields(shape) if key == 2 and isinstance(axis, bytes)]
    if len(axes) > MAX_AXES:
        raise IndexError(2)
    sizes = tuple(_number(axis, 1) for axis in axes)
    dtype, shard, offset, size, checksum = (_number(fields, key) for key in (1, 3, 4, 5, 6))
    return _Entry(dtype, sizes, shard, offset, size, checksum, sum(key == 7 for key, _ in listed))


def _name(index: Path, key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise _damaged(index, f"{key!r:.80} is not a name") from error


def _find_shard(index: Path, shard: int, shards: int) -> Path:
    """Return the path of a data file, which exists."""
    if shard >= shards:
        raise _damaged(index, f"it has {shards} data files, and names number {shard}")
    file = index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05}-of-{shards:05}")
    check_regular(file)
    if not file.exists():
        raise InputError(f"{file}: no such file; copy all {shards} data files of {index.name}")
    return file


def _dtype_name(number: int) -> str:
    return FLOATS[number].name if number in FLOATS else OTHERS.get(number, f"number {number}")


def _read(file: Path, name: str, entry: _Entry) -> np.ndarray:
    """Return a tensor as float32.

    Raises:
        InputError: it is not a whole floating-point tensor, or its bytes are damaged.
    """
    if entry.parts:
        raise InputError(f"{file}: {name} is a partitioned variable, stored in {entry.parts} slices; save it whole")
    dtype = FLOATS.get(entry.dtype)
    if dtype is None:
        kind = _dtype_name(entry.dtype)
        raise InputError(f"{file}: {name} has dtype {kind}; it must be float32, float64, float16 or bfloat16")
    if entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise _damaged(file, f"{name} has {entry.size} bytes, which do not fit its shape {entry.shape}")
    try:
        with file.open("rb") as opened:
            opened.seek(entry.offset)
            data = opened.read(entry.size)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    if len(data) != entry.size or not _has_checksum(data, entry.checksum):
        raise InputError(f"{file}: {name} has a wrong checksum; copy the file again")
    return np.frombuffer(data, dtype).reshape(entry.shape).astype(np.float32)
