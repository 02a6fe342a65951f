"""A trace as PNG files."""

from pathlib import Path

from adapt.report.summary import check_rows
from adapt.trace import Trace


def save_pictures(trace: Trace, folder: str | Path) -> list[Path]:
    """Draw the heat map and the timeline as PNG files into the folder, which is made if it does not exist.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
        OSError: the folder cannot be written.
        ValueError: the trace has no rows.
    """
    from adapt import figures

    check_rows(trace)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "word_length_heatmap.png", folder / "timeline.png"]
    for path, draw in zip(paths, (figures.word_length_heatmap, figures.timeline), strict=True):
        draw(trace).savefig(path)
    return paths
