"""JSON files that came from elsewhere: bounded, and refused in one line that names them."""

import json
from pathlib import Path
from typing import Any

from bertgpt.errors import InputError

MAX_JSON = 1 << 26  # bytes of a configuration or an index


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is missing, too large or not JSON.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise InputError(f"{file}: over {MAX_JSON} bytes; not a configuration")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
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
