"""The sizes and constants of a model, in one frozen dataclass."""

import dataclasses
import math

from bertgpt.errors import InputError, excerpt, quoted

ARCHITECTURES = ("bert", "gpt")
ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
MOST_LAYERS = 1000
MOST_PARAMETERS = 1 << 40  # far more than any BERT or GPT-1; the size of an array in bytes must fit 63 bits
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # Hugging Face's names


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the shapes and the equations of a model.

    `vocab_size` and `max_positions` count tokens, `hidden_size` and `mlp_size` features. Dropouts are probabilities.
    `architecture` decides whether attention is causal. Only task heads read the last four fields.

    Raises:
        InputError: a value is invalid, such as a `hidden_size` that is not divisible by `num_heads`.
    """

    architecture: str  # "bert" or "gpt"
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    max_positions: int = 512
    type_vocab_size: int = 2  # segments; unused by gpt
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    activation: str = "gelu_erf"
    initializer_range: float = 0.02
    num_labels: int = 2
    labels: tuple[str, ...] = ()  # the names of the classes in order; () if they have no names
    problem_type: str | None = None  # one of PROBLEMS; None: see `problem`
    classifier_dropout: float | None = None  # before a task head; None: hidden_dropout

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, ARCHITECTURES)
        _one_of("activation", self.activation, ACTIVATIONS)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "mlp_size",
            "max_positions",
            "type_vocab_size",
            "num_labels",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {excerpt(getattr(self, name))}; it must be at least 1")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:  # false for NaN too
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be a finite number above 0")
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads {self.num_heads}; "
                "choose a multiple"
            )
        if self.num_layers > MOST_LAYERS:
            raise InputError(f"model.num_layers is {excerpt(self.num_layers)}; it must be at most {MOST_LAYERS:,}")
        if self.approximate_parameters > MOST_PARAMETERS:
            sizes = ("hidden_size", "mlp_size", "vocab_size", "max_positions", "type_vocab_size", "num_labels")
            largest = max(sizes, key=lambda name: getattr(self, name))
            raise InputError(
                f"model.{largest} is {excerpt(getattr(self, largest))}: with it the model has over {MOST_PARAMETERS:,} "
                "parameters; lower it"
            )
        self._check_labels()

    def _check_labels(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # JSON gives a list
        if self.problem_type is not None:
            _one_of("problem_type", self.problem_type, PROBLEMS)
        if self.labels and len(self.labels) != self.num_labels:
            raise InputError(
                f"model.labels has {len(self.labels)} names and model.num_labels is {self.num_labels}; make them equal"
            )
        if len(set(self.labels)) < len(self.labels):
            raise InputError("model.labels contains a name twice; give each class a different name")

    @property
    def approximate_parameters(self) -> int:
        """The number of parameters of the kernels and embeddings; biases and LayerNorm add few."""
        embedded = self.vocab_size + self.max_positions + self.type_vocab_size + self.num_labels
        return self.hidden_size * (embedded + self.num_layers * (4 * self.hidden_size + 2 * self.mlp_size))

    @property
    def head_dropout(self) -> float:
        """The dropout before a task head."""
        return self.hidden_dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def problem(self) -> str:
        """The problem type of a classifier; if `problem_type` is None, the one that Hugging Face derives.

        Hugging Face takes regression for one label, and single-label classification for more.
        """
        return self.problem_type or (PROBLEMS[2] if self.num_labels == 1 else PROBLEMS[0])

    @property
    def causal(self) -> bool:
        """Whether a position attends only to itself and earlier positions."""
        return self.architecture == "gpt"


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"model.{name} is {quoted(value)}; choose one of {', '.join(choices)}")
