"""The labelled rows of a fine-tuning run, and their split into training and held-out rows."""

import hashlib
import itertools
import json
from typing import Any

from bertgpt.data.tasks.readers import data_digest, read_all_rows
from bertgpt.data.tasks.rows import Row
from bertgpt.data.tasks.task import TaskSettings
from bertgpt.data.text.text_source import split_name
from bertgpt.errors import InputError

from ..folders.checkpoints import Checkpoints
from ..reports import warn
from ..sections import RunConfig

HELD_OUT = "inputs-1"  # identifies the rule of `_hold_out` in checkpoints; another rule needs another name
INPUTS = {"question_answering": "context", "tagging": "words", "multiple_choice": "text and choices", "sft": "prompt"}


def read_splits(config: RunConfig) -> dict[str, list[Row]]:
    """The rows of training and evaluation, as "train" and "eval" (or "eval.NAME" of several held-out sets); without
    data.eval, a share of the training rows is held out.

    Raises:
        InputError: data.train is missing, a split has no rows, or, without data.eval, a row lacks a column of the task.
    """
    data = config.data
    if not data.train:
        raise InputError("data.train is missing; set it to a file of rows")
    if isinstance(data.train, dict):
        raise InputError("data.train has weights, which are for pretraining; give a path or a list of paths")
    columns = {"word_column": config.task.word_column, "tag_column": config.task.tag_column}
    rows = {}
    for key, splits in (("train", {"train": data.train}), ("eval", _named(data.eval))):
        for split, address in splits.items():
            try:
                rows[split] = read_all_rows(address, **columns)
            except InputError as error:
                more = "; set data.eval=null to hold rows out" if key == "eval" and "no such file" in str(error) else ""
                raise InputError(f"data.{key}: {error}{more}") from error
    for split, found in rows.items():
        if not found:
            kind, _, name = split.partition(".")
            given = data.train if kind == "train" else eval_sets(data.eval)[name]
            raise InputError(f"data.{kind}: no rows in {given}")
    return rows if data.eval else _hold_out(config, rows["train"])


def _named(given: Any) -> dict[str, Any]:
    """The addresses in `data.eval` by the name of their split."""
    return {split_name("eval", name): address for name, address in eval_sets(given).items()}


def eval_sets(given: Any) -> dict[str, Any]:
    """The addresses in `data.eval` by the name of their set; "" if there is one set."""
    if isinstance(given, dict):
        return given
    return {"": given} if given else {}


def _hold_out(config: RunConfig, rows: list[Row]) -> dict[str, list[Row]]:
    """Hold out a share of the rows for evaluation.

    A hash of a row's input decides. So rows with equal inputs are in the same split; labels, unused columns and the
    order of rows do not matter.
    """
    share = config.data.eval_fraction
    splits: dict[str, list[Row]] = {"train": [], "eval": []}
    for row in rows:
        splits["eval" if input_digest(config.task, row) < share * 2**64 else "train"].append(row)
    for split, change in (("train", "lower"), ("eval", "raise")):
        if not splits[split]:
            problem = f"data.eval_fraction={share:g} of data.train leaves no rows for data.{split}"
            raise InputError(f"{problem} (rows with equal inputs stay together); {change} it, or set data.eval")
    return splits


def input_digest(settings: TaskSettings, row: Row) -> int:
    """A 64-bit hash of `input_key`."""
    digest = hashlib.blake2b(input_key(settings, row).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def input_key(settings: TaskSettings, row: Row) -> str:
    """The input of a row, as JSON in which each run of white space is one space.

    The input is the text with its pair or choices, or the words. For a question it is only the context, so all
    questions about a context have the same key. For a response it is the prompt, or the messages before the assistant's
    first message.

    Raises:
        InputError: a column is missing or empty.
    """
    kind, choices = settings.kind, settings.choices
    if kind == "sft" and row.values.get(settings.messages) is not None:
        found = _opening(row.values[settings.messages])
    elif kind == "sft":
        found = [row.get(settings.prompt, "task.prompt")]
    elif kind == "question_answering":
        found = [row.get(settings.context, "task.context")]
    elif kind == "tagging":
        words = row.get(settings.words, "task.words")
        found = words.split() if isinstance(words, str) else words
    else:
        found = [row.get(settings.text, "task.text")]
        if kind == "multiple_choice":
            columns = [choices] if isinstance(choices, str) else choices
            found += [row.get(column, "task.choices") for column in columns]
        elif settings.pair:
            found.append(row.get(settings.pair, "task.pair"))
    return json.dumps(_single_spaced(found), sort_keys=True, default=str)


def _opening(messages: Any) -> Any:
    """The messages before the assistant's first; other values are returned unchanged, and rejected later."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    opening = itertools.takewhile(lambda message: message.get("role") != "assistant", messages)
    return [message.get("content") for message in opening]


def _single_spaced(value: Any) -> Any:
    if isinstance(value, list):
        return [_single_spaced(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def rows_digest(config: RunConfig) -> str:
    """A hash of the rows of all splits; for held-out rows, the name of the rule that chose them."""
    held_out = "-".join(map(data_digest, eval_sets(config.data.eval).values())) or HELD_OUT
    train: Any = config.data.train or []  # never a mixture: see `read_splits`
    return f"{data_digest(train)}-{held_out}"


def check_held_out(checkpoints: Checkpoints, step: int, advice: str) -> None:
    """
    Raises:
        InputError: the run held out other rows than this version would.
    """
    digest = checkpoints.extra(step)["data"]
    if not digest.endswith(f"-{HELD_OUT}"):
        problem = "another version split data.train by another rule, so its held-out rows cannot be reproduced"
        raise InputError(f"{checkpoints.folder.parent}: {problem}; {advice}")


def warn_of_shared(settings: TaskSettings, rows: dict[str, list[Row]]) -> None:
    """Warn if rows of data.eval are also in data.train."""
    same = INPUTS.get(str(settings.kind), "text and pair" if settings.pair else "text")
    for split, shared in count_shared(settings, rows).items():
        warn(
            f"{shared:,} of {len(rows[split]):,} rows of data.{split} are also in data.train (same {same}), so the "
            "scores say little about new rows; remove them from one of the two, or set data.eval=null to hold rows out"
        )


def count_shared(settings: TaskSettings, rows: dict[str, list[Row]]) -> dict[str, int]:
    """For each held-out set that has them, the number of rows whose input is also in the training rows."""
    known = {input_digest(settings, row) for row in rows["train"]}
    held_out = {split: found for split, found in rows.items() if split != "train"}
    shared = {split: sum(input_digest(settings, row) in known for row in found) for split, found in held_out.items()}
    return {split: count for split, count in shared.items() if count}
