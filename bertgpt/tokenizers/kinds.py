"""The two kinds of tokenizer that are built around a model, and properties of a vocabulary's ids."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertgpt.errors import InputError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL = ("<unk>",)
SETTINGS = {  # the settings of BERT's clean-up: their names in tokenizer_config.json and in the normalizer
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}
DEFAULTS: dict[str, bool | None] = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
"""Hugging Face's defaults for settings that are missing in a BERT's tokenizer_config.json."""


def wordpiece(model: models.WordPiece, **settings: Any) -> Tokenizer:
    """A WordPiece model with BERT's clean-up.

    The settings are the normalizer's. Without `strip_accents`, accents are stripped if it lower-cases.
    """
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def bpe(model: models.BPE) -> Tokenizer:
    """A BPE model with the clean-up that Hugging Face uses for GPT-1 without ftfy and spaCy."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def is_gpts(description: dict[str, Any]) -> bool:
    """Whether a tokenizer is `bpe` of a GPT-1, whatever its added tokens; given its JSON form."""
    model = description["model"]
    wanted = {"type": "BPE", "unk_token": "<unk>", "end_of_word_suffix": "</w>", "fuse_unk": False, "dropout": None}
    cleaned = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    normalizer = {"type": "BertNormalizer", **cleaned}
    return (
        model | wanted | {"byte_fallback": False, "ignore_merges": False} == model
        and not model["continuing_subword_prefix"]
        and description["normalizer"] in (normalizer, normalizer | {"cleanup": "openai"})
        and description["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and description["post_processor"] is None
    )


def add_bert_template(tokenizer: Tokenizer) -> None:
    """Adds the special tokens around texts: [CLS] A [SEP] in segment 0, then B [SEP] in segment 1."""
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", special_id(tokenizer, "[SEP]")), ("[CLS]", special_id(tokenizer, "[CLS]"))
    )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id. Ids may have gaps: a vocab.txt with a repeated line makes one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token.

    Raises:
        InputError: the vocabulary lacks it.
    """
    index = tokenizer.token_to_id(token)
    if index is None:
        needs = f"BERT needs {', '.join(BERT_SPECIAL)}" if token in BERT_SPECIAL else "fine-tuning adds it"
        raise InputError(f"the tokenizer has no {token}; {needs}")
    return index


def continuation_table(tokenizer: Tokenizer) -> list[bool]:
    """For each id, whether its piece continues a word (`##`); for whole-word masking."""
    return [(tokenizer.id_to_token(index) or "").startswith("##") for index in range(vocabulary_size(tokenizer))]
