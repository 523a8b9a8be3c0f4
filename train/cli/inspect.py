"""Show a model's architecture, configuration, tensors and tokenizer, and what can be done with it."""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import add_model, whole_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bertgpt.checkpoints.contents import Contents, Entry

LAYER = re.compile(r"(layer\.|h\.|block_)(\d+)(?=[./])")  # the number of a layer in a name
MOST_TOKENS = 12  # special and added tokens that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: a run folder, a model folder or a name."""
    add_model(parser, "a run folder, or a model folder of any format")
    parser.add_argument("--step", type=whole_number, metavar="N", help="checkpoint of a run (default: the best)")


def run(options: argparse.Namespace) -> None:
    """Print the description line by line. Weights are not read."""
    from ..folders.run_folder import inspect_run
    from ..reports import say

    found = inspect_run(options.run, options.step, options.revision)
    for line in describe(options.run, found.contents, found.tokenizer, found.place):
        say(line)


def describe(folder: str, contents: "Contents", tokenizer: "Tokenizer | str", place: str) -> Iterator[str]:
    """Yield the lines that describe a model."""
    used = [entry for entry in contents.entries if entry.paths]
    parameters = sum(math.prod(entry.shape) for entry in used)
    yield f"{folder}: {contents.architecture}, {place}, {parameters:,} parameters"
    settings = {key: value for key, value in dataclasses.asdict(contents.config).items() if value not in (None, ())}
    yield "configuration: " + "  ".join(f"{key}={value}" for key, value in settings.items())
    yield "tensors:"
    yield from _table(contents.entries)
    unused = [entry.name for entry in contents.entries if not entry.paths]
    yield f"not used by {contents.architecture}: {_listed(unused)}"
    yield f"missing: {_listed(contents.missing)}"
    yield from [f"tokenizer: {tokenizer}"] if isinstance(tokenizer, str) else _tokenizer(tokenizer)
    yield f"can be used for: {', '.join(_uses(contents, tokenizer))}"


def _table(entries: "tuple[Entry, ...]") -> Iterator[str]:
    """Yield one line per tensor, with its name, shape, dtype and parameters. Equal layers share a line."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for entry in entries:
        number = LAYER.search(entry.name)
        key = (*(LAYER.sub(r"\1{}", name) for name in (entry.name, ", ".join(entry.paths))), entry.shape, entry.dtype)
        groups.setdefault(key, []).extend([int(number[2])] if number else [])
    rows = []
    for (name, paths, shape, dtype), layers in groups.items():
        span = _span(layers)
        rows.append((name.replace("{}", span), str(list(shape)), dtype, paths.replace("{}", span) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  " + "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])


def _span(layers: list[int]) -> str:
    """The numbers of layers: {0..11}, or {0,2} if some between them differ."""
    if len(layers) < 2:
        return str(*layers)
    whole = sorted(layers) == list(range(min(layers), max(layers) + 1))
    return f"{{{min(layers)}..{max(layers)}}}" if whole else f"{{{','.join(map(str, sorted(layers)))}}}"


def _listed(names: Any) -> str:
    layers = dict.fromkeys(LAYER.sub(r"\1{}", name).replace("{}", "*") for name in names)
    return ", ".join(layers) or "nothing"


def _tokenizer(tokenizer: "Tokenizer") -> Iterator[str]:
    """Yield the kind and size of a tokenizer, and its special and added tokens."""
    described = json.loads(tokenizer.to_str())
    lowercase = (described["normalizer"] or {}).get("lowercase")
    case = "" if lowercase is None else ", lower-cases text" if lowercase else ", keeps upper and lower case"
    cleanup = ", OpenAI's clean-up" if "cleanup" in (described["normalizer"] or {}) else ""
    yield f"tokenizer: {described['model']['type']}, {len(tokenizer.get_vocab()):,} tokens{case}{cleanup}"
    for title, special in (("special tokens", True), ("added tokens", False)):
        found = [
            f"{token['content']} {token['id']}" for token in described["added_tokens"] if token["special"] == special
        ]
        more = f" and {len(found) - MOST_TOKENS} more" if len(found) > MOST_TOKENS else ""
        yield f"  {title}: {', '.join(found[:MOST_TOKENS]) or 'none'}{more}"


def _uses(contents: "Contents", tokenizer: "Tokenizer | str") -> list[str]:
    """The commands that take the model as it is."""
    from bertgpt.checkpoints.hf_mapping import heads
    from bertgpt.inference.predict import SPECS

    from ..folders.run_folder import fitting_objective
    from ..sections import OBJECTIVES

    if isinstance(tokenizer, str):
        return ["load_pretrained in Python (the commands need a tokenizer in the folder)"]
    name, config = contents.architecture, contents.config
    objective = fitting_objective(config.architecture, contents.heads)
    new = "" if heads(OBJECTIVES[objective]) <= contents.heads else ", new heads"
    pretrain = f"pretrain (train.objective={objective}{new})"
    if contents.missing:
        return [pretrain, f"load_pretrained(..., architecture=...) in Python, since a {name} lacks tensors"]
    present = heads(name)
    uses = ["fill-mask"] * ("mlm" in present) + ["generate"] * (name == "OpenAIGPTLMHeadModel")
    kinds = [kind for kind, spec in SPECS.items() if name in spec.architectures.values() and kind != "sft"]
    tasks = [kind for kind in kinds if SPECS[kind].problem in (None, config.problem)]
    tasks += ["next sentence"] * ("nsp" in present)
    uses += [f"predict ({', '.join(tasks)})"] if tasks else []
    return [*uses, "embed", pretrain, "finetune", "export"]
