"""Writes tests/goldens/openai_cleanup: ids of GPT-1's released code, computed by the code itself.

    PYTHONPATH=.:tests python tests/parity/make_openai_goldens.py TEXT_UTILS [PACKAGES]

TEXT_UTILS is text_utils.py of openai/finetune-transformer-lm. PACKAGES is the folder of packages of
`python -m benchmarks.demo_data` (runs/demo_data/packages). The code runs with the ftfy and spaCy that are installed,
and its only change is that spacy.load gives spaCy's blank English: the code disables everything of its model but the
tokenizer, which is the same. The texts are those of tests/test_openai_cleanup.py. The vocabulary is kept if the folder
has one, since training twice may number pieces differently.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import spacy
from test_openai_cleanup import ARCHIVES, GOLDENS, KINDS, fingerprint, fuzzed, news, wikipedia

from bertgpt.tokenizers import train_bpe

PIECES = 1500


def write_vocabulary() -> None:
    """vocab.json and merges.txt, of BPE trained on the clean words of Wikipedia's introductions and fuzzed texts."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    model = json.loads(train_bpe([*wikipedia(3000), *fuzzed(300)], PIECES, cleanup="openai").to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""])
    (GOLDENS / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (GOLDENS / "merges.txt").write_text(merges, encoding="utf-8")


def released(path: str) -> type:
    """The class of the released code."""
    spacy.load = lambda name, disable: spacy.blank("en")
    spec = importlib.util.spec_from_file_location("text_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TextEncoder


def main(text_utils: str, archives: str = str(ARCHIVES)) -> None:
    if not (GOLDENS / "vocab.json").exists():
        write_vocabulary()
    encoder = released(text_utils)(str(GOLDENS / "vocab.json"), str(GOLDENS / "merges.txt"))
    expected = {"versions": {name: importlib.metadata.version(name) for name in ("ftfy", "spacy")}}
    for kind, (make, count) in KINDS.items():
        texts = make(count, Path(archives)) if make is news else make(count)
        expected[kind] = [fingerprint(ids) for ids in encoder.encode(list(texts), verbose=False)]
    (GOLDENS / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
