"""Small files that claim much: read in bounded memory and time, or refused in one line before anything is allocated."""

import binascii
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed_files import PACK
from safetensors.numpy import save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux bounds a process's data")
TESTS = Path(__file__).parent
PROGRAM = """
import json, os, sys
from pathlib import Path

os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others set 1 GiB aside
import pyarrow.parquet

import bertgpt
from bertgpt.data.tasks import readers
from bertgpt.data.text.documents import read_documents
from bertgpt.data.text import files
from fuzz.limits import TooLong, limit_memory, time_limit

READ = {
    "text": lambda path: f"{sum(1 for _ in read_documents(files.find_files(str(path))))} documents",
    "rows": lambda path: f"{sum(1 for _ in readers.read_rows(str(path)))} rows",
    "held": lambda path: f"{len(readers.read_all_rows(str(path)))} rows",
    "model": lambda path: type(bertgpt.load_pretrained(path)[0]).__name__,
    "tokenizer": lambda path: bertgpt.load_tokenizer(path) and "a tokenizer",
}
bertgpt.load_pretrained, bertgpt.load_tokenizer, limit_memory(500 << 20)
for kind, read in READ.items():
    for path in sorted(Path(kind).iterdir()):
        try:
            with time_limit(30):
                outcome = read(path)
        except (Exception, TooLong) as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps([str(path), outcome]), flush=True)
"""


def nested(name: str, value: object) -> bytes:
    """A table with one row."""
    stream = pa.BufferOutputStream()
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "write_statistics": False}
    pq.write_table(pa.table({name: [value]}), stream, **options)
    return stream.getvalue().to_pybytes()


def repeated(count: int) -> bytes:
    """A table whose one text of ten megabytes stands in every row."""
    stream = pa.BufferOutputStream()
    text = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), ["x" * 10_000_000])
    pq.write_table(pa.table({"text": text}), stream, compression="zstd", store_schema=False)
    return stream.getvalue().to_pybytes()


def letters(count: int) -> bytes:
    """A table of so many rows of one letter."""
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"] * count}), stream, compression="zstd")
    return stream.getvalue().to_pybytes()


def elements(count: int) -> bytes:
    """A table whose one row holds a list of so many zeros."""
    stream = pa.BufferOutputStream()
    column = pa.ListArray.from_arrays(np.array([0, count], np.int32), np.zeros(count, np.int8))
    pq.write_table(pa.table({"labels": column}), stream, compression="zstd")
    return stream.getvalue().to_pybytes()


def huge_dictionary() -> bytes:
    """An .xz whose block asks for a dictionary of 4 GiB."""
    whole = bytearray(PACK[".xz"](b"one"))
    size = 4 * (whole[12] + 1)
    assert whole[14:16] == b"\x21\x01"  # LZMA2, and one byte for its dictionary
    whole[16] = 40
    whole[12 + size - 4 : 12 + size] = binascii.crc32(whole[12 : 12 + size - 4]).to_bytes(4, "little")
    return bytes(whole)


def dense(count: int) -> bytes:
    """JSON of so many empty lists, three bytes each, which take 64 in memory."""
    return b"[" + b"[]," * count + b"[]]"


def long_names() -> bytes:
    """Arrays of one byte whose names are as long and as many as they may be."""
    array = msgpack.packb(msgpack.ExtType(1, msgpack.packb(((1,), "int8", b"a"))))
    outer = b"".join(b"\x81" + msgpack.packb(f"{level:0100}") for level in range(14))
    entries = b"".join(msgpack.packb(f"{number:0100}") + array for number in range(19_980))
    return outer + b"\xdf" + (19_980).to_bytes(4, "big") + entries


FILES: dict[str, tuple[Callable[[], bytes], str]] = {  # what is written, and what becomes of it
    "text/repeated.parquet": (lambda: repeated(60), "60 documents"),
    "text/value.parquet": (
        lambda: nested("text", "x" * 80_000_000),
        "row group 1 takes 80000[0-9]{3} bytes in memory, over",
    ),
    "rows/texts.parquet": (
        lambda: nested("words", ["x" * 1_000_000] * 500),
        "row 1: over 67108864 bytes; split it into rows",
    ),
    "rows/elements.parquet": (
        lambda: elements(6_000_000),
        "row group 1 takes 72000000 bytes in memory, over 100 times its",
    ),
    "text/dense.json.gz": (
        lambda: PACK[".gz"](dense(21_000_000)),
        "line 1: JSON with over 4194304 commas, colons and brackets; split it",
    ),
    "text/blank.json.zst": (
        lambda: PACK[".zst"](bytes(80_000_000)),
        "unpacks to over 100 times its size; if the file is valid",
    ),
    "text/line.jsonl.gz": (
        lambda: PACK[".gz"](b'"' + b"a" * (70 << 20)),
        "line 1: longer than 67108864 bytes; split it",
    ),
    "rows/line.jsonl.zst": (
        lambda: PACK[".zst"](dense(5_000_000)),
        "line 1: JSON with over 4194304 commas, colons and brackets",
    ),
    "rows/quotes.csv.gz": (
        lambda: PACK[".gz"](b"a\n" + (b'"' + b"b" * 1000 + b'\n",') * 70_000),
        "line 2: a record of over 67108864 characters",
    ),
    "rows/words.conll.gz": (
        lambda: PACK[".gz"]((b"w" * 4000 + b" O\n") * 20_000),
        "a sentence of over 65536 words; end it",
    ),
    "text/dictionary.txt.xz": (huge_dictionary, "line 1: cannot be read: Memory usage limit exceeded"),
    "text/window.txt.zst": (lambda: b"\x28\xb5\x2f\xfd\0\xa8\1\0\0", "line 1: cannot be read: .*memory"),  # 2 GiB
    "text/inner.parquet.zst": (lambda: PACK[".zst"](bytes(80_000_000)), "unpacks to over 100 times its size"),
    "held/repeated.parquet": (
        lambda: repeated(100),
        "row 7: up to here rows take 70[0-9]{6} bytes in memory, over 100 times their files' [0-9]{3}; .* to JSONL",
    ),
    "held/letters.parquet": (lambda: letters(1_000_000), "up to here rows take 671[0-9]{5} bytes in memory, over"),
    "held/letters.jsonl.gz": (
        lambda: PACK[".gz"](b'{"text": "a"}\n' * 1_000_000),
        "up to here rows take 671[0-9]{5} bytes in memory, over 100 times .*; if the file is valid, unpack it",
    ),
    "held/plain.csv": (lambda: b"a\n" + b"b\n" * 300_000, "300000 rows"),
    "model/header/model.safetensors": (lambda: (2**60).to_bytes(8, "little") + b"{}", "damaged or truncated: .*header"),
    "model/names/model.safetensors.index.json": (
        lambda: json.dumps({"weight_map": dict.fromkeys(map(str, range(300_000)), "gone")}).encode(),
        "'gone' is missing; copy the whole folder",
    ),
    "model/flax_lists/flax_model.msgpack": (
        lambda: b"\x81\xa1a" + b"\xdd\x00\x10\x00\x00" * 300_000,  # lists of a million entries, nested
        "damaged, or not a tree of arrays that flax wrote: a is no array and no map",
    ),
    "model/flax_maps/flax_model.msgpack": (
        lambda: b"\xdf\x00\x80\x00\x00" + b"\xa0\x80" * (1 << 23),
        "damaged, or not a tree of arrays that flax wrote: it has over 20000 names",
    ),
    "model/flax_names/flax_model.msgpack": (long_names, "a BertModel lacks "),
    "tokenizer/lists/tokenizer.json": (
        lambda: dense(21_000_000),
        "tokenizer.json: over 4194304 commas, colons and brackets; not a tokenizer",
    ),
    "tokenizer/lines/vocab.txt": (
        lambda: b"".join(b"%x\n" % number for number in range(7_000_000)),
        "vocab.txt: over 2097152 lines; not a tokenizer",
    ),
    "model/layers/config.json": (
        lambda: json.dumps({"model_type": "bert", "num_hidden_layers": 1000}).encode(),
        "needs 1000 layers",
    ),
}
PIPES = {
    "text/pipe.txt": "a pipe or a device, which may never end",
    "rows/pipe.csv": "a pipe or a device, which may never end",
    "model/pipe/config.json": "a pipe or a device",
    "model/piped_weights/model.safetensors": "a pipe or a device",
    "model/piped_shards/model.safetensors.index.json": "a pipe or a device",
    "model/piped_flax/flax_model.msgpack": "a pipe or a device",
    "model/piped_torch/pytorch_model.bin": "a pipe or a device",
    "model/piped_shapes/params_shapes.json": "a pipe or a device",
    "model/piped_numbers/params_0.npy": "a pipe or a device",
    "tokenizer/pipe/vocab.txt": "not a regular file",
}
"""Paths of a run folder; those of a model fail at their folder."""


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory) -> dict[str, str]:
    """What becomes of every file or folder; all are read in one process that may take 500 MiB more than it has."""
    home = tmp_path_factory.mktemp("small")
    for name in (*FILES, *PIPES):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
    for folder in (home / "model").iterdir():  # sound files first, where a later one is read beside them
        write_model(folder)
    for name, (content, _) in FILES.items():
        (home / name).write_bytes(content())
    for name in PIPES:
        (home / name).unlink(missing_ok=True)
        os.mkfifo(home / name)
    (home / "text" / "zeros.txt").symlink_to("/dev/zero")
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(json.loads(line) for line in result.stdout.splitlines())


def write_model(folder: Path) -> None:
    """A config.json and weights, but only those that the folder's own case does not replace."""
    if any((name in folder.name) for name in ("shapes", "numbers")):
        (folder / "params_shapes.json").write_text(json.dumps([[8, 4], [32, 4], *[[4]] * 12]))
        return
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if folder.name == "layers":
        save_file({"pooler.dense.bias": np.zeros(4, np.float32)}, folder / "model.safetensors")


def outcome(outcomes: dict[str, str], name: str) -> str:
    """Of a file, or of the folder of a model's or tokenizer's file."""
    return outcomes[name] if name in outcomes else outcomes[str(Path(name).parent)]


@pytest.mark.parametrize("name", FILES)
def test_a_small_file_that_claims_much_takes_little_memory(outcomes, name):
    found, expected = outcome(outcomes, name), FILES[name][1]
    assert re.search(expected, found), found
    assert found[0].isdecimal() or found.startswith("InputError: ")


@pytest.mark.parametrize("name", [*PIPES, "text/zeros.txt"])
def test_a_pipe_or_device_is_refused_without_being_opened(outcomes, name):
    found = outcome(outcomes, name)
    assert found.startswith("InputError: ")
    assert PIPES.get(name, "a pipe or a device, which may never end") in found
