"""Text tables with aligned columns."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: int | None = None, gap: str = "  ") -> list[str]:
    """Return one line of text for each row.

    Args:
        rows: rows with the same number of cells.
        left: this many first columns are aligned to the left, the others to the right; None for all to the left.
        gap: the text between two columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if left is None or i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
