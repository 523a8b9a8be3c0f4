"""The run's configuration: each key with its default, bounds, choices and meaning."""

import dataclasses
import types
import typing
from typing import Any

from bertgpt import presets
from bertgpt.data.tasks.task import TaskSettings
from bertgpt.settings import Rules, rules_of, setting

PATHS = "a path or a list of paths"
OBJECTIVES = {  # what pretraining learns, and the model class with its heads; the first one of a family is the paper's
    "mlm_nsp": "BertForPreTraining",
    "mlm": "BertForMaskedLM",
    "clm": "OpenAIGPTLMHeadModel",
}


@dataclasses.dataclass
class ModelSection:
    """The model: a preset and any field that differs from it, or a folder to start from."""

    preset: str | None = setting(None, f"one of {', '.join(presets.ALL)}")
    init_from: str | None = setting(
        None,
        "a run or model folder to start from, with its weights and tokenizer, also at an address such as "
        "gs://bucket/run; or the name of a model on the Hugging Face hub",
        path="source",
    )
    init_revision: str | None = setting(None, "branch, tag or commit of a hub model in `model.init_from`; null: main")
    init_commit: str | None = setting(None, "the commit of `model.init_revision` when the run began; the run sets it")
    init_step: int | None = setting(
        None, "the checkpoint of the run in `model.init_from`, by its step; null: the best", least=1
    )
    architecture: str | None = setting(None, "bert or gpt")
    vocab_size: int | None = setting(None, "rows of the token embeddings; null: the tokenizer's size")
    hidden_size: int | None = setting(None, "width of the model")
    num_layers: int | None = setting(None, "blocks")
    num_heads: int | None = setting(None, "attention heads")
    mlp_size: int | None = setting(None, "width of the feed-forward layer")
    max_positions: int | None = setting(None, "longest sequence, in tokens")
    type_vocab_size: int | None = setting(None, "segments (BERT)")
    hidden_dropout: float | None = setting(None, "dropout of embeddings and of both residual branches")
    attention_dropout: float | None = setting(None, "dropout of the attention probabilities")
    layer_norm_eps: float | None = setting(None, "added to the variance by LayerNorm")
    activation: str | None = setting(None, "gelu_erf, gelu_tanh or relu")
    initializer_range: float | None = setting(None, "standard deviation of the initial weights")
    classifier_dropout: float | None = setting(None, "dropout before a task head; null: `model.hidden_dropout`")
    attention: str = setting(
        "auto",
        "auto: a fused kernel (cuDNN, or the TPU kernel) where one can; plain: ordinary JAX operations; fused: a fused "
        "kernel or an error",
        choices=("auto", "plain", "fused"),
        resumable=True,
    )


@dataclasses.dataclass
class TokenizerSection:
    """The tokenizer: one to load, or the kind and size of one to train on the corpus."""

    path: str | None = setting(
        None,
        "a tokenizer.json, a folder that has one or a vocab.txt, or the name of a model on the Hugging Face hub",
        path="model",
    )
    kind: str | None = setting(
        None, "of a new tokenizer; null: wordpiece for BERT, bpe for GPT-1", choices=("wordpiece", "bpe")
    )
    vocab_size: int | None = setting(None, "tokens of a new tokenizer; null: the preset's", least=30, most=1_000_000)
    lowercase: bool = setting(True, "whether a new WordPiece tokenizer lowercases text")
    cleanup: str | None = setting(
        None,
        "how GPT-1's tokenizer cleans text; openai: as OpenAI's code (the extra `gpt1`); null: as its tokenizer.json "
        "says, or else as transformers",
        choices=("openai",),
    )


@dataclasses.dataclass
class DataSection:
    """The text, and how examples are made from it."""

    train: str | list[str] | dict[str, float] | None = setting(
        None,
        "a file, folder, glob, URL or package:NAME/FILE, or a list of them; for a mixture (pretraining), each with its "
        "weight: `{wiki.jsonl: 3, books: 1}`",
        path="any",
        wanted=f"{PATHS}, or paths with weights above 0",
    )
    eval: str | list[str] | dict[str, str] | None = setting(
        None,
        "held-out data, a path or a list of paths; or several sets by name: `{news: news.jsonl, wiki: wiki.jsonl}`",
        path="any",
        wanted=f"{PATHS}, or paths by name (letters, digits, - and _)",
    )
    eval_fraction: float = setting(0.01, "share to hold out if `data.eval` is null", above=0, below=1)
    text_key: str = setting("text", "key or column of the text in JSON, JSONL and Parquet")
    language: str = setting("en", "language whose rules split sentences")
    sentence_per_line: bool = setting(False, "every line is a sentence")
    document: str = setting(
        "paragraph",
        "a document of plain text: the lines between blank lines, a file or a line; of other formats: a row or a file",
        choices=("paragraph", "file", "line"),
    )
    store: str | None = setting(
        None, "folder of the token store, which may be at gs://bucket/folder; null: OUT/store", path="run"
    )
    workers: int | None = setting(
        None, "processes that tokenize; null: one per core", least=1, most=1024, resumable=True
    )
    sequence_length: int = setting(128, "tokens of a training sequence", least=8, most=65_535)
    pack: bool = setting(False, "pack several examples into one row; `train.batch_size` then counts rows")
    mask_rate: float = setting(0.15, "share of the tokens that are predicted (BERT)", above=0, below=1)
    mask_split: list[float] = setting(
        [0.8, 0.1, 0.1],
        "shares of the predicted tokens that become [MASK], become a random token, and stay",
        wanted="three numbers whose sum is 1",
    )
    whole_word: bool = setting(False, "mask whole words instead of single tokens")
    balance_nsp: bool = setting(True, "as many IsNext as NotNext pairs; false: chosen at random, as in Google's BERT")


@dataclasses.dataclass
class OptimizerSection:
    """The optimizer, with decoupled weight decay, and its learning rate (docs/optimizers.md)."""

    name: str = setting("adamw", "the optimizer", choices=("adamw", "lamb", "lion", "muon"))
    learning_rate: float = setting(1e-4, "peak learning rate", least=0)
    warmup_steps: int = setting(0, "steps in which the learning rate rises linearly from 0", least=0)
    warmup_fraction: float = setting(
        0.0, "the same as a share of all steps, if `optimizer.warmup_steps` is 0", least=0, below=1
    )
    schedule: str = setting("linear", "decay of the learning rate", choices=("linear", "cosine", "constant", "wsd"))
    decay_fraction: float = setting(0.1, "last share of all steps, in which wsd decays", above=0, below=1)
    final_fraction: float = setting(0.0, "share of the peak learning rate at which a decay ends", least=0, below=1)
    layer_decay: float | None = setting(
        None, "factor of the learning rate from each layer to the one below; null: the same for all", above=0, below=1
    )
    weight_decay: float = setting(0.01, "decoupled weight decay; not for biases and LayerNorm gains", least=0)
    b1: float = setting(0.9, "decay of the gradient's running mean", least=0, below=1)
    b2: float = setting(0.999, "decay of the squared gradient's running mean", least=0, below=1)
    eps: float = setting(1e-6, "added to the denominator of the update", least=0)
    clip_norm: float = setting(1.0, "largest norm of the whole gradient; 0: no limit", least=0)
    bias_correction: bool = setting(True, "Adam's bias correction; Google's BERT has none")


@dataclasses.dataclass
class TrainSection:
    """How long to train, how large a batch is, and what is logged."""

    objective: str | None = setting(
        None,
        "what pretraining learns: masked tokens with or without next sentences (BERT), or the next token (GPT-1); "
        "null: what the heads of `model.init_from` can do, or else the paper's",
        choices=tuple(OBJECTIVES),
    )
    steps: int = setting(1000, "updates", least=1, resumable=True)
    epochs: float | None = setting(
        None,
        "passes over the data of a fine-tuning run; replaces `train.steps`, unless an override sets `train.steps`",
        above=0,
        below=1e6,
        resumable=True,
    )
    batch_size: int = setting(32, "examples per update, over all devices", least=1)
    accumulate: int = setting(1, "micro-batches that each device's rows are split into", least=1)
    freeze: str | list[str] | None = setting(
        None,
        "parameters that are not trained: `embeddings`, `encoder:6` (the first 6 blocks), a pattern of a path such as "
        "`bert/pooler/*`, or a list of these",
        wanted="a pattern or a list of patterns",
    )
    dtype: str = setting("float32", "dtype of the computation; weights are float32", choices=("float32", "bfloat16"))
    remat: str = setting(
        "none",
        "activation checkpointing; dots and full recompute more and use less memory",
        choices=("none", "dots", "full"),
        resumable=True,
    )
    log_every: int = setting(50, "steps from one row of metrics to the next", least=1, resumable=True)
    eval_every: int = setting(500, "steps from one evaluation to the next", least=1, resumable=True)
    eval_examples: int = setting(2000, "held-out examples per evaluation of a pretraining run", least=1)
    patience: int = setting(
        0, "evaluations without improvement after which the run stops; 0: never", least=0, resumable=True
    )
    tracker: str | None = setting(
        None,
        "where rows of metrics go besides metrics.jsonl: `none`, `tensorboard`, `wandb`, or a function of yours, "
        "`module:function` (docs/tracking.md); null: tensorboard if tensorboardX is installed, else none",
        resumable=True,
    )
    profile: str | None = setting(None, "first and last step of a profiler trace, such as 100:105", resumable=True)
    stall_seconds: float = setting(
        600.0,
        "a step, batch, evaluation or checkpoint that takes longer is logged; 0: never",
        least=0,
        most=10**9,
        resumable=True,
    )


@dataclasses.dataclass
class ParallelSection:
    """How a step is distributed over devices."""

    strategy: str = setting("auto", "how the step is compiled", choices=("auto", "jit", "pmap", "mesh"), resumable=True)
    data: int = setting(-1, "devices on the data axis; -1: all that remain", resumable=True)
    fsdp: int | None = setting(
        None,
        "devices that shard parameters, optimizer state and batch; null: up to 8 if `parallel.data` is -1, else 1; -1: "
        "all that remain",
        resumable=True,
    )
    gradient_dtype: str = setting(
        "float32",
        "dtype in which the devices of `parallel.fsdp` send each other the gradients of kernels, if `train.dtype` is "
        "bfloat16; sums are float32",
        choices=("float32", "bfloat16"),
        resumable=True,
    )


@dataclasses.dataclass
class CheckpointSection:
    """How often checkpoints are saved, and how many are kept."""

    every: int = setting(500, "steps from one checkpoint to the next", least=1, resumable=True)
    keep: int = setting(2, "newest checkpoints to keep, in addition to the best", least=1, resumable=True)
    best_on: str | None = setting(
        None, "the held-out set, of several in `data.eval`, that decides which checkpoint is the best; null: the first"
    )
    mirror: str | None = setting(
        None,
        "an address, such as s3://bucket/folder, to which each complete checkpoint and the small files are copied, and "
        "from which an empty `out` is restored (docs/buckets.md)",
        path="mirror",
        resumable=True,
    )


@dataclasses.dataclass
class RunConfig:
    """The configuration of a run; saved with all defaults as config.yaml in its folder."""

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    tokenizer: TokenizerSection = dataclasses.field(default_factory=TokenizerSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    optimizer: OptimizerSection = dataclasses.field(default_factory=OptimizerSection)
    task: TaskSettings = dataclasses.field(default_factory=TaskSettings)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    parallel: ParallelSection = dataclasses.field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = dataclasses.field(default_factory=CheckpointSection)
    seed: int = setting(0, "seed of initial weights, dropout, and the order and masks of the data", least=0)
    out: str = setting(
        "runs/run", "the run's folder, which may be at gs://bucket/folder (docs/buckets.md)", path="run", resumable=True
    )


class Key(typing.NamedTuple):
    """A key of the configuration.

    Attributes:
        types: types of its value, such as (str, list[str], NoneType).
        default: its default.
        rules: its bounds, choices and meaning.
    """

    types: tuple[Any, ...]
    default: Any
    rules: Rules

    @property
    def optional(self) -> bool:
        """Whether it may be null."""
        return type(None) in self.types


SECTIONS = {field.name: field.type for field in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(field.type)}


def _keys() -> dict[str, Key]:
    """Each key by its dotted name."""
    found: dict[str, Key] = {}
    for prefix, section in {**{f"{name}.": kind for name, kind in SECTIONS.items()}, "": RunConfig}.items():
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):  # type: ignore[arg-type]
            if field.name not in SECTIONS or prefix:
                kind = hints[field.name]
                choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
                factory = field.default_factory
                default = field.default if factory is dataclasses.MISSING else factory()
                found[prefix + field.name] = Key(choices, default, rules_of(field))
    return found


KEYS = _keys()
SIZES = (
    "architecture",
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "mlp_size",
    "max_positions",
    "type_vocab_size",
)  # of the model; initial weights fix them
