"""The two kinds of tokenizer around a model, and what a vocabulary says of its ids."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bertgpt.errors import InputError

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT_SPECIAL = ("<unk>",)
SETTINGS = {  # tokenizer_config.json's words for BERT's clean-up, and the normalizer's
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}
DEFAULTS: dict[str, bool | None] = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
"""Hugging Face's for a BERT's tokenizer_config.json that leaves them out."""


def wordpiece(model: models.WordPiece, **settings: Any) -> Tokenizer:
    """BERT's clean-up around a WordPiece model; the settings are the normalizer's: without `strip_accents`, accents go
    where it lower-cases."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def bpe(model: models.BPE) -> Tokenizer:
    """The clean-up that Hugging Face uses for GPT-1 without ftfy and spaCy, around a BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def add_bert_template(tokenizer: Tokenizer) -> None:
    """[CLS] A [SEP], segment 0; then B [SEP], segment 1."""
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", special_id(tokenizer, "[SEP]")), ("[CLS]", special_id(tokenizer, "[CLS]"))
    )


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest id. Ids may have holes: a vocab.txt with the same line twice makes one."""
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
    """For every id, whether the piece goes on a word (`##`); for whole-word masking."""
    return [(tokenizer.id_to_token(index) or "").startswith("##") for index in range(vocabulary_size(tokenizer))]
