"""Where the text of a store comes from, and how it is divided into documents, sources and held-out sets."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bertgpt.data.text.documents import read_documents
from bertgpt.data.text.files import File, Read, find_files
from bertgpt.errors import InputError


class Files(NamedTuple):
    """Input files. If a TextSource has no `eval`, the files of `train` also contain the evaluation documents.

    Attributes:
        train, eval: in order.
        sources, sets: the name of the source or held-out set of each file, by its path.
    """

    train: list[File]
    eval: list[File]
    sources: Mapping[str, str]
    sets: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Where the text comes from and how it is read; all fields are part of a store's identity.

    `segmented` says that a segmenter finds the words of Chinese text, for whole-word masking.

    A mapping in `train` is a mixture of the sources that are its keys; the weights may change without preparing the
    store again. A mapping in `eval` names several held-out sets.

    If `eval` is None, the evaluation set is `eval_fraction` of the documents of `train`, chosen by the hash of their
    text. `document` is "paragraph", "file" or "line", as in `read_documents`.
    """

    train: str | Sequence[str] | Mapping[str, float]
    eval: str | Sequence[str] | Mapping[str, str] | None = None
    eval_fraction: float = 0.01
    text_key: str = "text"
    language: str = "en"
    sentence_per_line: bool = False
    document: str = "paragraph"
    segmented: bool = False

    def sources(self) -> dict[str, Any]:
        """Where the training text comes from, by the name of the source; "" if it is no mixture."""
        return source_names(self.train) if isinstance(self.train, Mapping) else {"": self.train}

    def held_out_sets(self) -> dict[str, Any]:
        """Where the held-out text comes from, by the name of the set; "" if there is one."""
        if isinstance(self.eval, Mapping):
            return dict(self.eval)
        return {"": self.eval} if self.eval else self.sources()

    def splits(self) -> list[str]:
        """The names of the store's splits, those of training first."""
        named = [("train", self.sources()), ("eval", self.held_out_sets())]
        return [split_name(kind, name) for kind, parts in named for name in parts]

    def files(self) -> Files:
        """The input files in order.

        Raises:
            InputError: a file is in two sources or in two held-out sets.
        """
        train, sources = _find_parts("data.train", self.sources())
        held_out, sets = _find_parts("data.eval", self.held_out_sets() if self.eval else {})
        return Files(train, held_out, sources, sets)

    def files_of(self, split: str, files: Files) -> list[File]:
        """Those of the files that have documents of a split, in order."""
        kind, _, name = split.partition(".")
        paths, names = (files.eval, files.sets) if self.eval and kind == "eval" else (files.train, files.sources)
        return [path for path in paths if names[str(path)] == name] if name else paths

    def documents(self, split: str, files: Files | None = None, read: Read | None = None) -> Iterator[list[str]]:
        """The documents of one split, each as its paragraphs, in file order; from all files or only from `files`.

        "train" and "eval" are all documents of the training sources or held-out sets. `read` is as in `read_documents`.
        """
        paths = self.files_of(split, files or self.files())
        if self.eval:
            return self._read(paths, read)
        kind = split.partition(".")[0]
        return itertools.chain.from_iterable(self._split_file(path, kind, read) for path in paths)

    def _read(self, files: Sequence[File], read: Read | None = None) -> Iterator[list[str]]:
        return read_documents(files, self.text_key, self.sentence_per_line, self.document, read)

    def _split_file(self, path: File, split: str, read: Read | None = None) -> Iterator[list[str]]:
        """The documents of one split in a file that has both. If a document is a file, its first one decides for all.

        A long file is read as several documents, and must be in one split nevertheless.
        """
        for number, document in enumerate(self._read([path], read)):
            if number == 0 or self.document != "file":
                wanted = _held_out(document, self.eval_fraction) == (split == "eval")
            if wanted:
                yield document
            elif self.document == "file":
                return


def split_name(kind: str, name: str) -> str:
    """The split of a source or held-out set: train or eval alone if it has no name."""
    return f"{kind}.{name}" if name else kind


def source_names(addresses: Iterable[str]) -> dict[str, str]:
    """A name for each source of a mixture: the last part of its address with a letter or digit, without suffixes."""
    found: dict[str, str] = {}
    for address in addresses:
        parts = (re.sub(r"[^\w-]+", "_", part.split(".")[0]).strip("_") for part in reversed(address.split("/")))
        name = base = next((part for part in parts if part), "text")
        number = 1
        while name in found:
            number += 1
            name = f"{base}_{number}"
        found[name] = address
    return found


def _find_parts(key: str, parts: Mapping[str, Any]) -> tuple[list[File], dict[str, str]]:
    """The files of all sources or held-out sets, one after the other, and the name of the part of each."""
    found: dict[str, str] = {}
    files = []
    for name, addresses in parts.items():
        here = find_files(addresses)
        for path in map(str, here):
            if found.setdefault(path, name) != name:
                raise InputError(f"{key}: {path} is in {found[path]} and in {name}; leave it out of one of them")
        files += here
    return files, found


def _held_out(document: list[str], fraction: float) -> bool:
    digest = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64
