"""Tell with a run's BERT how likely one text follows another in a document."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run folder and two texts."""
    parser.add_argument("run", metavar="RUN", help="the run folder of a BERT")
    parser.add_argument("--text", required=True, metavar="A", help="the first text")
    parser.add_argument("--pair", required=True, metavar="B", help="the text that may follow it")


def run(options: argparse.Namespace) -> None:
    """Prints the probability."""
    from bertgpt.inference import next_sentence_probability
    from train.reports import say
    from train.runs import load_run, need

    model, params, tokenizer, _ = need(load_run(options.run), "bert", "predict", "generate")
    probability = next_sentence_probability(model, params, tokenizer, options.text, options.pair)
    say(f"{options.text}\n{options.pair}\n  the second follows the first: {probability:.3f}")
