"""How Hugging Face names and lays out every parameter: one table an architecture, read in both directions.

Theirs is a flat name such as `bert.encoder.layer.0.output.dense.weight`, ours a path such as
`bert/stack/block_0/feed_forward/down/kernel`. Both stand here with the prefix of the encoder (`bert`, `transformer`); a
bare `BertModel` or `OpenAIGPTModel` has none.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Entry(NamedTuple):
    """One of their tensors and the parameters of ours that it holds.

    Attributes:
        theirs: the name in their file.
        ours: paths; several are joined along the last axis (GPT-1's query, key, value).
        transpose: theirs is [out, in], as torch's Linear; Conv1D and everything else is as ours.
    """

    hf_name: str
    paths: tuple[str, ...]
    transpose: bool = False


def _linear(hf_name: str, path: str, bias: bool = True) -> list[Entry]:
    """torch's nn.Linear."""
    weight = Entry(f"{hf_name}.weight", (f"{path}/kernel",), transpose=True)
    return [weight, Entry(f"{hf_name}.bias", (f"{path}/bias",))] if bias else [weight]


def _conv1d(hf_name: str, *paths: str) -> list[Entry]:
    """OpenAI's Conv1D, [in, out]."""
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
    "lm": lambda layers: iter(()),  # the tied head has no parameters of its own
    "choice": lambda layers: iter(_linear("multiple_choice_head.summary", "multiple_choice_head")),
    "score": lambda layers: iter(_linear("score", "score", bias=False)),
}
BACKBONES = ("encoder", "transformer")  # the parts that are never made anew


class Family(NamedTuple):
    """What a model_type's architectures share.

    Attributes:
        architecture: `ModelConfig.architecture`.
        prefix: of the encoder's names.
        roots: what an encoder's names begin with where a file leaves the prefix out.
        tied: second names of a tensor; equal to the first wherever both stand.
        buffers: names of what is no parameter.
        architectures: parts of each; the first is the bare model.
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
    """The model_type that an architecture belongs to; None where it is unknown."""
    return next((name for name, family in FAMILIES.items() if architecture in family.architectures), None)


def has_vocabulary_head(architecture: str) -> bool:
    """Whether logits over the vocabulary are made, with the token embeddings' own weights."""
    family = family_of(architecture)
    return family is not None and bool({"mlm", "lm"} & set(FAMILIES[family].architectures[architecture]))


def entries(family: Family, architecture: str, layers: int) -> list[Entry]:
    """Every tensor of an architecture, with the encoder's prefix in both names."""
    return [entry for part in family.architectures[architecture] for entry in PARTS[part](layers)]


def backbone(family: Family, layers: int) -> set[str]:
    """Their names of the encoder's tensors, which no head can do without."""
    parts = set(family.architectures[next(iter(family.architectures))]) & set(BACKBONES)
    return {entry.hf_name for part in parts for entry in PARTS[part](layers)}


def normalize_hf_name(family: Family, name: str) -> str | None:
    """The table's spelling of a name in a file; None for a buffer. Old files call a norm's arrays gamma and beta."""
    name = re.sub(r"(LayerNorm|ln_\d)\.gamma$", r"\1.weight", name)
    name = re.sub(r"(LayerNorm|ln_\d)\.beta$", r"\1.bias", name)
    if name.split(".")[0] in family.roots:
        name = f"{family.prefix}.{name}"
    return None if re.fullmatch(family.buffers, name) else name


def headless(family: Family, architecture: str) -> bool:
    """Whether the architecture is the encoder itself, whose names have no prefix."""
    return architecture == next(iter(family.architectures))
