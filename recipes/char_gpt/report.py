"""The table of the runs that there are."""

from pathlib import Path

from adapt import files
from recipes.common import ledger
from recipes.common.evidence import NOTHING, costs, difference, figure, gather, markdown, sources, text

LEDGER = "char_gpt.jsonl"
DOCUMENT = "char_gpt.md"
NOTES = """\
Bits per character on the held-out last tenth of the text, less is better; means over seeds ± the standard error of the
mean, Δ to float32 with the same seed. The performance model compares with float32 training of the same steps, by
elements and with backward counted as one product per layer, as AdaPT's paper does."""


def bits(line: ledger.Line) -> float:
    """Bits per character on the held-out text."""
    return float(line["bits_per_character"])


def write(folder: Path) -> str:
    """Write `char_gpt.md` beside the results and answer the tables, one for each schedule.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    groups = gather(folder / LEDGER)
    if not groups:
        raise ValueError(f"{folder} holds no results yet: train first")
    parts = []
    for methods in groups:
        float32 = methods.get("float32", {})
        cells = {
            name: {
                "bits per character": text(figure(runs, bits), ".3f"),
                "Δ to float32": NOTHING if name == "float32" else text(difference(runs, float32, bits), "+.3f"),
                **costs(runs),
                "seeds": str(len(runs)),
            }
            for name, runs in methods.items()
        }
        now = next(iter(next(iter(methods.values())).values()))["settings"]
        parts.append(
            f"{now['layers']} layers of width {now['width']}, context {now['context']}, "
            f"{now['epochs'] * now['steps_per_epoch']:,} steps of batch {now['batch_size']}:\n\n"
            + markdown(["method", *next(iter(cells.values()))], [[name, *row.values()] for name, row in cells.items()])
            + f"\n\n{sources(methods, bits, '.4f', 'bits per character')}"
        )
    document = "\n\n".join(["# A character-level GPT", NOTES, *parts]) + "\n"
    with files.replacing(folder / DOCUMENT) as file:
        file.write(document.encode())
    return document
