"""Warnings about a tokenizer that does not suit the text, in vocabulary or case."""

import functools
import json

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models

from bertgpt.data.text.store import Split
from bertgpt.tokenizers import BERT_SPECIAL, load_tokenizer
from train import config
from train.__main__ import main
from train.folders import token_store
from train.folders.tokenizer_fit import find_problems

UNCASED = [*BERT_SPECIAL, *"abcdef.", "the", "##a"]
CASED = [*BERT_SPECIAL, *"abcABC.", "The", "##a"]
CHINESE = [*BERT_SPECIAL, *"今天很好。"]


def write_tokenizer(folder, vocabulary: list[str], lowercase: bool):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    return folder


def problems(tokenizer: Tokenizer, train: int, held_out: int = 0) -> list[str]:
    """What is found if so many of a thousand tokens are unknown in each split."""
    return find_problems({"train": make_split(tokenizer, train), "eval": make_split(tokenizer, held_out)}, tokenizer)


def make_split(tokenizer: Tokenizer, unknown: int) -> Split:
    counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
    counts[tokenizer.token_to_id("[UNK]") or 0] = unknown
    return Split(np.zeros(1000, np.uint16), np.zeros(1, np.int64), np.zeros(1, np.int64), counts, 0)


@pytest.mark.parametrize(("vocabulary", "lowercase"), [(UNCASED, True), (CASED, False), (CHINESE, False)])
def test_over_a_tenth_of_unknown_tokens_is_told(tmp_path, vocabulary, lowercase):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, vocabulary, lowercase))
    assert problems(tokenizer, 100, 100) == []
    (line,) = problems(tokenizer, 99, 250)
    assert line.startswith("25% of the eval split's tokens are [UNK]: the vocabulary does not suit the text; use a tok")
    (line,) = problems(tokenizer, 900, 250)
    assert line.startswith("90% of the train split's tokens and 25% of the eval split's tokens are [UNK]: ")


def test_capital_letters_that_no_piece_has_are_told(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, UNCASED, lowercase=False))
    assert problems(tokenizer, 10) == []  # the text has few capital letters, if any
    (line,) = problems(tokenizer, 20)
    assert line.startswith(
        "2% of the train split's tokens are [UNK]: the vocabulary has no capital letters, and the tok"
    )
    assert 'set "do_lower_case": true' in line


def test_pieces_that_lower_cased_text_never_uses_are_told(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, CASED, lowercase=True))
    (line,) = problems(tokenizer, 0)
    assert "lower-cases text, but 44% of its vocabulary has capital letters" in line
    assert 'set "do_lower_case": false' in line
    assert len(problems(tokenizer, 200)) == 2


def test_a_tokenizer_without_an_unknown_token_suits_every_text():
    assert problems(Tokenizer(models.BPE({"A": 0, "b": 1}, [])), 900) == []


@pytest.mark.parametrize(
    ("text", "vocabulary", "lowercase", "message"),
    [
        ("今天很好。", UNCASED, True, "the vocabulary does not suit the text"),
        ("The a. B c.", UNCASED, False, "the vocabulary has no capital letters"),
        ("a a. B c.", CASED, True, "the tokenizer lower-cases text"),
        ("The a. B c.", UNCASED, True, ""),
    ],
)
def test_a_new_store_a_complete_one_and_a_run_are_each_warned_of_in_one_line(
    tmp_path, capsys, text, vocabulary, lowercase, message
):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    folder = write_tokenizer(tmp_path / "vocabulary", vocabulary, lowercase)
    data = {"train": str(tmp_path / "text.txt"), "eval": str(tmp_path / "text.txt"), "workers": 1}
    values = {"tokenizer": {"path": str(folder)}, "data": data, "out": str(tmp_path / "out")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))

    def start_run() -> None:
        settings = config.load(str(tmp_path / "run.yaml"))
        token_store.open_store(settings, load_tokenizer(tmp_path / "out" / "store"), None)

    prepare = functools.partial(main, ["prepare", str(tmp_path / "run.yaml")])
    for step in (prepare, prepare, start_run):
        assert not step()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == bool(message)
        assert all(line.startswith("warning: ") and message in line for line in lines)
