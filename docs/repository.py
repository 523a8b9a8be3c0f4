"""An extension of Python-Markdown for the documentation site: links to the repository's files lead to its address.

Pages name files as they lie in a clone (`../train/loop.py#L10`), so that their links work there too. The site has only
the folder docs, so these links get the address of the repository. mkdocs.yml gives it.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

ROOT = Path(__file__).parent.parent
UP = "../"


class Links(Treeprocessor):
    """Changes the links of a page that lead out of the folder docs."""

    def __init__(self, markdown: Markdown, address: str) -> None:
        super().__init__(markdown)
        self.address = address

    def run(self, root: Element) -> None:
        """Change the links in place."""
        for link in root.iter("a"):
            if link.get("href", "").startswith(UP):
                link.set("href", f"{self.address}/{on_main(link.get('href', ''))}")


def on_main(link: str) -> str:
    """Return where a file or folder is on the repository's site, below its address.

    Args:
        link: from the folder docs, such as ../train/loop.py#L10.

    Raises:
        FileNotFoundError: the repository has no such file.
    """
    path, mark, anchor = link.removeprefix(UP).partition("#")
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"a page links to {link}, which does not exist")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{kind}/main/{path}{mark}{anchor}"


class Repository(Extension):
    """The extension."""

    def __init__(self, **settings: str) -> None:
        self.config = {"address": ["", "of the repository"]}
        super().__init__(**settings)

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the change of links after those of Markdown itself."""
        md.treeprocessors.register(Links(md, self.getConfig("address")), "repository", -10)


def makeExtension(**settings: str) -> Repository:
    """The function that Python-Markdown calls."""
    return Repository(**settings)
