"""Encoded rows of a task on disk, so that processes share the work and a second start does not repeat it.

The rows of a split are encoded in parts. Each part is a file `encoded/KEY.examples` in the run's folder. The key is a
hash of all that decides the examples: the values of the rows, the settings of the task, the labels, the tokenizer, the
length, and the code that encodes. So a file is never out of date, and whoever finds it can use it. Its content is the
BLAKE2b hash of the rest (64 bytes), and then arrays in the safetensors format. A damaged file is made again.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bertgpt.data.tasks import task
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import Example, TaskData, encode_rows
from bertgpt.data.tasks.templates import Feature
from bertgpt.data.text.store import tokenizer_hash
from bertgpt.errors import InputError

from .. import hosts
from ..atomic_files import write_whole
from ..progress import Bar

PART = 8192  # rows in a file
HASH = 64  # bytes
Arrays = dict[str, np.ndarray]


def encode_splits(
    data: TaskData, splits: dict[str, list[Row]], folder: Path, shared: bool = True
) -> dict[str, list[Example]]:
    """The examples of each split, as `encode_rows` returns them, from the files of a folder or by encoding.

    Each process encodes its share of the parts that are missing, and reads the others from the folder. Files of other
    settings are removed.

    Args:
        data: encodes the rows.
        splits: rows by the name of their split, the same in every process.
        folder: of the files; created if it is missing.
        shared: whether all processes share the folder; if not, each encodes all parts.

    Raises:
        InputError: a row cannot be used. All processes raise the error of the first such row.
    """
    parts = [
        (split, rows[start : start + PART]) for split, rows in splits.items() for start in range(0, len(rows), PART)
    ]
    files = [folder / f"{key(data, rows)}.examples" for _, rows in parts]
    made: dict[Path, list[Example]] = {}

    def encode_share() -> None:
        share = range(jax.process_index(), len(parts), jax.process_count())
        with Bar("encoding", sum(len(parts[number][1]) for number in share), "rows") as bar:
            for number in share:
                with contextlib.suppress(InputError):  # raised below, in every process and in the order of the rows
                    made[files[number]] = _examples(data, parts[number][1], files[number], bar)

    if hosts.several() and shared:
        folder.mkdir(parents=True, exist_ok=True)
        hosts.after_all(folder, encode_share, "waiting for other processes, which encode their share of the rows")
    examples: dict[str, list[Example]] = {split: [] for split in splits}
    is_new = not folder.exists()
    with (
        _removed_on_error(folder if is_new else None),
        Bar("encoding", sum(map(len, splits.values())), "rows", shown=not (hosts.several() and shared)) as bar,
    ):
        for (split, rows), file in zip(parts, files, strict=True):
            examples[split] += made.get(file) or _examples(data, rows, file, bar)
    if hosts.is_first():
        for file in set(folder.glob("*.examples")).difference(files):
            file.unlink(missing_ok=True)
    return examples


@contextlib.contextmanager
def _removed_on_error(folder: Path | None) -> Iterator[None]:
    """Remove a folder, if one is given, when a row cannot be used: the run has not begun."""
    try:
        yield
    except InputError:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _examples(data: TaskData, rows: Sequence[Row], file: Path, bar: Bar) -> list[Example]:
    """The examples of a part, from its file; without an intact file, they are encoded and written to it."""
    found = _read(data, rows, file)
    if found is not None:
        bar.advance(len(rows))
        return found
    found = list(bar.over(encode_rows(data, rows)))
    if any(example.features for example in found):  # otherwise the run ends with an error
        content = save(_to_arrays(found))
        with contextlib.suppress(OSError):  # if the folder is not writable, the next start encodes again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, hashlib.blake2b(content).digest() + content)
    return found


def key(data: TaskData, rows: Sequence[Row]) -> str:
    """A hash, in hex, of all that decides the examples of rows."""
    fields, template = _fields(data), _fields(data.template)
    tokenizer, _ = template.pop("tokenizer"), template.pop("known")
    fields |= {"template": template, "class": type(data).__name__, "tokenizer": tokenizer_hash(tokenizer)}
    fields |= {"version of tokenizers": importlib.metadata.version("tokenizers"), "code": _code()}
    digest = hashlib.blake2b(digest_size=16)
    for values in (fields, [row.values for row in rows]):
        digest.update(json.dumps(values, default=repr).encode() + b"\n")
    return digest.hexdigest()


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def _code() -> str:
    """A hash of the modules that encode rows."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(task.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(data: TaskData, rows: Sequence[Row], file: Path) -> list[Example] | None:
    """The examples of a part from its file; None if it is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if hashlib.blake2b(content[HASH:]).digest() != content[:HASH]:
        return None
    try:
        return _from_arrays(data, rows, load(content[HASH:]))
    except (SafetensorError, KeyError, ValueError):
        return None


def _to_arrays(examples: Sequence[Example]) -> Arrays:
    arrays = {
        "features": np.array([len(example.features) for example in examples], np.int64),
        "cut": np.array([example.cut for example in examples], bool),
    }
    arrays |= _joined("feature", [feature for example in examples for feature in example.features])
    return arrays | _joined("info", [info._asdict() for example in examples for info in example.decode_info])


def _from_arrays(data: TaskData, rows: Sequence[Row], arrays: Arrays) -> list[Example]:
    """
    Raises:
        KeyError, ValueError: the arrays do not fit the rows.
    """
    ends = np.cumsum(arrays["features"]).tolist()
    features, infos = _apart("feature", arrays), _apart("info", arrays)
    if data.info is not None:
        infos = [data.info(*(info[name] for name in data.info._fields)) for info in infos]
    if len(features) != (ends or [0])[-1] or len(infos) not in (0, len(features)):
        raise ValueError("another number of features")
    examples, start = [], 0
    for row, end, cut in zip(rows, ends, arrays["cut"].tolist(), strict=True):
        examples.append(Example(row, features[start:end], infos[start:end], cut))
        start = end
    return examples


def _joined(prefix: str, records: Sequence[Feature]) -> Arrays:
    """Arrays of different shapes by name -> for each name, all values in one array, and the shapes [N dimensions].

    Integers take as few bytes as their values allow; an empty array keeps their dtype.
    """
    joined = {}
    for name in records[0] if records else ():
        values = [np.asarray(record[name]) for record in records]
        whole = np.concatenate([value.ravel() for value in values])
        joined[f"{prefix}.{name}.values"] = _narrowed(whole)
        joined[f"{prefix}.{name}.dtype"] = whole[:0]
        joined[f"{prefix}.{name}.shapes"] = _narrowed(np.array([value.shape for value in values], np.int64))
    return joined


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Integers in the smallest dtype that holds them; other arrays unchanged."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    return values.astype(np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max())))


def _apart(prefix: str, arrays: Arrays) -> list[Feature]:
    """The inverse of `_joined`; the arrays are parts of the given ones."""
    names = [name.split(".")[1] for name in arrays if name.startswith(f"{prefix}.") and name.endswith(".values")]
    columns = [_parts(*(arrays[f"{prefix}.{name}.{kind}"] for kind in ("values", "dtype", "shapes"))) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _parts(values: np.ndarray, dtype: np.ndarray, shapes: np.ndarray) -> list[np.ndarray]:
    """
    Raises:
        ValueError: the shapes do not add up to the number of values.
    """
    values, shapes = values.astype(dtype.dtype), shapes.astype(np.int64)
    ends = np.cumsum(shapes.prod(axis=1)).tolist()
    if ends[-1] != len(values):
        raise ValueError("another number of values")
    flat = [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return flat if shapes.shape[1] == 1 else [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]
