"""Reading untrusted JSON files, with limits on size and one-line errors that name the file."""

import json
from pathlib import Path
from typing import IO, Any

from bertgpt.errors import InputError, check_regular

MAX_JSON = 1 << 26  # bytes of a configuration or an index
BLOCK = 1 << 20
MAX_VALUES = 1 << 22  # commas, colons and opening brackets in one file: a value takes up to 80 bytes in memory


def read_at_most(file: IO[bytes], size: int) -> bytes:
    """Return at most `size` bytes, like `file.read(size)`, but without allocating all of `size` first."""
    blocks = []
    while size > 0 and (block := file.read(min(size, BLOCK))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def has_over(text: str, values: int) -> bool:
    """Whether JSON text may contain more values than `values`. Three bytes of JSON can take 80 bytes in memory.

    Commas, colons and brackets inside strings are counted too.
    """
    return len(text) > values and sum(map(text.count, ",:[{")) > values


def read_json(file: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        InputError: it is missing, not a readable file, too large or not JSON.
    """
    try:
        check_regular(file)
        with file.open("rb") as opened:
            raw = read_at_most(opened, MAX_JSON + 1)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_JSON:
        raise InputError(f"{file}: over {MAX_JSON} bytes, too large for a configuration")
    try:
        text = raw.decode("utf-8")
        if has_over(text, MAX_VALUES):
            raise InputError(f"{file}: over {MAX_VALUES} commas, colons and brackets, too many for a configuration")
        return json.loads(text)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Like `read_json`; raises InputError too if the value is not an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value
