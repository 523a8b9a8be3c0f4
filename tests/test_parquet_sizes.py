"""A Parquet file's own account of its sizes, against pyarrow's, and where it lies."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.data.text.parquet import parquet_rows
from bertgpt.data.text.parquet_sizes import row_groups, walk
from bertgpt.errors import InputError

TABLE = pa.table(
    {
        "text": ["one", "two " * 300, None, "one"] * 500,
        "nested": [[{"a": [1, 2], "b": "x"}], [], None, [{"a": [], "b": None}] * 3] * 500,
        "number": pa.array([0.5, None, 1.5, 2.5] * 500),
        "mapped": pa.array([[("k", 1)], [], None, [("l", 2), ("m", 3)]] * 500, pa.map_(pa.string(), pa.int8())),
    }
)


def write(table, **options) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_sizes_are_those_that_pyarrow_tells(version, compression, dictionary):
    options = {"compression": compression, "use_dictionary": dictionary, "data_page_size": 100, "write_batch_size": 50}
    raw = write(TABLE, row_group_size=700, data_page_version=version, **options)
    meta, found = pq.read_metadata(io.BytesIO(raw)), row_groups(io.BytesIO(raw))
    assert len(found) == meta.num_row_groups == 3
    for index, chunks in enumerate(found):
        told = [meta.row_group(index).column(i) for i in range(meta.num_columns)]
        assert [chunk.values for chunk in chunks] == [chunk.num_values for chunk in told]
        assert [chunk.packed for chunk in chunks] == [chunk.total_compressed_size for chunk in told]
        assert [chunk.unpacked for chunk in chunks] == [chunk.total_uncompressed_size for chunk in told]
        for chunk in chunks:  # pyarrow counts the pages' headers too
            pages = walk(io.BytesIO(raw), chunk)
            assert pages.values == chunk.values
            assert 0.1 * chunk.unpacked < pages.unpacked < chunk.unpacked


def varint(number: int, size: int = 0) -> bytes:
    """Thrift's, drawn out to a size."""
    coded = []
    number <<= 1
    while number >> 7 or len(coded) < size - 1:
        coded.append(number & 127 | 128)
        number >>= 7
    return bytes([*coded, number])


def lie(raw: bytes, old: int, new: int) -> bytes:
    """The file with a number of its footer replaced."""
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    assert varint(old) in raw[start:]
    return raw[:start] + raw[start:].replace(varint(old), varint(new, len(varint(old))))


def test_a_footer_that_lies_of_the_length_of_a_list_is_caught_by_the_pages(tmp_path):
    numbers = pa.ListArray.from_arrays(pa.array([0, 6_000_000], pa.int32()), pa.array(bytes(6_000_000)).cast(pa.int8()))
    (tmp_path / "a.parquet").write_bytes(lie(write(pa.table({"a": numbers}), compression="zstd"), 6_000_000, 10))
    with pytest.raises(InputError, match=r"a\.parquet: row group 1 takes 72000000 bytes in memory, over 100 times"):
        list(parquet_rows(tmp_path / "a.parquet"))


def test_a_footer_that_lies_of_the_size_of_a_text_is_caught_by_the_pages(tmp_path):
    table = pa.table({"a": ["x" * 70_000_000]})
    raw = write(table, compression="zstd", use_dictionary=False, write_statistics=False)
    size = pq.read_metadata(io.BytesIO(raw)).row_group(0).column(0).total_uncompressed_size
    (tmp_path / "a.parquet").write_bytes(lie(raw, size, 10))
    with pytest.raises(InputError, match=r"a\.parquet: row group 1 takes 700000[0-9]{2} bytes in memory, over"):
        list(parquet_rows(tmp_path / "a.parquet"))


@given(st.integers(0, 1 << 16), st.binary(max_size=20))
def test_damage_is_told_by_few_kinds_of_errors(start, content):
    raw = write(TABLE.slice(0, 8))
    start %= len(raw)
    damaged = io.BytesIO(raw[:start] + content + raw[start + len(content) :])
    try:
        for chunk in [chunk for chunks in row_groups(damaged) for chunk in chunks]:
            walk(damaged, chunk)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
