"""Writes TensorFlow's checkpoints, sound and odd, for the tests of their reader."""

import struct

import google_crc32c
import ml_dtypes
import numpy as np

END = struct.pack("<II", 0, 1)  # of a block: the place of its first entry, and the count of such places
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "bfloat16": 14, "float16": 19}


def varint(value):
    """Seven bits a byte, the lowest first."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number, value):
    """A field of a protocol buffer: a number, or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def header(shards=1, endianness=0):
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def entry(array, offset, **changes):
    """BundleEntryProto of an array; `changes` replaces fields: dtype, shape, shard, size, slices."""
    shape = changes.get("shape", array.shape)
    message = field(1, changes.get("dtype", DTYPES[array.dtype.name]))
    message += field(2, b"".join(field(2, field(1, size)) for size in shape))
    message += field(3, changes.get("shard", 0)) + field(4, offset) + field(5, changes.get("size", array.nbytes))
    message += varint(6 << 3 | 5) + checksum(array.tobytes())
    return message + b"".join(field(7, b"") for _ in range(changes.get("slices", 0)))


def block(records):
    """A block's entries, each with its whole name."""
    return b"".join(b"\0" + varint(len(key)) + varint(len(value)) + key + value for key, value in records) + END


def table(*blocks, kind=0):
    """A table of blocks that have any content; `kind` is their type: 0 is uncompressed, 1 is Snappy."""
    data, places = b"", []

    def add(content, kind):
        nonlocal data
        place = varint(len(data)) + varint(len(content))
        data += content + bytes([kind]) + checksum(content + bytes([kind]))
        return place

    places = [(b"\xff%04d" % number, add(content, kind)) for number, content in enumerate(blocks)]
    footer = add(block([]), 0) + add(block(places), 0)
    return data + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write(file, arrays, first=None, blocks=1, **changes):
    """A checkpoint FILE.index with one data file; `changes` holds, by name, fields of its entry to replace.

    `first` replaces the header.
    """
    records, data = [(b"", header() if first is None else first)], b""
    for name, array in sorted(arrays.items()):
        records.append((name.encode(), entry(array, len(data), **changes.get(name, {}))))
        data += array.tobytes()
    parts = np.array_split(np.arange(len(records)), blocks)
    file.with_name(f"{file.name}.index").write_bytes(table(*(block([records[i] for i in part]) for part in parts)))
    file.with_name(f"{file.name}.data-00000-of-00001").write_bytes(data)


def odd_floats():
    """An array of each floating-point type."""
    values = np.arange(6).reshape(2, 3) / 4
    return {name: values.astype(name) for name in ("float32", "float64", "float16")} | {
        "bfloat16": values.astype(ml_dtypes.bfloat16)
    }
