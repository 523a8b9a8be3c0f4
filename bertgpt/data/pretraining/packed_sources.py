"""Packing of every source of pretraining examples, with the limits that suit it."""

from bertgpt.data.pretraining.packing import Packed, most_examples
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns, pack_runs
from bertgpt.data.pretraining.windows import GptPieces


def pack(source: BertPairs | SentenceRuns | GptPieces) -> Packed:
    """The examples of a source in packed rows of T tokens, several in a row, which do not attend to each other.

    A batch then also has `position_ids`, `pack_ids` and, for pairs, `cls_positions`, which the model takes
    (docs/data.md).
    """
    if isinstance(source, BertPairs):
        return pack_pairs(source)
    if isinstance(source, SentenceRuns):
        return pack_runs(source)
    return Packed(source, most_examples(source.sequence_length), source.seed, keep=source.keep)
