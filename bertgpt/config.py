"""The size and the constants of a model, in one frozen dataclass."""

import dataclasses
import math

from bertgpt.errors import InputError

ARCHITECTURES = ("bert", "gpt")
ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # Hugging Face's names


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape and the equations of a model.

    Sizes count tokens (`vocab_size`, `max_positions`), features (`hidden_size`, `mlp_size`) or pieces (`num_layers`,
    `num_heads`); dropouts are probabilities. `architecture` decides whether attention is causal. The last four
    fields are read by task heads alone.

    Raises:
        InputError: a value is impossible, such as a width that its heads do not divide.
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
    labels: tuple[str, ...] = ()  # the classes' names in order; () where they have none
    problem_type: str | None = None  # one of PROBLEMS; None where only the labels' dtype tells
    classifier_dropout: float | None = None  # before a task head; hidden_dropout where None

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
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:  # NaN is not, either
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be a finite number above 0")
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 0 and under 1")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"model.hidden_size {self.hidden_size} is not divisible by model.num_heads {self.num_heads}; "
                "choose a multiple"
            )
        self._check_labels()

    def _check_labels(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))  # a list where it was read from JSON
        if self.problem_type is not None:
            _one_of("problem_type", self.problem_type, PROBLEMS)
        if self.labels and len(self.labels) != self.num_labels:
            raise InputError(f"model.labels has {len(self.labels)} names and model.num_labels is {self.num_labels}")
        if len(set(self.labels)) < len(self.labels):
            raise InputError("model.labels has a name twice; every class needs its own")

    @property
    def head_dropout(self) -> float:
        """The dropout before a task head."""
        return self.hidden_dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def problem(self) -> str:
        """What a classifier's outputs are; with Hugging Face's meaning of an absent `problem_type`."""
        return self.problem_type or (PROBLEMS[2] if self.num_labels == 1 else PROBLEMS[0])

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and what stands before it."""
        return self.architecture == "gpt"


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"model.{name} is {value!r}; choose one of {', '.join(choices)}")
