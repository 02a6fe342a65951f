"""A part of a Markdown file that a recipe's report writes, between two marks."""

from pathlib import Path

from adapt import files

END = "<!-- to here -->"


def start(recipe: str) -> str:
    """The mark where the part of `python -m recipes.RECIPE report` begins."""
    return f"<!-- from python -m recipes.{recipe} report -->"


def put(text: str, recipe: str, path: Path) -> None:
    """Put the text of a recipe's report between its marks.

    Raises:
        ValueError: the file lacks the marks.
    """
    before, _, after = _parts(recipe, path)
    with files.replacing(path) as file:
        file.write(f"{before}{start(recipe)}\n\n{text}\n\n{END}{after}".encode())


def marked(recipe: str, path: Path) -> str:
    """What stands between the marks of a recipe.

    Raises:
        ValueError: the file lacks the marks.
    """
    return _parts(recipe, path)[1].strip()


def _parts(recipe: str, path: Path) -> tuple[str, str, str]:
    before, begun, rest = path.read_text(encoding="utf-8").partition(start(recipe))
    between, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{path} must hold the lines {start(recipe)} and {END}, between which the summary goes")
    return before, between, after
