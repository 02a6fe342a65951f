"""Tables as text in aligned columns."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: int | None = None, gap: str = "  ") -> list[str]:
    """Return each row's cells in one line.

    Args:
        rows: of equally many cells.
        left: how many columns, from the first on, are aligned to the left, the others to the right; None: all.
        gap: what stands between two columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.ljust(width) if left is None or i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
