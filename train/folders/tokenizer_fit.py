"""Whether a tokenizer suits the text of a store: its vocabulary, and upper and lower case."""

from collections.abc import Mapping

from tokenizers import Tokenizer, models

from bertgpt.data.text.store import Split

MOST_UNKNOWN = 0.1  # share of unknown tokens in a split, above which the vocabulary does not suit the text
SOME_UNKNOWN = 0.01  # the same, if the vocabulary has no capital letters and text is not lower-cased
MOST_CAPITALS = 0.02  # share of pieces with capital letters that a tokenizer which lower-cases may have


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
    wrong_case = _wrong_case(tokenizer, max(shares.values()))
    if wrong_case is not None:
        return [wrong_case]
    return [
        f"the {name} split: {share:.0%} of its tokens are {unknown_token(tokenizer)}: the tokenizer's vocabulary does "
        "not suit the text; use a tokenizer or a model of the text's language (tokenizer.path, model.init_from), or "
        "train a tokenizer on it (tokenizer.path=null); if it was trained on this text, raise tokenizer.vocab_size"
        for name, share in shares.items()
        if share > MOST_UNKNOWN
    ]


def _wrong_case(tokenizer: Tokenizer, unknown: float) -> str | None:
    """Why the case of a WordPiece tokenizer does not suit its vocabulary; None if it does.

    Args:
        tokenizer: any tokenizer.
        unknown: the share of unknown tokens. A vocabulary without capital letters suits a text without them.
    """
    if not isinstance(tokenizer.model, models.WordPiece):
        return None
    pieces = [piece for piece in tokenizer.get_vocab() if not (piece.startswith("[") and piece.endswith("]"))]
    capitals = sum(piece != piece.lower() for piece in pieces) / max(1, len(pieces))
    has_case = any(piece != piece.upper() for piece in pieces)
    lowercases = tokenizer.normalizer is not None and "A" not in tokenizer.normalizer.normalize_str("A")
    if lowercases and capitals > MOST_CAPITALS:
        return (
            f"the tokenizer lower-cases text, but {capitals:.0%} of its vocabulary has capital letters and is never "
            'used; set "do_lower_case": false in the tokenizer_config.json of its folder, or use an uncased vocabulary'
        )
    if not lowercases and has_case and not capitals and unknown > SOME_UNKNOWN:
        return (
            f"{unknown:.0%} of the tokens are {unknown_token(tokenizer)}: the vocabulary has no capital letters, but "
            "the tokenizer does not lower-case text; if the text has capital letters, set "
            '"do_lower_case": true in the tokenizer_config.json of its folder'
        )
    return None
