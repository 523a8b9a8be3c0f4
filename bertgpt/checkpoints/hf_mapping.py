"""Hugging Face's names and layouts of all parameters: one table per architecture, used for loading and saving.

A Hugging Face name is flat, such as `bert.encoder.layer.0.output.dense.weight`. A path of this library is nested, such
as `bert/stack/block_0/feed_forward/down/kernel`. In these tables both include the prefix of the encoder (`bert` or
`transformer`), which a bare `BertModel` or `OpenAIGPTModel` does not have.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple


class Entry(NamedTuple):
    """A tensor of Hugging Face's and the parameters of this library that it contains.

    Attributes:
        hf_name: the name in Hugging Face's file.
        paths: the parameters; several are concatenated along the last axis (GPT-1's query, key, value).
        transpose: whether the tensor is [out, in], as in torch's Linear; all others have this library's layout.
    """

    hf_name: str
    paths: tuple[str, ...]
    transpose: bool = False


def _linear(hf_name: str, path: str, bias: bool = True) -> list[Entry]:
    """Return the entries of a torch nn.Linear."""
    weight = Entry(f"{hf_name}.weight", (f"{path}/kernel",), transpose=True)
    return [weight, Entry(f"{hf_name}.bias", (f"{path}/bias",))] if bias else [weight]


def _conv1d(hf_name: str, *paths: str) -> list[Entry]:
    """Return the entries of OpenAI's Conv1D, [in, out]."""
    return [
        Entry(f"{hf_name}.weight", tuple(f"{path}/kernel" for path in paths)),
        Entry(f"{hf_name}.bias", tuple(f"{path}/bias" for path in paths)),
    ]


def _norm(hf_name: str, path: str) -> list[Entry]:
    return [Entry(f"{hf_name}.weight", (f"{path}/scale",)), Entry(f"{hf_name}.bias", (f"{path}/bias",))]


def _embedding(hf_name: str, path: str) -> Entry:
    return Entry(f"{hf_name}.weight", (f"{path}/embedding",))


def _bert_encoder(layers: int) -> Iterator[Entry]:
    for hf_name, path in (("word", "token"), ("position", "position"), ("token_type", "segment")):
        yield _embedding(f"bert.embeddings.{hf_name}_embeddings", f"bert/embeddings/{path}")
    yield from _norm("bert.embeddings.LayerNorm", "bert/embeddings/norm")
    for layer in range(layers):
        hf_name, path = f"bert.encoder.layer.{layer}", f"bert/stack/block_{layer}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{hf_name}.attention.self.{name}", f"{path}/attention/{name}")
        yield from _linear(f"{hf_name}.attention.output.dense", f"{path}/attention/out")
        yield from _norm(f"{hf_name}.attention.output.LayerNorm", f"{path}/attention_norm")
        yield from _linear(f"{hf_name}.intermediate.dense", f"{path}/feed_forward/up")
        yield from _linear(f"{hf_name}.output.dense", f"{path}/feed_forward/down")
        yield from _norm(f"{hf_name}.output.LayerNorm", f"{path}/feed_forward_norm")


def _bert_mlm(layers: int) -> Iterator[Entry]:
    yield from _linear("cls.predictions.transform.dense", "mlm_head/dense")
    yield from _norm("cls.predictions.transform.LayerNorm", "mlm_head/norm")
    yield Entry("cls.predictions.bias", ("mlm_head/bias",))


def _gpt_transformer(layers: int) -> Iterator[Entry]:
    yield _embedding("transformer.tokens_embed", "transformer/token")
    yield _embedding("transformer.positions_embed", "transformer/position")
    for layer in range(layers):
        hf_name, path = f"transformer.h.{layer}", f"transformer/stack/block_{layer}"
        yield from _conv1d(
            f"{hf_name}.attn.c_attn", *(f"{path}/attention/{name}" for name in ("query", "key", "value"))
        )
        yield from _conv1d(f"{hf_name}.attn.c_proj", f"{path}/attention/out")
        yield from _norm(f"{hf_name}.ln_1", f"{path}/attention_norm")
        yield from _conv1d(f"{hf_name}.mlp.c_fc", f"{path}/feed_forward/up")
        yield from _conv1d(f"{hf_name}.mlp.c_proj", f"{path}/feed_forward/down")
        yield from _norm(f"{hf_name}.ln_2", f"{path}/feed_forward_norm")


PARTS: dict[str, Callable[[int], Iterator[Entry]]] = {
    "encoder": _bert_encoder,
    "pooler": lambda layers: iter(_linear("bert.pooler.dense", "bert/pooler")),
    "mlm": _bert_mlm,
    "nsp": lambda layers: iter(_linear("cls.seq_relationship", "nsp_head")),
    "classifier": lambda layers: iter(_linear("classifier", "classifier")),
    "qa": lambda layers: iter(_linear("qa_outputs", "qa_outputs")),
    "transformer": _gpt_transformer,
    "lm": lambda layers: iter(()),  # the tied head adds no parameters
    "choice": lambda layers: iter(_linear("multiple_choice_head.summary", "multiple_choice_head")),
    "score": lambda layers: iter(_linear("score", "score", bias=False)),
}
BACKBONES = ("encoder", "transformer")  # parts that must be in the file and are never randomly initialized


class Family(NamedTuple):
    """What the architectures of one model_type share.

    Attributes:
        architecture: the value of `ModelConfig.architecture`.
        prefix: the prefix of the encoder's names.
        roots: the first components of the encoder's names in a file without the prefix.
        tied: second name -> first name of one tensor; if a file contains both, they must be equal.
        buffers: a regular expression for the names of tensors that are not parameters.
        architectures: the parts of each architecture; the first architecture is the bare model.
    """

    architecture: str
    prefix: str
    roots: tuple[str, ...]
    tied: dict[str, str]
    buffers: str
    architectures: dict[str, tuple[str, ...]]


FAMILIES = {
    "bert": Family(
        "bert",
        "bert",
        ("embeddings", "encoder", "pooler"),
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        r"bert\.embeddings\.(position_ids|token_type_ids)",
        {
            "BertModel": ("encoder", "pooler"),
            "BertForPreTraining": ("encoder", "pooler", "mlm", "nsp"),
            "BertForMaskedLM": ("encoder", "mlm"),
            "BertForNextSentencePrediction": ("encoder", "pooler", "nsp"),
            "BertForSequenceClassification": ("encoder", "pooler", "classifier"),
            "BertForMultipleChoice": ("encoder", "pooler", "classifier"),
            "BertForTokenClassification": ("encoder", "classifier"),
            "BertForQuestionAnswering": ("encoder", "qa"),
        },
    ),
    "openai-gpt": Family(
        "gpt",
        "transformer",
        ("tokens_embed", "positions_embed", "h"),
        {"lm_head.weight": "transformer.tokens_embed.weight"},
        r"transformer\.(position_ids|h\.\d+\.attn\.(bias|masked_bias))|position_ids",
        {
            "OpenAIGPTModel": ("transformer",),
            "OpenAIGPTLMHeadModel": ("transformer", "lm"),
            "OpenAIGPTDoubleHeadsModel": ("transformer", "lm", "choice"),
            "OpenAIGPTForSequenceClassification": ("transformer", "score"),
        },
    ),
}


def family_of(architecture: str) -> str | None:
    """Return the model_type of an architecture; None if the architecture is unknown."""
    return next((name for name, family in FAMILIES.items() if architecture in family.architectures), None)


def has_lm_head(architecture: str) -> bool:
    """Whether an architecture computes logits over the vocabulary, with the token embeddings as weights."""
    family = family_of(architecture)
    return family is not None and bool({"mlm", "lm"} & set(FAMILIES[family].architectures[architecture]))


def entries(family: Family, architecture: str, layers: int) -> list[Entry]:
    """Return the entries of all tensors of an architecture, with the encoder's prefix in both names."""
    return [entry for part in family.architectures[architecture] for entry in PARTS[part](layers)]


def heads(architecture: str) -> set[str]:
    """Return the parts of an architecture besides its encoder, such as {"pooler", "mlm", "nsp"}."""
    family = family_of(architecture)
    return set() if family is None else set(FAMILIES[family].architectures[architecture]) - set(BACKBONES)


def heads_among(family: Family, hf_names: Collection[str]) -> set[str]:
    """Return the parts besides the encoder of which every tensor is among the names."""
    parts = {part for architecture in family.architectures for part in heads(architecture)}
    return {part for part in parts if all(entry.hf_name in hf_names for entry in PARTS[part](0))}


def backbone(family: Family, layers: int) -> set[str]:
    """Return Hugging Face's names of the encoder's tensors, which every architecture needs."""
    parts = set(family.architectures[next(iter(family.architectures))]) & set(BACKBONES)
    return {entry.hf_name for part in parts for entry in PARTS[part](layers)}


def normalize_hf_name(family: Family, name: str) -> str | None:
    """Return the table's spelling of a name in a file; None for a buffer.

    Old files use gamma and beta for the weight and bias of a LayerNorm.
    """
    name = re.sub(r"(LayerNorm|ln_\d)\.gamma$", r"\1.weight", name)
    name = re.sub(r"(LayerNorm|ln_\d)\.beta$", r"\1.bias", name)
    if name.split(".")[0] in family.roots:
        name = f"{family.prefix}.{name}"
    return None if re.fullmatch(family.buffers, name) else name


def headless(family: Family, architecture: str) -> bool:
    """Whether the architecture is the bare encoder, whose names have no prefix."""
    return architecture == next(iter(family.architectures))
