"""Small files in the layout of GLUE's and SQuAD's downloads, and a tiny BERT whose vocabulary has their words."""

import json

import jax
import numpy as np

import bertgpt
from bertgpt.tokenizers import train_wordpiece, vocabulary_size

GOOD, BAD = ("ant", "bee", "cow", "dog"), ("fir", "ivy", "oak", "yew")
PARSES = ["parse"] * 6  # MNLI's columns before its sentences: index, promptID, pairID, genre, and two binary parses
ENTAILED = ("not_entailment", "entailment")
THREE = ("contradiction", "entailment", "neutral")
MNLI = [
    "index",
    "promptID",
    "pairID",
    "genre",
    *(f"sentence{n}_{kind}" for kind in ("binary_parse", "parse") for n in (1, 2)),
]
STS = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]


def sentence(number):
    """The text and the class, 0 or 1, of a row."""
    kind = number % 2
    return f'{(GOOD if kind else BAD)[number // 2 % 4]} "near', kind  # a quote that nothing closes


def table(header, rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows] if row is not None)


def numbered(count, make):
    return [make(number, *sentence(number)) for number in range(count)]


def pairs(header, labels, count, test=False):
    """A file of two sentences and a label, which a test file lacks."""
    rows = numbered(count, lambda n, text, kind: [n, text, "saw who", *([] if test else [labels[kind]])])
    return table(header[: 3 if test else 4], rows)


def glue_files(count=8):
    """The text of each file by its path in GLUE's download."""
    mnli = numbered(count, lambda n, text, kind: [n, *["x"] * 7, text, "saw who", "neutral", THREE[n % 3]])
    files = {
        "CoLA/train.tsv": table(None, numbered(count, lambda n, text, kind: ["gj04", kind, "*", text])),
        "CoLA/test.tsv": table(["index", "sentence"], numbered(count, lambda n, text, kind: [n, text])),
        "SST-2/train.tsv": table(["sentence", "label"], numbered(count, lambda n, text, kind: [f"{text} ", kind])),
        "SST-2/test.tsv": table(["index", "sentence"], numbered(count, lambda n, text, kind: [n, text])),
        "MRPC/train.tsv": "\ufeff"
        + table(
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            numbered(count, lambda n, text, kind: [kind, 100 + n, 200 + n, text, "saw who"]),
        ),
        "MRPC/test.tsv": table(
            ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            numbered(count, lambda n, text, kind: [n, 100 + n, 200 + n, text, "saw who"]),
        ),
        "QQP/train.tsv": table(
            ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            numbered(count, lambda n, text, kind: [900 + n, n, n, text, "saw who", kind]),
        ),
        "QQP/test.tsv": pairs(["id", "question1", "question2"], (), count, test=True),
        "STS-B/train.tsv": table(
            [*STS, "sentence1", "sentence2", "score"],
            numbered(count, lambda n, text, kind: [n, *["x"] * 6, text, "saw who", 1.25 * kind + n / 8]),
        ),
        "STS-B/test.tsv": table(
            [*STS, "sentence1", "sentence2"],
            numbered(count, lambda n, text, kind: [n, *["x"] * 6, text, "saw who"]),
        ),
        "MNLI/train.tsv": table([*MNLI, "sentence1", "sentence2", "label1", "gold_label"], mnli),
        "diagnostic/diagnostic.tsv": pairs(["index", "sentence1", "sentence2"], (), count, test=True),
        "QNLI/train.tsv": pairs(["index", "question", "sentence", "label"], ENTAILED, count),
        "QNLI/test.tsv": pairs(["index", "question", "sentence"], (), count, test=True),
    }
    for name, labels in (("RTE", ENTAILED), ("WNLI", (0, 1))):
        header = ["index", "sentence1", "sentence2", "label"]
        files |= {f"{name}/train.tsv": pairs(header, labels, count)}
        files |= {f"{name}/test.tsv": pairs(header, labels, count, test=True)}
    files |= {path.replace("train", "dev"): text for path, text in files.items() if "train" in path}
    del files["MNLI/dev.tsv"]
    for part in ("matched", "mismatched"):
        rows = [[*row[:10], "neutral", "neutral", "neutral", "neutral", "neutral", row[-1]] for row in mnli]
        header = [*MNLI, "sentence1", "sentence2"]
        files[f"MNLI/dev_{part}.tsv"] = table([*header, *(f"label{n}" for n in range(1, 6)), "gold_label"], rows)
        files[f"MNLI/test_{part}.tsv"] = table(header, [row[:10] for row in mnli])
    return files


def write_glue(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def write_squad(folder, version, count=6):
    """Both files of a version of SQuAD; in version 2.0 every third question has no answer."""
    paragraphs = []
    for number in range(count):
        animal, plant = GOOD[number % 4], BAD[number % 4]
        answers = [{"text": animal, "answer_start": 4}]
        question = {"id": f"q{number}", "question": "who saw", "answers": answers}
        if version == "v2.0":
            question["is_impossible"] = number % 3 == 2
            question["answers"] = [] if number % 3 == 2 else answers
        paragraphs.append({"context": f"saw {animal} near {plant}", "qas": [question]})
    folder.mkdir(exist_ok=True)
    for part in ("train", "dev"):
        text = json.dumps({"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]})
        (folder / f"{part}-{version}.json").write_text(text, encoding="utf-8")
    return folder


def tiny_bert(folder):
    """The folder of a BERT of one layer."""
    text = " ".join((*GOOD, *BAD, 'who near saw " .')) + " "
    tokenizer = train_wordpiece([text] * 9, 90)
    sizes = {"hidden_size": 32, "num_heads": 2, "num_layers": 1, "max_positions": 24, "mlp_size": 64}
    config = bertgpt.presets.bert_tiny(**sizes, vocab_size=vocabulary_size(tokenizer), initializer_range=0.2)
    model = bertgpt.BertForPreTraining(config)
    params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 4), np.int32))["params"]
    bertgpt.save_pretrained(folder, model, params, tokenizer)
    return folder
