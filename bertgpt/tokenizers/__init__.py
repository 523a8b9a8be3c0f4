"""WordPiece for BERT and BPE with `</w>` for GPT-1, on the Hugging Face tokenizers library."""

from bertgpt.tokenizers.kinds import BERT_SPECIAL, GPT_SPECIAL, continuation_table, special_id, vocabulary_size
from bertgpt.tokenizers.loading import TOKENIZER_FILES, load_tokenizer, parse_tokenizer
from bertgpt.tokenizers.openai_cleanup import (
    check_installed,
    cleanup_identity,
    installed_cleanup,
    tokenizer_from_str,
    with_cleanup,
)
from bertgpt.tokenizers.saving import export_tokenizer, save_tokenizer
from bertgpt.tokenizers.training import train_bpe, train_wordpiece

__all__ = [
    "BERT_SPECIAL",
    "GPT_SPECIAL",
    "TOKENIZER_FILES",
    "check_installed",
    "cleanup_identity",
    "continuation_table",
    "export_tokenizer",
    "installed_cleanup",
    "load_tokenizer",
    "parse_tokenizer",
    "save_tokenizer",
    "special_id",
    "tokenizer_from_str",
    "train_bpe",
    "train_wordpiece",
    "vocabulary_size",
    "with_cleanup",
]
