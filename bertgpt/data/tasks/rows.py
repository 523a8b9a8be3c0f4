"""A record of a data file."""

import re
from typing import Any, NamedTuple

from bertgpt.errors import InputError, excerpt, quoted

TABLE = re.compile(r"\.(csv|tsv)(\.\w+)? line \d+$")  # in the place of a row


class Row(NamedTuple):
    """A record of a data file.

    Attributes:
        place: its file and line, such as "train.csv line 3"; every error about the row begins with it.
        values: the values by column name.
    """

    place: str
    values: dict[str, Any]

    def get(self, column: str, key: str) -> Any:
        """The value of a column; `key` is the setting that names the column.

        Raises:
            InputError: the column is missing, or it is empty in this row.
        """
        if self.values.get(column) is None:
            found = ", ".join(map(str, self.values)) or "none"
            state = "is empty" if column in self.values else "is missing"
            same = [name for name in map(str, self.values) if name.lower() == column.lower() and name != column]
            advice = f"set {key}={same[0]}" if same else f"set {key} to another"
            if TABLE.search(self.place) and column not in self.values:
                advice += ", or name the columns in the first line"
                if key in ("task.words", "task.tags"):
                    advice += "; if each line is a word and its tag, rename the file to .conll"
            raise InputError(f"{self.place}: column {quoted(column)} {state} (columns: {excerpt(found)}); {advice}")
        return self.values[column]

    def text(self, column: str, key: str) -> str:
        """Like `get`, for a text that is not blank."""
        value = self.get(column, key)
        if not isinstance(value, str):
            raise InputError(
                f"{self.place}: column {quoted(column)} is {quoted(value)}, not a text; set {key} to another"
            )
        if not value.strip():
            raise InputError(f"{self.place}: column {quoted(column)} is an empty text; fill it in or remove the row")
        return value
