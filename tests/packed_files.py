"""Files compressed as their names say."""

import bz2
import functools
import gzip
import lzma
import sys
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK = {
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


def write_packed(path: Path, content: str | bytes) -> Path:
    """Puts bytes or text under a name; compressed where it ends in one of PACK, in capitals or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    pack = PACK.get(path.suffix.lower(), bytes)
    path.write_bytes(pack(raw))
    return path
