"""Whether a tokenizer suits the text of a store: its vocabulary, and upper and lower case."""

from collections.abc import Mapping

from tokenizers import Tokenizer, models

from bertgpt.data.text.store import Split

MOST_UNKNOWN = 0.1  # share of unknown tokens in a split, above which the vocabulary does not suit the text
SOME_UNKNOWN = 0.01  # the same, if the vocabulary has no capital letters and the tokenizer does not lower-case
MOST_CAPITALS = 0.05  # share of pieces with capital letters that a tokenizer which lower-cases may have
WRONG_WORDS = "the vocabulary does not suit the text; "
WRONG_CASE = (
    "the vocabulary has no capital letters, and the tokenizer does not lower-case; if the text has some, set "
    '"do_lower_case": true in the tokenizer_config.json of its folder; otherwise '
)


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """The token of unknown text; None if the tokenizer has none, as a byte-level BPE."""
    token = getattr(tokenizer.model, "unk_token", None)
    return token if token and tokenizer.token_to_id(token) is not None else None


def unknown_share(split: Split, tokenizer: Tokenizer) -> float:
    """The share of unknown tokens among those of a split."""
    token = unknown_token(tokenizer)
    return 0.0 if token is None else float(split.counts[tokenizer.token_to_id(token)] / len(split.tokens))


def find_problems(splits: Mapping[str, Split], tokenizer: Tokenizer) -> list[str]:
    """Why the tokenizer does not suit the splits, each in one line with what to do; empty if it does."""
    shares = {name: unknown_share(split, tokenizer) for name, split in splits.items()}
    cased, lowercases = _case(tokenizer)
    problems = []
    if lowercases and cased is not None and cased > MOST_CAPITALS:
        problems.append(
            f"the tokenizer lower-cases text, but {cased:.0%} of its vocabulary has capital letters and is never used; "
            'set "do_lower_case": false in the tokenizer_config.json of its folder, or use an uncased vocabulary'
        )
    lacks_capitals = cased == 0 and not lowercases
    limit = SOME_UNKNOWN if lacks_capitals else MOST_UNKNOWN
    many = [f"{share:.0%} of the {name} split's tokens" for name, share in shares.items() if share > limit]
    if many:
        problems.append(
            f"{' and '.join(many)} are {unknown_token(tokenizer)}: {WRONG_CASE if lacks_capitals else WRONG_WORDS}"
            "use a tokenizer of the text's language (tokenizer.path, model.init_from), or train one on the text "
            "(tokenizer.path=null), with a tokenizer.vocab_size that is large enough for its characters"
        )
    return problems


def _case(tokenizer: Tokenizer) -> tuple[float | None, bool]:
    """(the share of pieces with capital letters, whether text is lower-cased).

    The share is None if the tokenizer is not WordPiece, or if its pieces have no letters with case.
    """
    lowercases = tokenizer.normalizer is not None and "A" not in tokenizer.normalizer.normalize_str("A")
    pieces = [piece for piece in tokenizer.get_vocab() if not (piece.startswith("[") and piece.endswith("]"))]
    if not isinstance(tokenizer.model, models.WordPiece) or all(piece == piece.upper() for piece in pieces):
        return None, lowercases
    return sum(piece != piece.lower() for piece in pieces) / len(pieces), lowercases
