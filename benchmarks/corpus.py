"""The demo corpus's texts and a tokenizer for them, for the benchmarks of loading and preparing."""

import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from bertgpt.data.store import TextSource, prepare
from bertgpt.tokenizers import train_wordpiece
from train.config import load, text_source

RECIPE = Path(__file__).parent.parent / "configs" / "bert_demo.yaml"


def demo() -> tuple[TextSource, Tokenizer]:
    """The demo recipe's text, and WordPiece of its size."""
    recipe = load(str(RECIPE))
    source = text_source(recipe)
    texts = ("\n".join(document) for document in source.documents("train"))
    return source, train_wordpiece(texts, recipe.tokenizer.vocab_size or 8000)


def demo_store() -> tuple[Path, Tokenizer]:
    """The demo recipe's token store in a temporary folder."""
    source, tokenizer = demo()
    folder = Path(tempfile.mkdtemp()) / "store"
    prepare(folder, source, tokenizer, {}, workers=2)
    return folder, tokenizer
