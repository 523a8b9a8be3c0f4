"""Embed texts with a BERT or GPT-1: one JSON object per line, with `text` and `embedding` (6 decimals), or .npz."""

import argparse
from collections.abc import Iterator
from typing import Any

from . import add_model, whole_number
from .texts import add_texts, read_texts, watched


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, texts or a file, pooling, layers, and where the result goes."""
    add_model(parser, "a run folder or model folder")
    add_texts(parser, "line")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls", "none"),
        default="mean",
        help="mean of all tokens (default), [CLS], or none: a vector for each token",
    )
    parser.add_argument(
        "--layer",
        type=whole_number,
        action="append",
        metavar="N",
        help="0: embeddings; N: block N; -1 (default): the last block; may be repeated",
    )
    parser.add_argument("--out", metavar="FILE", help="write to this .jsonl or .npz file instead of printing")
    parser.add_argument("--batch-size", type=whole_number, default=32, metavar="N", help="texts per batch (default 32)")


def run(options: argparse.Namespace) -> None:
    """Print the objects, or write the file."""
    import itertools
    from pathlib import Path

    from bertgpt.errors import InputError
    from bertgpt.inference.embed import embed_each

    from ..folders.run_folder import load_run

    if options.out is not None and Path(options.out).suffix not in (".jsonl", ".npz"):
        raise InputError(f"--out is {options.out}; it must end in .jsonl or .npz")
    model, params, tokenizer, _ = load_run(options.run, revision=options.revision)
    texts, copies = itertools.tee(read_texts(options))
    layers = options.layer or [-1]
    layer = layers[0] if len(layers) == 1 else layers
    vectors = embed_each(model, params, tokenizer, texts, options.pooling, options.batch_size, layer=layer)
    vectors = watched(vectors, "embedding", options, prints=options.out is None)
    rows = (
        (text, _pieces(tokenizer, text, options.pooling), found) for text, found in zip(copies, vectors, strict=True)
    )
    if options.out is not None and options.out.endswith(".npz"):
        _write_arrays(Path(options.out), rows)
    else:
        _write_lines(options.out, tokenizer, rows)


def _pieces(tokenizer: Any, text: str, pooling: str) -> list[int]:
    """The ids whose vectors are given, if each token has one."""
    from bertgpt.data.pretraining.sentence_pairs import encode

    if pooling != "none":
        return []
    is_bert = tokenizer.token_to_id("[CLS]") is not None
    return encode(tokenizer, text)["input_ids"][0].tolist() if is_bert else tokenizer.encode(text).ids


def _write_lines(path: str | None, tokenizer: Any, rows: Iterator[Any]) -> None:
    """Print or write an object per text. With an axis for tokens there is also `tokens`, their texts."""
    import contextlib
    import json
    import sys
    from pathlib import Path

    import numpy as np

    from ..atomic_files import whole_file

    with whole_file(Path(path)) if path else contextlib.nullcontext(sys.stdout.buffer) as out:
        for text, ids, vectors in rows:
            line = {"text": text, "embedding": np.round(vectors.astype(np.float64), 6).tolist()}
            if ids:
                line["tokens"] = [tokenizer.id_to_token(index) for index in ids]
            out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            out.flush()


def _write_arrays(path: Any, rows: Iterator[Any]) -> None:
    """Write `embeddings` [N D] or [N K D]; with a vector for each token, [M D] or [M K D] of all texts one after the
    other, with `ids` [M] int32 and `ends` [N] int64, where each text ends. Few vectors are in memory at a time."""
    import tempfile
    import zipfile

    import numpy as np

    from ..atomic_files import whole_file

    ids: list[np.ndarray] = []
    shape: tuple[int, ...] = ()
    with whole_file(path) as out, tempfile.TemporaryFile(dir=path.parent) as raw:
        for _, found, vectors in rows:
            block = vectors[None]
            if found:
                ids.append(np.array(found, np.int32))
                block = vectors if vectors.ndim == 2 else vectors.swapaxes(0, 1)
            raw.write(np.ascontiguousarray(block, "<f4").tobytes())
            shape = (shape[0] + len(block) if shape else len(block), *block.shape[1:])
        raw.seek(0)
        with zipfile.ZipFile(out, "w") as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
                while part := raw.read(1 << 20):
                    member.write(part)
            more = {"ids": np.concatenate(ids), "ends": np.cumsum([len(part) for part in ids])} if ids else {}
            for name, array in more.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array)
