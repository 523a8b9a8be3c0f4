"""The rows of Parquet files, which may claim far more than they hold: 500 bytes can say a megabyte 5,000 times."""

import collections
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bertgpt.data.text.files import (
    BLOCK,
    MAX_LINE,
    MAX_RATIO,
    UNREADABLE,
    File,
    check_columns,
    open_file,
    open_raw,
    over_limit,
    packing,
    stamp,
    unpacked_limit,
)
from bertgpt.data.text.parquet_sizes import Chunk, row_groups, walk
from bertgpt.errors import InputError

READING = {"pre_buffer": False, "buffer_size": 1 << 20}  # pyarrow would hold a whole row group of a column
ROWS = 16  # made into Python's objects at a time
NESTED_ROWS = 4096  # read at a time where there are lists: pyarrow copies all texts met so far at each turn
ELEMENT = 12  # bytes that pyarrow takes for an element of a list: 8 for it, 4 for its place
UNFIT = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)  # what damaged bytes raise otherwise


def parquet_rows(path: File, column: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or one column of them; few are held at a time.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, has two columns of a name or lacks the column, a
            row takes over MAX_LINE bytes, or a row group far more than its part of the file.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs pyarrow: pip install 'bertgpt[tasks]'") from error
    try:
        with _open(path) as raw:
            yield from _rows(path, raw, column)
    except InputError:
        raise
    except (pa.ArrowException, *UNREADABLE, *UNFIT) as error:
        raise InputError(f"{path}: not Parquet that can be read: {error}; write it again") from error


def _rows(path: File, raw: IO[bytes], column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    groups = row_groups(raw)
    meta = pq.read_metadata(raw)
    names = meta.schema.to_arrow_schema().names
    check_columns(str(path), names)
    if column is not None and column not in names:
        raise InputError(f"{path}: no column {column!r} (found {', '.join(names)}); set data.text_key")
    leaves = _leaves(meta.schema, column)
    # Only pyarrow knows how long the lists are; a text that is repeated in them is held once.
    nested = any(leaf.max_repetition_level for leaf in leaves.values())
    texts = [leaf.path for leaf in leaves.values() if _is_text(leaf)] if nested else None
    local = isinstance(path, Path) or packing(path)  # elsewhere a second look would fetch the file twice
    number = 0
    with pq.ParquetFile(raw, metadata=meta, read_dictionary=texts, **READING) as file:
        for index, group in enumerate(groups):
            chunks = {i: walk(raw, group[i]) if local else group[i] for i in leaves}
            size = _rows_at_once(path, index, chunks, leaves, nested)
            columns = None if column is None else [column]
            for batch in file.iter_batches(size, row_groups=[index], columns=columns, use_threads=False):
                yield from _to_python(path, batch, number)
                number += batch.num_rows


@contextlib.contextmanager
def _open(path: File) -> Iterator[IO[bytes]]:
    """The file, unpacked on disk where it is compressed as a whole, since its reader jumps to and fro."""
    if not packing(path):
        with open_raw(path) as raw:
            yield raw
        return
    limit = unpacked_limit(stamp(path)[0])
    with open_file(path) as file, tempfile.TemporaryFile() as whole:
        while block := file.read(BLOCK):
            if whole.tell() + len(block) > limit:
                raise over_limit(path)
            whole.write(block)
        whole.seek(0)
        yield whole


def _leaves(schema: Any, column: str | None) -> dict[int, Any]:
    """The schema's columns of plain values by number, of all or of one column of the table."""
    leaves = {index: schema.column(index) for index in range(len(schema))}
    if column is None:
        return leaves
    return {i: leaf for i, leaf in leaves.items() if leaf.path == column or leaf.path.startswith(f"{column}.")}


def _is_text(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY"


def _rows_at_once(path: File, index: int, chunks: dict[int, Chunk], leaves: dict[int, Any], nested: bool) -> int:
    """How many rows of a row group can be read at a time.

    A page repeats a value, or the lengths of a list, without end in a few bytes; but a value stands in it once.

    Raises:
        InputError: even one may take too much.
    """
    packed = unpacked = row = 0
    for i, leaf in leaves.items():
        chunk = chunks[i]
        packed += chunk.packed
        elements = chunk.values * (ELEMENT + leaf.length) if leaf.max_repetition_level else 0
        unpacked += max(chunk.unpacked, elements)
        row += leaf.length or (chunk.unpacked if _is_text(leaf) and not nested else ELEMENT)
    limit = unpacked_limit(min(packed, stamp(path)[0]))
    if unpacked > limit:
        raise InputError(
            f"{path}: row group {index + 1} takes {unpacked} bytes in memory, over {MAX_RATIO} times its {packed} in "
            "the file; if it is sound, write it with smaller row groups (row_group_size) or give it as JSONL"
        )
    return max(1, min(NESTED_ROWS if nested else ROWS, limit // max(1, row)))


def _to_python(path: File, batch: Any, before: int) -> Iterator[dict[str, Any]]:
    """The rows of a batch; `before` have gone before it."""
    for start in range(0, batch.num_rows, ROWS):
        part = batch.slice(start, ROWS)
        if sum(map(_size, part.columns)) <= MAX_LINE:
            yield from _plain(path, part)
            continue
        for row in range(part.num_rows):
            single = part.slice(row, 1)
            if sum(map(_size, single.columns)) > MAX_LINE:
                raise InputError(f"{path} row {before + start + row + 1}: over {MAX_LINE} bytes; break it into rows")
            yield from _plain(path, single)


def _plain(path: File, part: Any) -> list[dict[str, Any]]:
    """The rows as Python's objects.

    Raises:
        InputError: Python has no such values, as of a time in nanoseconds; names column and type.
    """
    import pyarrow as pa

    try:
        return part.to_pylist()
    except (pa.ArrowException, *UNFIT) as failure:
        for name, column in zip(part.schema.names, part.columns, strict=True):
            try:
                column.to_pylist()
            except (pa.ArrowException, *UNFIT) as error:
                problem = f"column {name!r:.80} holds {column.type!s:.80}, and a value that Python cannot hold"
                raise InputError(f"{path}: {problem}; convert or drop it ({error})") from failure
        raise


def _size(array: Any) -> int:
    """Bytes of an array's values, each text counted as often as it comes."""
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _size(array.storage)
    if pa.types.is_dictionary(kind):
        times = collections.Counter(array.indices.drop_null().to_pylist())
        return sum(count * array.dictionary[index].as_buffer().size for index, count in times.items())
    if pa.types.is_map(kind):  # flatten() fails for it, and its keys and items are those of the whole, not the slice
        first, last = (array.offsets[at].as_py() for at in (0, len(array))) if len(array) else (0, 0)
        return sum(_size(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pa.types.is_struct(kind):
        return sum(map(_size, array.flatten()))
    if pa.types.is_nested(kind):
        return _size(array.flatten())
    return array.nbytes
