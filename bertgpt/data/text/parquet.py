"""The rows of Parquet files, in bounded memory: 500 bytes of such a file can encode a megabyte 5,000 times."""

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
    Read,
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

READING = {"pre_buffer": False, "buffer_size": 1 << 20}  # otherwise pyarrow loads a column's whole row group
ROWS = 16  # converted to Python objects at a time
NESTED_ROWS = 4096  # read at a time if there are lists: pyarrow copies all texts read so far with every batch
ELEMENT = 12  # bytes that pyarrow takes per element of a list: 8 for its value, 4 for its position
UNFIT = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)  # other errors that damaged bytes raise


def parquet_rows(path: File, column: str | None = None, read: Read | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or one column of them; few are in memory at a time.

    `read`, if given, is called with the share of the file's bytes that some rows take, as if all rows had one size.

    Raises:
        InputError: pyarrow is not installed; the file cannot be read, has two columns of the same name or lacks the
            column; a row takes over MAX_LINE bytes; or a row group takes far more memory than its part of the file.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs pyarrow: pip install 'bertgpt[tasks]'") from error
    try:
        with _open(path) as raw:
            yield from _rows(path, raw, column, read)
    except InputError:
        raise
    except (pa.ArrowException, *UNREADABLE, *UNFIT) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}; write the file again") from error


def _rows(path: File, raw: IO[bytes], column: str | None, read: Read | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    groups = row_groups(raw)
    meta = pq.read_metadata(raw)
    names = meta.schema.to_arrow_schema().names
    check_columns(str(path), names)
    if column is not None and column not in names:
        raise InputError(f"{path}: no column {column!r} (found {', '.join(names)}); set data.text_key")
    leaves = _leaves(meta.schema, column)
    # Only pyarrow knows how long the lists are. As dictionaries, texts that repeat in them are stored once.
    nested = any(leaf.max_repetition_level for leaf in leaves.values())
    texts = [leaf.path for leaf in leaves.values() if _is_text(leaf)] if nested else None
    local = isinstance(path, Path) or packing(path)  # walking a remote file would fetch it twice
    share = stamp(path)[0] / max(1, meta.num_rows) if read else 0.0  # bytes of a row
    number = 0
    with pq.ParquetFile(raw, metadata=meta, read_dictionary=texts, **READING) as file:
        for index, group in enumerate(groups):
            chunks = {i: walk(raw, group[i]) if local else group[i] for i in leaves}
            size = _rows_at_once(path, index, chunks, leaves, nested)
            columns = None if column is None else [column]
            for batch in file.iter_batches(size, row_groups=[index], columns=columns, use_threads=False):
                yield from _to_python(path, batch, number)
                number += batch.num_rows
                if read is not None:
                    read(share * batch.num_rows)


@contextlib.contextmanager
def _open(path: File) -> Iterator[IO[bytes]]:
    """The file, unpacked to disk if it is compressed as a whole, because its reader seeks."""
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
    """The schema's leaf columns by index: all, or those below one column of the table."""
    leaves = {index: schema.column(index) for index in range(len(schema))}
    if column is None:
        return leaves
    return {i: leaf for i, leaf in leaves.items() if leaf.path == column or leaf.path.startswith(f"{column}.")}


def _is_text(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY"


def _rows_at_once(path: File, index: int, chunks: dict[int, Chunk], leaves: dict[int, Any], nested: bool) -> int:
    """How many rows of a row group can be read at a time.

    A page can repeat a value, or the lengths of a list, any number of times in a few bytes. But it stores the value
    once, so the page's size bounds one text.

    Raises:
        InputError: even one row may take too much memory.
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
            "the file; if it is valid, write it with smaller row groups (row_group_size) or convert it to JSONL"
        )
    return max(1, min(NESTED_ROWS if nested else ROWS, limit // max(1, row)))


def _to_python(path: File, batch: Any, before: int) -> Iterator[dict[str, Any]]:
    """The rows of a batch; `before` is the number of rows before it."""
    for start in range(0, batch.num_rows, ROWS):
        part = batch.slice(start, ROWS)
        if sum(map(_size, part.columns)) <= MAX_LINE:
            yield from _plain(path, part)
            continue
        for row in range(part.num_rows):
            single = part.slice(row, 1)
            if sum(map(_size, single.columns)) > MAX_LINE:
                raise InputError(f"{path} row {before + start + row + 1}: over {MAX_LINE} bytes; split it into rows")
            yield from _plain(path, single)


def _plain(path: File, part: Any) -> list[dict[str, Any]]:
    """The rows as Python objects.

    Raises:
        InputError: Python cannot represent a value, such as a time in nanoseconds; names the column and its type.
    """
    import pyarrow as pa

    try:
        return part.to_pylist()
    except (pa.ArrowException, *UNFIT) as failure:
        for name, column in zip(part.schema.names, part.columns, strict=True):
            try:
                column.to_pylist()
            except (pa.ArrowException, *UNFIT) as error:
                problem = f"column {name!r:.80} of type {column.type!s:.80} has a value that Python cannot represent"
                raise InputError(f"{path}: {problem}; convert or drop the column ({error})") from failure
        raise


def _size(array: Any) -> int:
    """Bytes of an array's values; a text counts each time it occurs."""
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _size(array.storage)
    if pa.types.is_dictionary(kind):
        times = collections.Counter(array.indices.drop_null().to_pylist())
        return sum(count * array.dictionary[index].as_buffer().size for index, count in times.items())
    if pa.types.is_map(kind):  # flatten() fails for maps; their keys and items are the whole array's, not the slice's
        first, last = (array.offsets[at].as_py() for at in (0, len(array))) if len(array) else (0, 0)
        return sum(_size(part.slice(first, last - first)) for part in (array.keys, array.items))
    if pa.types.is_struct(kind):
        return sum(map(_size, array.flatten()))
    if pa.types.is_nested(kind):
        return _size(array.flatten())
    return array.nbytes
