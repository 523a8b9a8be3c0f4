"""An extension of Python-Markdown for the documentation site: the links of the pages, as the site needs them.

Pages name files as they lie in a clone (`../train/loop.py#L10`), so that their links work there too. The site has only
the folder docs. If REPOSITORY_URL is set, links to other files get that address; otherwise they lead to the files of
the clone, beside the folder site. A link that is called by the name of a page's file (`[data.md](data.md#store)`) is
called by the page's heading.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

DOCS = Path(__file__).parent
UP = "../"
WHOLE = 30  # characters of code that stay on one line, such as --topology v5e:2x4


class Links(Treeprocessor):
    """Changes the links of a page, and marks short code."""

    def __init__(self, markdown: Markdown, address: str) -> None:
        super().__init__(markdown)
        self.address = address

    def run(self, root: Element) -> None:
        """Change the page in place."""
        for code in root.iter("code"):
            if len(code.text or "") <= WHOLE:
                code.set("class", "whole")
        for link in root.iter("a"):
            target = link.get("href", "")
            if leaves_docs(target):
                place = on_main(target)
                if self.address:
                    link.set("href", f"{self.address}/{place}")
            elif link.text and link.text == target.partition("#")[0] and link.text.endswith(".md"):
                link.text = title(link.text)


def leaves_docs(link: str) -> bool:
    """Whether a link leads out of the folder docs, from a page there or in a folder below it."""
    return link.startswith(UP) and not (DOCS / link.partition("#")[0].lstrip("./")).exists()


def on_main(link: str) -> str:
    """Return where a file or folder is on the repository's site, below its address.

    Args:
        link: out of the folder docs, such as ../train/loop.py#L10.

    Raises:
        FileNotFoundError: the repository has no such file.
    """
    path, mark, anchor = link.lstrip("./").partition("#")
    file = DOCS.parent / path
    if not file.exists():
        raise FileNotFoundError(f"a page links to {link}, which does not exist")
    return f"{'tree' if file.is_dir() else 'blob'}/main/{path}{mark}{anchor}"


def title(page: str) -> str:
    """Return the heading of a page, up to a colon or comma."""
    heading = (DOCS / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return heading.partition(":")[0].partition(",")[0]


class Repository(Extension):
    """The extension."""

    def __init__(self, **settings: str) -> None:
        self.config = {"address": ["", "of the repository"]}
        super().__init__(**settings)

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the change of links, to be made after all of Markdown's own."""
        md.treeprocessors.register(Links(md, self.getConfig("address")), "repository", -10)


def makeExtension(**settings: str) -> Repository:
    """Make the extension; Python-Markdown calls this function."""
    return Repository(**settings)
