"""Pretraining of BERT and GPT-1: model, objective and examples, as `train.objective` says."""

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

import bertgpt
from bertgpt.config import ModelConfig
from bertgpt.data.pretraining.masking import PAPER, MaskRule
from bertgpt.data.pretraining.packed_sources import pack
from bertgpt.data.pretraining.plans import Keep, in_memory
from bertgpt.data.pretraining.sentence_pairs import BertPairs
from bertgpt.data.pretraining.sentence_runs import SentenceRuns
from bertgpt.data.pretraining.windows import GptPieces, GptWindows
from bertgpt.data.text.store import Split
from bertgpt.errors import InputError
from bertgpt.model.blocks import Model

from ..fast_dense import fast_apply
from ..folders import token_store
from ..folders.run_folder import InitialModel, check_family, fitting_objective
from ..loader import Source
from ..sections import OBJECTIVES, DataSection, RunConfig
from ..step import Objective, bert_objective, gpt_objective, mlm_objective

STEPS = {"mlm_nsp": bert_objective, "mlm": mlm_objective, "clm": gpt_objective}
EVAL_SEED = 1  # seed of held-out examples and masks: the same in every run


def decide(config: RunConfig, initial: InitialModel | None) -> str:
    """Set `train.objective`, if it is null, to that of the initial or resumed model, or else to the paper's; return it.

    Raises:
        InputError: the objective is for the other family or masks no words, or the run in `out` has another.
    """
    classes = {architecture: name for name, architecture in OBJECTIVES.items()}
    found = classes.get(initial.architecture or "") if initial is not None else None
    if found and initial is not None and initial.is_resumed and config.train.objective not in (None, found):
        raise InputError(
            f"{config.out} was started with train.objective {found}, not {config.train.objective}; restore it, or "
            "start a new run (another out, with model.init_from to keep the weights)"
        )
    family = token_store.architecture(config) if initial is None else initial.config.architecture
    config.train.objective = config.train.objective or found or fitting_objective(family, ())
    check_family(config.train.objective, family, "the model")
    if config.train.objective == "clm" and config.data.whole_word:
        raise InputError("data.whole_word is for masked tokens, and train.objective is clm; set data.whole_word=false")
    return config.train.objective


def make_model(
    objective: str, config: ModelConfig, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> Model:
    """The model with the heads of an objective."""
    return getattr(bertgpt, OBJECTIVES[objective])(config, jnp.dtype(dtype), remat, attention=attention)


def make_objective(objective: str, model: Model) -> Objective:
    """The losses of an objective, for JAX's default device."""
    return STEPS[objective](model)._replace(apply=fast_apply(model, jax.default_backend()))


def train_source(
    split: Split, tokenizer: Tokenizer, config: RunConfig, keep: Keep = in_memory, seed: int | None = None
) -> Source:
    """The training examples, one per row; with `data.pack`, several per row.

    Args:
        split: the text.
        tokenizer: the text's.
        config: of the run.
        keep: where plans are kept.
        seed: of plans and masks; None: that of the run.
    """
    data, length, objective = config.data, config.data.sequence_length, config.train.objective
    seed = config.seed if seed is None else seed
    if objective == "clm" and data.pack:
        return pack(GptPieces(split, length, seed, keep))
    examples = _examples(split, tokenizer, config, seed, mask_rule(data), data.balance_nsp, keep)
    return pack(examples) if data.pack and not isinstance(examples, GptWindows) else examples


def eval_source(
    split: Split, tokenizer: Tokenizer, config: RunConfig, rule: MaskRule = PAPER, keep: Keep = in_memory
) -> Source:
    """The held-out examples, one per row. They depend on the objective and the length, not on the training masks."""
    return _examples(split, tokenizer, config, EVAL_SEED, rule, keep=keep)


def mask_rule(data: DataSection) -> MaskRule:
    """The masks of the training examples."""
    masked, random, kept = data.mask_split
    return MaskRule(data.mask_rate, (masked, random, kept), data.whole_word)


def _examples(
    split: Split,
    tokenizer: Tokenizer,
    config: RunConfig,
    seed: int,
    rule: MaskRule,
    balanced: bool = True,
    keep: Keep = in_memory,
) -> BertPairs | SentenceRuns | GptWindows:
    length = config.data.sequence_length
    if config.train.objective == "clm":
        return GptWindows(split, length, seed)
    if config.train.objective == "mlm":
        return SentenceRuns(split, tokenizer, length, seed, rule, keep)
    return BertPairs(split, tokenizer, length, seed, rule, balanced, keep)
