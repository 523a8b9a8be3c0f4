"""Predict with a fine-tuned model, one JSON object per line; with a pretrained BERT, whether --pair follows --text."""

import argparse
from collections.abc import Iterator
from typing import Any

from . import add_model, whole_number
from .texts import input_lines

EXTRA = {"question_answering": "question", "multiple_choice": "choice", "tagging": "", "sft": ""}  # other tasks: pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run or model folder, and texts from options, a file or standard input."""
    add_model(parser, "a run folder, or a model folder with a task head")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="such as task.null_threshold=0")
    parser.add_argument("--text", metavar="A", help="a text; for a question, the text with the answer")
    parser.add_argument("--pair", metavar="B", help="the second text of a pair")
    parser.add_argument("--question", metavar="Q", help="a question about the text")
    parser.add_argument("--choice", metavar="C", action="append", help="a choice; give two or more")
    parser.add_argument("--file", metavar="PATH", help="rows in any format that finetune reads")
    parser.add_argument(
        "--max-new-tokens", type=whole_number, default=64, metavar="N", help="most tokens of a response (default 64)"
    )


def run(options: argparse.Namespace) -> None:
    """Print the predictions; without --text and --file, for the lines of standard input."""
    import json
    import sys

    from bertgpt.errors import InputError, quoted

    from ..folders import run_folder
    from ..jobs import evaluating
    from ..progress import counted

    for given in options.overrides:
        if "=" not in given:
            raise InputError(
                f"{quoted(given)}: give a text with --text, in quotes, a file with --file, and settings as KEY=VALUE"
            )
    if options.max_new_tokens < 1:
        raise InputError("--max-new-tokens must be at least 1")
    if options.text is not None and options.file is not None:
        raise InputError("give --text or --file, not both")
    run = run_folder.load_run(options.run, revision=options.revision)
    if type(run.model).__name__ in ("BertForPreTraining", "BertForNextSentencePrediction"):
        _next_sentence(run, options)
        return
    tuned = evaluating.load_tuned(run, options.run, options.overrides)
    found = evaluating.predict(tuned, _rows(tuned, options), options.max_new_tokens)
    shown = options.text is None and not sys.stdout.isatty()  # a terminal shows the predictions themselves
    number = 0
    for prediction in counted(found, "predicting", "rows", lambda: _count_rows(tuned, options), shown):
        number += 1
        print(json.dumps(prediction, ensure_ascii=False), flush=True)
    if not number:
        raise InputError("there are no texts; give --text, --file, or lines on standard input")


def _next_sentence(run: Any, options: argparse.Namespace) -> None:
    from bertgpt.errors import InputError, quoted
    from bertgpt.inference.fill_mask import next_sentence_probability

    from ..reports import check_text, say

    if options.overrides:
        raise InputError(f"{quoted(options.overrides[0])}: has no effect on a pretrained BERT; remove it")
    others = (options.question, options.choice, options.file)
    if options.text is None or options.pair is None or any(other is not None for other in others):
        raise InputError("a pretrained BERT predicts whether --pair follows --text; give both, or a fine-tuned run")
    for text in (options.text, options.pair):
        check_text(text)
    probability = next_sentence_probability(run.model, run.params, run.tokenizer, options.text, options.pair)
    say(f"{options.text}\n{options.pair}\n  the second follows the first: {probability:.3f}")


def _rows(tuned: Any, options: argparse.Namespace) -> Iterator[Any]:
    """The rows to predict."""
    from bertgpt.data.tasks.readers import make_row, read_rows
    from bertgpt.data.tasks.rows import Row
    from bertgpt.errors import InputError

    from ..config import expand_home
    from ..jobs.evaluating import main_column
    from ..reports import check_text

    task, column = tuned.config.task, main_column(tuned)
    if options.file is not None:
        file = expand_home(options.file, "--file")
        return read_rows(file, word_column=task.word_column, tag_column=task.tag_column)
    given = {
        column: options.text,
        task.pair or "pair": options.pair,
        task.question: options.question,
        "choices": options.choice,
    }
    if options.choice is not None:
        task.choices = "choices"  # not a list of columns
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("pair", "question", "choice"):
        if getattr(options, name) is not None and name != EXTRA.get(tuned.kind, "pair"):
            raise InputError(f"--{name} is not for {tuned.kind}; remove it")
    if options.pair is not None and options.text is not None and not task.pair:
        if (tuned.folder / "config.yaml").is_file():
            raise InputError("--pair: this run was fine-tuned on single texts (task.pair is null); remove it")
        task.pair = "pair"  # a model folder has no task settings
    for text in (text for value in values.values() for text in ([value] if isinstance(value, str) else value)):
        check_text(text)
    if options.text is not None:
        return iter([Row("--text", values)])
    if values:
        raise InputError("--pair, --question and --choice need --text")
    return (make_row(place, values) for place, values in input_lines(column))


def _count_rows(tuned: Any, options: argparse.Namespace) -> int | None:
    """The number of rows in --file; None without it, or if they cannot all be read, which the predictions tell."""
    from bertgpt.errors import InputError

    try:
        return None if options.file is None else sum(1 for _ in _rows(tuned, options))
    except InputError:
        return None
