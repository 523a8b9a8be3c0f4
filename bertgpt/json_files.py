"""JSON files that came from elsewhere: bounded, and refused in one line that names them."""

import json
from pathlib import Path
from typing import IO, Any

from bertgpt.errors import InputError, check_regular

MAX_JSON = 1 << 26  # bytes of a configuration or an index
BLOCK = 1 << 20
MAX_VALUES = 1 << 22  # commas, colons and brackets of a JSON text that has more than one in DENSITY characters
DENSITY = 16  # a value takes up to 80 bytes in memory: dense JSON takes 30 times its size


def read_at_most(file: IO[bytes], size: int) -> bytes:
    """As `file.read(size)`, which takes all of `size` in memory first."""
    blocks = []
    while size > 0 and (block := file.read(min(size, BLOCK))):
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def is_dense(text: str) -> bool:
    """Whether JSON holds too many small values: three bytes of it can take eighty in memory."""
    return len(text) > MAX_VALUES and sum(map(text.count, ",:[{")) > max(MAX_VALUES, len(text) // DENSITY)


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is missing, no file that can be read, too large or not JSON.
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
        raise InputError(f"{file}: over {MAX_JSON} bytes; not a configuration")
    try:
        text = raw.decode("utf-8")
        if is_dense(text):
            raise InputError(f"{file}: over {MAX_VALUES} values; not a configuration")
        return json.loads(text)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """As `read_json`, of an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value
