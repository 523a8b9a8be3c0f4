"""Whether a WordPiece vocabulary was made from lower-cased text; Google's releases of BERT say it in no file."""

import re
import string
import warnings
from collections.abc import Iterable
from pathlib import Path

from bertgpt.errors import one_line

GOOGLE_CONFIG = "bert_config.json"
SPECIAL = re.compile(r"[\[<].*[\]>]", re.DOTALL)  # [UNK], and <S> of the Chinese vocabulary
MOST_LETTERS = 13  # of A to Z as pieces of their own, above which a vocabulary is that of cased text


def is_lowercased(file: Path, pieces: Iterable[str]) -> bool:
    """Whether the text of a vocabulary was lower-cased; a warning says where this is a guess.

    A vocabulary of cased text contains the capital letters themselves, since WordPiece begins with all characters. One
    of lower-cased text has no capital letter from A to Z, except in special tokens. Between the two is a guess: that
    words with capital letters were added to a vocabulary of lower-cased text.

    Args:
        file: the vocabulary, for the warning.
        pieces: of the vocabulary.
    """
    words = [piece for piece in pieces if SPECIAL.fullmatch(piece) is None]
    capital = [word for word in words if re.search("[A-Z]", word)]
    letters = set(capital) & set(string.ascii_uppercase)
    if capital and len(letters) <= MOST_LETTERS:
        warnings.warn(
            one_line(
                f"{file}: text is lower-cased, which is a guess: {len(capital)} pieces, such as {capital[0][:100]}, "
                'have capital letters; for a cased model, write {"do_lower_case": false} to tokenizer_config.json '
                "beside it"
            ),
            stacklevel=4,
        )
    return len(letters) <= MOST_LETTERS
