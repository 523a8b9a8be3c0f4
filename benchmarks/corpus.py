"""The demo corpus and a tokenizer for it, used by several benchmarks."""

import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from bertgpt.data.text.store import Split, open_split, prepare
from bertgpt.data.text.text_source import TextSource
from bertgpt.tokenizers import train_wordpiece
from train.config import load, text_source

RECIPE = Path(__file__).parent.parent / "configs" / "bert_demo.yaml"


def demo() -> tuple[TextSource, Tokenizer]:
    """Return the text of the demo recipe, and a WordPiece tokenizer with the recipe's vocabulary size."""
    recipe = load(str(RECIPE))
    source = text_source(recipe)
    texts = ["\n".join(document) for document in source.documents("train")]
    return source, train_wordpiece(texts, recipe.tokenizer.vocab_size or 8000)


def demo_split() -> tuple[Split, Tokenizer]:
    """Return the tokenized training text of the demo recipe, and the tokenizer.

    The temporary files are deleted, but remain readable through the open memory map.
    """
    source, tokenizer = demo()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        prepare(store, source, tokenizer, {}, workers=2)
        return open_split(store, "train"), tokenizer
