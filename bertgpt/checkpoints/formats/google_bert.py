"""Checkpoints of google-research/bert, released or trained with it, presented as a Hugging Face folder.

A release consists of bert_config.json, vocab.txt, bert_model.ckpt.index and bert_model.ckpt.data-00000-of-00001. In
the output folder of Google's scripts, checkpoints are called model.ckpt-STEP, and the file `checkpoint` names the
newest.
"""

import re
from pathlib import Path
from typing import Any

from bertgpt.checkpoints.formats.tensor_bundle import open_bundle
from bertgpt.checkpoints.formats.tensors import Tensor
from bertgpt.errors import InputError
from bertgpt.hub import Snapshot
from bertgpt.json_files import read_at_most, read_json_object

CONFIG = "bert_config.json"
NEWEST = "checkpoint"
MAX_NEWEST = 1 << 20  # bytes
DEFAULTS = {"model_type": "bert", "type_vocab_size": 16}  # 16: of BertConfig in Google's modeling.py
LAYER = "bert/encoder/layer_0/"
TRAINING = re.compile(r"global_step|.*/adam_[mv]")  # Adam's slots and the step, of optimization.py
HEADS = {  # Google's names that do not follow from Hugging Face's
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
}
CLASSES = {  # the tensor that tells the class; the first that is there
    "qa_outputs.weight": "BertForQuestionAnswering",
    "classifier.weight": "BertForSequenceClassification",
    "cls.seq_relationship.weight": "BertForPreTraining",
    "cls.predictions.bias": "BertForMaskedLM",
}


def is_in(folder: Path) -> bool:
    """Whether the folder has Google's configuration or a checkpoint. With a config.json it is a Hugging Face folder."""
    return not (folder / "config.json").exists() and ((folder / CONFIG).exists() or any(folder.glob("*.ckpt*.index")))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration, with the keys of Hugging Face's config.json. The tensors decide the class.

    Raises:
        InputError: bert_config.json is missing or not a JSON object, or the checkpoint cannot be opened.
    """
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder / CONFIG}: no such file; copy the one that the checkpoint was trained with")
    config = read_json_object(folder / CONFIG)
    tensors = open_tensors(folder)
    named = next((name for tensor, name in CLASSES.items() if tensor in tensors), "BertModel")
    classes = tensors["classifier.weight"].shape[:1] if named == "BertForSequenceClassification" else ()
    return DEFAULTS | config | {"architectures": [named]} | ({"num_labels": classes[0]} if classes else {})


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors under Hugging Face's names, without Adam's slots and the step.

    Raises:
        InputError: the folder has no checkpoint or several, or the checkpoint is damaged or not a BERT's.
    """
    index = folder / f"{_find_checkpoint(folder)}.index"
    tensors = open_bundle(index)
    if not any(name.startswith(LAYER) for name in tensors):
        few = ", ".join(name[:100] for name in list(tensors)[:3])
        raise InputError(f"{index}: not a checkpoint of Google's BERT: it has no {LAYER}..., but {few or 'nothing'}")
    return dict(_to_hf(name, tensor) for name, tensor in tensors.items() if not TRAINING.fullmatch(name))


def fetch_checkpoint(snapshot: Snapshot) -> None:
    """Fetch the checkpoint that `open_tensors` will read.

    Raises:
        InputError: the model has none or several, or a file cannot be downloaded.
    """
    top = sorted(file for file in snapshot.files if "/" not in file)
    indexes = [file for file in top if ".ckpt" in file and file.endswith(".index")]
    if not indexes:
        raise snapshot.lacks("bert_model.ckpt.index")
    for file in (CONFIG, *indexes, *({NEWEST} & set(top))):
        snapshot.fetch(file)
    named = _find_checkpoint(snapshot.folder)
    for file in top:
        if file.startswith(f"{named}.data-"):
            snapshot.fetch(file)


def _find_checkpoint(folder: Path) -> str:
    """Return the name of the folder's checkpoint: the one that `checkpoint` names, the only one, or the newest."""
    names = sorted(file.name.removesuffix(".index") for file in folder.glob("*.ckpt*.index"))
    if (folder / NEWEST).is_file():
        return _named_checkpoint(folder / NEWEST, names)
    if not names:
        raise InputError(f"{folder}: contains no checkpoint; add bert_model.ckpt.index and its data files")
    steps = {int(found[1]): name for name in names if (found := re.fullmatch(r".*-(\d{1,18})", name))}
    if len(names) > 1 and len(steps) < len(names):
        raise InputError(f"{folder}: contains several checkpoints, {names[0]} and {names[-1]}; move all but one away")
    return names[0] if len(names) == 1 else steps[max(steps)]


def _named_checkpoint(file: Path, names: list[str]) -> str:
    """Return the checkpoint that the file `checkpoint` names, one of `names`."""
    try:
        with file.open("rb") as opened:
            text = read_at_most(opened, MAX_NEWEST).decode(errors="replace")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    found = re.search(r'^model_checkpoint_path: *"([^"\n]*)"', text, re.MULTILINE)
    named = found[1] if found else ""
    if named not in names:
        raise InputError(
            f"{file}: names {named[:200]!r}, which is not a checkpoint in its folder; write the name of one that is, "
            f"such as {names[-1] if names else 'model.ckpt-1000'}, or delete the file"
        )
    return named


def _to_hf(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return Hugging Face's name and layout: kernels are [in, out] in Google's files and [out, in] there."""
    if name in HEADS:
        return HEADS[name], tensor
    hf_name = re.sub(r"\blayer_(\d+)", r"layer.\1", name.replace("/", "."))
    if hf_name.endswith("_embeddings"):
        return f"{hf_name}.weight", tensor
    if not hf_name.endswith(".kernel"):
        return hf_name, tensor
    return f"{hf_name.removesuffix('kernel')}weight", tensor.transposed()
