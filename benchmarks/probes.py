"""Ask a BERT to fill ten masks, and compare it with the model before training and with word frequencies.

python -m benchmarks.probes RUN

The ten sentences are from held-out introductions of the demo corpus. They were chosen before any model was trained with
the present settings, and each must be absent from the training rows. An answer is right if the word of the
introduction is among the first five. The model before training is the initial model of the run (`model.init_from`, or
random weights); the word frequencies are those of the training rows.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks import side_by_side
from bertgpt.data.text.store import open_split
from bertgpt.errors import InputError
from bertgpt.inference.fill_mask import fill_mask
from bertgpt.model.blocks import Model
from train import config as configs
from train.folders.run_folder import load_for_pretraining, load_run
from train.folders.token_store import store_folder
from train.reports import console, say
from train.sections import RunConfig


class Probe(NamedTuple):
    """A sentence with one [MASK], and the word of the introduction in its place, in lower case."""

    text: str
    answer: str


PROBES = (
    Probe("By land area, it is the second-largest [MASK] in Africa and the eleventh-largest in the world.", "country"),
    Probe("Zambia, officially the [MASK] of Zambia, is a landlocked country in Southern Africa.", "republic"),
    Probe("Oran is a major coastal [MASK] located in the northwest of Algeria.", "city"),
    Probe("It is the only genus in the [MASK] Cannaceae.", "family"),
    Probe("Christianity emerged under Roman rule in the 1st [MASK] AD.", "century"),
    Probe("It is one of the seven base quantities of the International [MASK] of Units, SI.", "system"),
    Probe("Moa are an extinct group of flightless birds formerly endemic to New [MASK].", "zealand"),
    Probe("Agave is a [MASK] of monocots native to the arid regions of the Americas.", "genus"),
    Probe("Gujarat is a state along the western [MASK] of India.", "coast"),
    Probe("Aeschylus was an ancient [MASK] tragedian, often described as the father of tragedy.", "greek"),
)


def check_absent(config: RunConfig) -> None:
    """
    Raises:
        InputError: a sentence of `PROBES` is in a document of the training text.
    """
    sentences = [filled(probe) for probe in PROBES]
    for document in configs.text_source(config).documents("train"):
        text = plain(" ".join(document))
        for sentence in sentences:
            if sentence in text:
                raise InputError(f"data.train contains the probe {sentence!r}; the answers would be no test")


def filled(probe: Probe) -> str:
    """The sentence with its word, as `plain` text."""
    return plain(probe.text.replace("[MASK]", probe.answer))


def plain(text: str) -> str:
    """The text in lower case, with runs of white space as one space."""
    return " ".join(text.lower().split())


def guesses(model: Model, params: Any, tokenizer: Tokenizer) -> list[list[str]]:
    """The five likeliest tokens for the [MASK] of each probe."""
    return [[word for word, _ in fill_mask(model, params, tokenizer, probe.text)[0]] for probe in PROBES]


def commonest(config: RunConfig, tokenizer: Tokenizer) -> list[str]:
    """The five commonest tokens of the training rows."""
    counts = np.array(open_split(store_folder(config), "train").counts)
    return [tokenizer.id_to_token(int(index)) or "" for index in np.argsort(-counts, kind="stable")[:5]]


def before_training(run: Path, config: RunConfig) -> tuple[Model, Any]:
    """The model that the run began with: that of `model.init_from`, or random weights."""
    if config.model.init_from:
        with warnings.catch_warnings(action="ignore"):  # the run has told which head is new
            initial = load_for_pretraining(Path(config.model.init_from), objective=config.train.objective)
        return initial.model, initial.params
    model = load_run(run).model
    return model, model.init(jax.random.key(config.seed), np.zeros((1, 8), np.int32))["params"]


def count_right(found: list[list[str]]) -> int:
    """How many probes have their answer among the words."""
    return sum(probe.answer in words for probe, words in zip(PROBES, found, strict=True))


def main() -> None:
    """Print the words for each probe, and how many are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run on the demo corpus")
    run = parser.parse_args().run
    config, trained = configs.load(str(run / "config.yaml")), load_run(run)
    check_absent(config)
    found = guesses(trained.model, trained.params, trained.tokenizer)
    table = Table("", "sentence", "first five words")
    for probe, words in zip(PROBES, found, strict=True):
        table.add_row("right" if probe.answer in words else "", probe.text.replace("[MASK]", "____"), ", ".join(words))
    console.print(table)
    before = count_right(guesses(*before_training(run, config), trained.tokenizer))
    unigram = count_right([commonest(config, trained.tokenizer)] * len(PROBES))
    say(
        f"right among the first five: {count_right(found)} of {len(PROBES)}; before training {before}; "
        f"the five commonest tokens {unigram}"
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(side_by_side.leave(main))
