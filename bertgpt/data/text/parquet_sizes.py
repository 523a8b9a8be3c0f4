"""The sizes that a Parquet file declares in its footer and in the headers of its pages.

pyarrow exposes only the footer's sizes, ends the process if one is damaged, and allocates the size that a page's header
declares.
Sources: parquet.thrift of github.com/apache/parquet-format, doc/specs/thrift-compact-protocol.md of apache/thrift.
"""

from typing import IO, Any, NamedTuple

MAX_FOOTER = 1 << 24  # bytes; one byte of it can take 64 in memory
MAX_HEADER = 1 << 24  # bytes of a page's header, which may contain two values; pyarrow's limit
INT32, INT64, BINARY, LIST, MAP, STRUCT = 5, 6, 8, 9, 11, 12  # Thrift's types
WIDTHS = {1: 1, 2: 1, 3: 1, 7: 8}  # bytes: a boolean in a list, a byte, a double


class Chunk(NamedTuple):
    """A column's part of a row group.

    Attributes:
        values: number of its values; each value in a list counts.
        unpacked: bytes of its pages, unpacked.
        packed: bytes that it takes in the file.
        start: its offset in the file.
    """

    values: int
    unpacked: int
    packed: int
    start: int


def row_groups(file: IO[bytes]) -> list[list[Chunk]]:
    """The chunks of each row group, in the order of the schema's columns, from the footer.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: the footer is damaged, or over MAX_FOOTER bytes.
    """
    end = file.seek(0, 2) - 8
    file.seek(max(0, end))
    size = int.from_bytes(file.read(4), "little")
    if size > min(end, MAX_FOOTER):
        raise ValueError(f"a footer of {size} bytes")
    file.seek(end - size)
    footer, _ = _struct(file.read(size), 0)
    return [[_chunk(column[3, STRUCT]) for column in group[1, LIST]] for group in footer[4, LIST]]


def _chunk(fields: dict[tuple[int, int], Any]) -> Chunk:
    start, dictionary = fields[9, INT64], fields.get((11, INT64), 0)
    values, unpacked, packed = (fields[number, INT64] for number in (5, 6, 7))
    return Chunk(values, unpacked, packed, dictionary if 0 < dictionary < start else start)


def walk(file: IO[bytes], chunk: Chunk) -> Chunk:
    """The chunk with the sizes that its pages' own headers declare.

    Raises:
        ValueError, LookupError, TypeError, RecursionError: a header is damaged.
    """
    values = unpacked = 0
    at, end = chunk.start, chunk.start + chunk.packed
    while at < end and values < chunk.values:
        header, size = _header(file, at, end)
        counted = header.get((5, STRUCT)) or header.get((8, STRUCT)) or {}  # of data pages of either version
        values += counted.get((1, INT32), 0)
        unpacked += header[2, INT32]
        at += size + header[3, INT32]
        if header[2, INT32] < 0 or header[3, INT32] < 0:
            raise ValueError("a page of negative size")
    return chunk._replace(values=values, unpacked=unpacked)


def _header(file: IO[bytes], at: int, end: int) -> tuple[dict[tuple[int, int], Any], int]:
    """A page's header, and the header's size in bytes."""
    size = 1 << 10
    while True:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            return _struct(data, 0)
        except LookupError:
            if len(data) < size or size >= MAX_HEADER:
                raise
        size <<= 4


def _struct(data: bytes, at: int) -> tuple[dict[tuple[int, int], Any], int]:
    """(field number, type) -> value of each field; and the offset where the struct ends."""
    fields: dict[tuple[int, int], Any] = {}
    number = 0
    while byte := data[at]:
        kind, at = byte & 15, at + 1
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _number(data, at)
        if kind in (1, 2):  # a boolean's value is in its type
            continue
        fields[number, kind], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (4, INT32, INT64):
        return _number(data, at)
    if kind == STRUCT:
        return _struct(data, at)
    if kind in WIDTHS:
        return None, at + WIDTHS[kind]
    if kind == BINARY:
        size, at = _unsigned(data, at)
        return None, at + size
    if kind in (LIST, 10):
        return _list(data, at)
    if kind == MAP:
        return _map(data, at)
    raise ValueError(f"unknown Thrift type: {kind}")


def _list(data: bytes, at: int) -> tuple[list[Any], int]:
    kind, size = data[at] & 15, data[at] >> 4
    at += 1
    if size == 15:
        size, at = _unsigned(data, at)
    items = []
    for _ in range(size):
        item, at = _value(data, at, kind)
        data[at - 1]  # an item takes at least a byte; IndexError if it is beyond the data
        items.append(item)
    return items, at


def _map(data: bytes, at: int) -> tuple[None, int]:
    size, at = _unsigned(data, at)
    if size:
        kinds, at = data[at], at + 1
        for _ in range(size):
            _, at = _value(data, at, kinds >> 4)
            _, at = _value(data, at, kinds & 15)
            data[at - 1]
    return None, at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) & 128:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ValueError("a number with over 64 bits")
    return value | byte << shift, at + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag-encoded number: 0, -1, 1, -2, ..."""
    value, at = _unsigned(data, at)
    return value >> 1 ^ -(value & 1), at
