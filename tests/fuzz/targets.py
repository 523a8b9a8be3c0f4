"""The readers, each with the file whose bytes are changed and sound files beside it."""

import functools
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensor_bundles
from flax.serialization import to_bytes
from flax.traverse_util import unflatten_dict
from glue_folders import glue_files
from model_folders import to_flax
from packed_files import PACK
from safetensors.numpy import load, save

import bertgpt
from bertgpt.data.tasks import readers
from bertgpt.data.tasks.glue import TASKS, read_glue
from bertgpt.data.text import files, store
from bertgpt.data.text.documents import read_documents, split_sentences
from bertgpt.data.text.text_source import TextSource
from bertgpt.errors import LONGEST, InputError
from bertgpt.tokenizers import vocabulary_size
from fuzz.limits import time_limit
from train import config as configs
from train import reports
from train.folders.checkpoints import Checkpoints

SEEDS = Path(__file__).parent / "seeds"
SECONDS = 20  # for one input
GOOGLE = Path(__file__).parent.parent / "goldens" / "google" / "shards"
RECIPE = Path(__file__).parent.parent.parent / "configs" / "bert_demo.yaml"


class Target(NamedTuple):
    """A reader of files.

    Attributes:
        file: the name under which the input is put into a folder.
        read: gets the folder.
        seeds: the folder of seeds/ with sound inputs; those of `MADE` come beside them.
        beside: puts the other files into the folder.
        rounds: changed inputs of a check.
    """

    file: str
    read: Callable[[Path], Any]
    seeds: str
    beside: Callable[[Path], None] = lambda folder: None
    rounds: int = 200


def seeds(name: str) -> list[bytes]:
    """Sound inputs, and those that once broke something, in order."""
    folder = TARGETS[name].seeds
    found = sorted((SEEDS / folder).iterdir()) if (SEEDS / folder).is_dir() else []
    return [path.read_bytes() for path in found] + (MADE[folder]() if folder in MADE else [])


def run(name: str, folder: Path, data: bytes) -> None:
    """Reads an input in a folder that `prepare` made; raises whatever is no InputError of one line."""
    target = TARGETS[name]
    (folder / target.file).write_bytes(data)
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
    except InputError as error:
        text = str(error)
        text.encode()
        assert text.isprintable(), text
        assert 0 < len(text) < LONGEST + 10, text


def prepare(name: str, folder: Path) -> Path:
    """The folder with what stands beside the input."""
    folder.mkdir(parents=True, exist_ok=True)
    TARGETS[name].beside(folder)
    return folder


def _documents(name: str) -> Callable[[Path], Any]:
    return lambda folder: [
        split_sentences(document) for document in read_documents(files.find_files(str(folder / name)))
    ]


def _rows(name: str) -> Callable[[Path], Any]:
    return lambda folder: [json.dumps(row.values, default=str) for row in readers.read_rows(str(folder / name))]


def _tokenizer(folder: Path) -> None:
    tokenizer = bertgpt.load_tokenizer(folder)
    tokenizer.encode("A fine [MASK] ünd 新 ##ing", add_special_tokens=False)
    vocabulary_size(tokenizer)


def _parquet() -> list[bytes]:
    words = pa.array(["one", "two", None, "two"])
    nested = [{"text": ["a"], "at": [1]}, {"text": [], "at": [2, 3]}, None, {"text": ["b", "c"], "at": []}]
    maps = [[("one", 1)], [], None, [("three", 1), ("four", None)]]
    tables = [
        pa.table({"text": ["one. two", "three\n\nfour", "", "five"], "label": [0, 1, 2, 3]}),
        pa.table({"text": words, "answers": nested, "words": [["x", "y"], [], None, ["x"]]}),
        pa.table({"text": words, "counts": pa.array(maps, pa.map_(pa.string(), pa.int32()))}),
        pa.table({"text": words.dictionary_encode(), "number": [0.5, 1.5, None, 2.5], "raw": [b"ab"] * 4}),
    ]
    return [_bytes(pq.write_table, table, compression=pack) for table in tables for pack in ("none", "zstd")]


def _bytes(write: Callable[..., Any], value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    write(value, stream, **options)
    return stream.getvalue()


SIZES = {"hidden_size": 4, "num_layers": 1, "num_heads": 1, "mlp_size": 4, "max_positions": 8, "vocab_size": 32}


@functools.cache
def _bert() -> tuple[dict[str, Any], bytes]:
    """config.json and model.safetensors of a small BertModel."""
    linear = {"attention.self.query": (4, 4), "attention.self.key": (4, 4), "attention.self.value": (4, 4)}
    linear |= {"attention.output.dense": (4, 4), "intermediate.dense": (4, 4), "output.dense": (4, 4)}
    shapes = {f"encoder.layer.0.{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"encoder.layer.0.{name}.bias": shape[:1] for name, shape in linear.items()}
    for norm in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes |= {f"{norm}.LayerNorm.{part}": (4,) for part in ("weight", "bias")}
    for name, rows in (("word", 32), ("position", 8), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, 4)
    shapes |= {"pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)}
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 8, "vocab_size": 32}
    config |= {"id2label": {"0": "no", "1": "yes"}, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    return config, save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, {"format": "pt"})


GPT_SHAPES = [[8, 4], [32, 4], [1, 4, 12], [12], [1, 4, 4], [4], [4], [4], [1, 4, 16], [16], [1, 16, 4], [4], [4], [4]]


def _model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(_bert()[0]))
    (folder / "model.safetensors").write_bytes(_bert()[1])


def _sharded(folder: Path) -> None:
    _model(folder)
    (folder / "model.safetensors").rename(folder / "one.safetensors")


def _config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(_bert()[0]))


def _flax() -> list[bytes]:
    tensors = to_flax(load(_bert()[1]))
    dtypes = (np.float32, np.float16, ml_dtypes.bfloat16)
    return [
        to_bytes(unflatten_dict({name: value.astype(dtype) for name, value in tensors.items()}, sep="/"))
        for dtype in dtypes
    ]


def _release(folder: Path) -> None:
    (folder / "params_shapes.json").write_text(json.dumps(GPT_SHAPES))
    (folder / "params_0.npy").write_bytes(_npy()[0])


def _google(folder: Path) -> None:
    shutil.copytree(GOOGLE, folder, dirs_exist_ok=True)


def _google_entries() -> list[bytes]:
    """The first block of an index: what precedes its checksum and the second block, which is empty."""
    data = (GOOGLE / "bert_model.ckpt.index").read_bytes()
    return [data[: data.index(tensor_bundles.END) - 5]]


def _entries(folder: Path) -> Any:
    """Entries of the table, with checksums that fit them."""
    (folder / "bert_model.ckpt.index").write_bytes(tensor_bundles.table((folder / "entries").read_bytes()))
    return bertgpt.load_pretrained(folder)


def _npy() -> list[bytes]:
    flat = np.zeros(sum(int(np.prod(shape)) for shape in GPT_SHAPES), np.float32)
    return [_bytes(lambda array, stream: np.save(stream, array), array) for array in (flat, flat.astype(np.float16))]


def _index() -> list[bytes]:
    names = json.loads(_bert()[1][8:].split(b"}}")[0] + b"}}")
    weight_map = {name: "one.safetensors" for name in names if name != "__metadata__"}
    return [json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()]


@functools.cache
def _vocabulary() -> str:
    return "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "##ing", "新"]) + "\n"


def _vocabulary_file(folder: Path) -> None:
    (folder / "vocab.txt").write_text(_vocabulary())


def _bpe_files(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(SEEDS / name / "sound", folder / name)


def _store(folder: Path) -> None:
    texts = [f"the number {number} is here. so is {number + 1}." for number in range(60)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    source = TextSource(str(folder / "text.txt"), eval_fraction=0.2)
    _vocabulary_file(folder)
    store.prepare(folder / "store", source, bertgpt.load_tokenizer(folder / "vocab.txt"), {})


@functools.cache
def _store_files() -> dict[str, bytes]:
    """The files of a store by name; its folder and times, which nothing reads here, are left out of meta.json."""
    with tempfile.TemporaryDirectory() as folder:
        _store(Path(folder))
        found = Path(folder, "store")
        held = {str(file.relative_to(found)): file.read_bytes() for file in found.rglob("*") if file.is_file()}
    meta = json.loads(held["meta.json"])
    meta["identity"]["train"], meta["files"] = (
        "text.txt",
        [entry | {"path": "", "modified": 0} for entry in meta["files"]],
    )
    return held | {"meta.json": json.dumps(meta).encode()}


def _open_store(folder: Path) -> None:
    for split in ("train", "eval"):
        opened = store.open_split(folder / "store", split)
        for array in opened[:4]:
            np.asarray(array).sum()


@functools.cache
def _checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints")


def _overrides(folder: Path) -> None:
    arguments = (folder / "overrides").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    configs.load(str(RECIPE), [argument.replace("\0", "") for argument in arguments])


def _glue(name: str, labelled: bool) -> Callable[[Path], Any]:
    task = TASKS[name]
    skip = (lambda place: None) if task.has_damage else None
    return lambda folder: [json.dumps(row.values) for row in read_glue(folder / "a.tsv", task, labelled, skip)]


TARGETS: dict[str, Target] = {}
for suffix in ("txt", "jsonl", "json", "parquet"):
    TARGETS[f"corpus_{suffix}"] = Target(f"a.{suffix}", _documents(f"a.{suffix}"), suffix)
for suffix in ("jsonl", "json", "csv", "tsv", "conll", "conllu", "parquet"):
    TARGETS[f"rows_{suffix}"] = Target(f"a.{suffix}", _rows(f"a.{suffix}"), suffix)
for ending in PACK:
    for suffix, read in (("txt", _documents), ("parquet", _documents), ("csv", _rows)):
        file = f"a.{suffix}{ending}"
        TARGETS[f"packed_{suffix}_{ending[1:]}"] = Target(file, read(file), f"{suffix}{ending}", rounds=100)
for name, part in (("CoLA", "train"), ("QQP", "train"), ("STS-B", "train"), ("MRPC", "test")):
    TARGETS[f"glue_{name}"] = Target("a.tsv", _glue(name, part == "train"), f"{name}/{part}.tsv", rounds=60)
TARGETS |= {
    "tokenizer_json": Target("tokenizer.json", _tokenizer, "tokenizer.json"),
    "vocab_txt": Target("vocab.txt", _tokenizer, "vocab.txt"),
    "vocab_json": Target("vocab.json", _tokenizer, "vocab.json", _bpe_files),
    "merges_txt": Target("merges.txt", _tokenizer, "merges.txt", _bpe_files),
    "tokenizer_config": Target("tokenizer_config.json", _tokenizer, "tokenizer_config.json", _vocabulary_file),
    "added_tokens": Target("added_tokens.json", _tokenizer, "added_tokens.json", _vocabulary_file),
    "config_json": Target("config.json", bertgpt.load_pretrained, "config.json", _model, 30),
    "safetensors": Target("model.safetensors", bertgpt.load_pretrained, "safetensors", _model, 30),
    "sharded_index": Target("model.safetensors.index.json", bertgpt.load_pretrained, "index", _sharded, 30),
    "flax": Target("flax_model.msgpack", bertgpt.load_pretrained, "flax", _config, 60),
    "torch": Target("pytorch_model.bin", bertgpt.load_pretrained, "torch", _config, 30),
    "release_shapes": Target("params_shapes.json", bertgpt.load_pretrained, "shapes", _release, 30),
    "release_npy": Target("params_0.npy", bertgpt.load_pretrained, "npy", _release, 30),
    "google_config": Target("bert_config.json", bertgpt.load_pretrained, "bert_config", _google, 30),
    "google_checkpoint": Target("checkpoint", bertgpt.load_pretrained, "checkpoint", _google, 30),
    "google_index": Target("bert_model.ckpt.index", bertgpt.load_pretrained, "google_index", _google, 60),
    "google_entries": Target("entries", _entries, "google_entries", _google, 100),
    "run_yaml": Target("run.yaml", lambda folder: configs.load(str(folder / "run.yaml")), "yaml", rounds=30),
    "run_overrides": Target("overrides", _overrides, "overrides", rounds=30),
    "store_meta": Target("store/meta.json", _open_store, "store_meta", _store),
    "store_tokens": Target("store/train/tokens.bin", _open_store, "store_tokens", _store, 20),
    "store_bounds": Target("store/train/sentences.bin", _open_store, "store_bounds", _store, 20),
    "metrics": Target("metrics.jsonl", reports.read_metrics, "metrics"),
    "digests": Target(
        "checkpoints/1/digests.json",
        lambda folder: _checkpoints(folder).fault(1),
        "digests",
        lambda folder: (folder / "checkpoints" / "1").mkdir(parents=True, exist_ok=True),
    ),
}


def _packed(suffix: str, ending: str) -> Callable[[], list[bytes]]:
    return lambda: [PACK[ending](raw) for raw in seeds(f"{'rows' if suffix == 'csv' else 'corpus'}_{suffix}")]


MADE: dict[str, Callable[[], list[bytes]]] = {
    "parquet": _parquet,
    **{f"{suffix}{ending}": _packed(suffix, ending) for ending in PACK for suffix in ("txt", "parquet", "csv")},
    **{name: functools.partial(lambda text: [text.encode()], text) for name, text in glue_files().items()},
    "vocab.txt": lambda: [_vocabulary().encode()],
    "config.json": lambda: [json.dumps(_bert()[0]).encode()],
    "safetensors": lambda: [_bert()[1]],
    "flax": _flax,
    "index": _index,
    "shapes": lambda: [json.dumps(GPT_SHAPES).encode()],
    "npy": _npy,
    "bert_config": lambda: [(GOOGLE / "bert_config.json").read_bytes()],
    "checkpoint": lambda: [b'model_checkpoint_path: "bert_model.ckpt"\n'],
    "google_index": lambda: [(GOOGLE / "bert_model.ckpt.index").read_bytes()],
    "google_entries": _google_entries,
    "yaml": lambda: [path.read_bytes() for path in sorted(RECIPE.parent.glob("*_demo.yaml"))],
    "store_meta": lambda: [_store_files()["meta.json"]],
    "store_tokens": lambda: [_store_files()["train/tokens.bin"]],
    "store_bounds": lambda: [_store_files()["train/sentences.bin"]],
}
