"""Markdown: tables, paragraphs, and the marked parts of a page that a recipe's report writes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

from recipes.common.ledger import write_text

END = "<!-- to here -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def paragraph(text: str) -> str:
    """The text wrapped at 120 characters."""
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def start(recipe: str) -> str:
    """The comment that opens the part written by `python -m recipes.RECIPE report`; `END` closes it."""
    return f"<!-- from python -m recipes.{recipe} report -->"


def insert(text: str, recipe: str, path: Path) -> None:
    """Replace the part of a Markdown file that belongs to a recipe.

    Raises:
        ValueError: the file lacks the comments that mark the part.
    """
    before, _, after = _parts(recipe, path)
    write_text(f"{before}{start(recipe)}\n\n{text}\n\n{END}{after}", path)


def inserted(recipe: str, path: Path) -> str:
    """The part of a Markdown file that belongs to a recipe.

    Raises:
        ValueError: the file lacks the comments that mark the part.
    """
    return _parts(recipe, path)[1].strip()


def _parts(recipe: str, path: Path) -> tuple[str, str, str]:
    before, begun, rest = path.read_text(encoding="utf-8").partition(start(recipe))
    between, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{path} must hold the lines {start(recipe)} and {END}, between which the summary goes")
    return before, between, after
