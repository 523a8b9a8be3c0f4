"""Pretraining of BERT and GPT-1: model, objective and examples."""

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

import bertgpt
from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.packing import Packed, most_examples
from bertgpt.data.pretraining.sentence_pairs import BertPairs, pack_pairs
from bertgpt.data.pretraining.windows import GptPieces, GptWindows
from bertgpt.data.text.store import Split
from bertgpt.model.blocks import Model

from ..cpu import fast_apply
from ..folders.run_folder import PRETRAINED
from ..loader import Source
from ..sections import RunConfig
from ..step import Objective, bert_objective, gpt_objective


def make_model(config: ModelConfig, dtype: str = "float32", remat: str = "none") -> Model:
    """The model of an architecture, with its pretraining heads."""
    return getattr(bertgpt, PRETRAINED[config.architecture])(config, jnp.dtype(dtype), remat)


def make_objective(model: Model, config: ModelConfig) -> Objective:
    """The pretraining objective of an architecture, for JAX's default device."""
    objective = bert_objective(model) if config.architecture == "bert" else gpt_objective(model)
    return objective._replace(apply=fast_apply(model, jax.default_backend()))


def make_source(
    split: Split, tokenizer: Tokenizer, config: RunConfig, architecture: str, seed: int, pack: bool = False
) -> Source:
    """The examples of a split, one per row; with `pack`, several per row."""
    data, length = config.data, config.data.sequence_length
    if architecture == "gpt" and pack:
        return Packed(GptPieces(split, length, seed), most_examples(length), seed)
    if architecture == "gpt":
        return GptWindows(split, length, seed)
    pairs = BertPairs(split, tokenizer, length, seed, data.whole_word, data.balance_nsp)
    return pack_pairs(pairs) if pack else pairs
