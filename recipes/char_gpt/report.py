"""The table of the finished runs."""

from pathlib import Path

from recipes.common import ledger, markdown
from recipes.common.comparison import NOTHING, Experiment, costs, difference, estimate, gather, sources, text

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
    """Write `char_gpt.md` beside the results, a table for each schedule, and return it.

    Raises:
        ValueError: there are no results, or their file is damaged.
    """
    experiments = list(map(Experiment, gather(folder / LEDGER)))
    if not experiments:
        raise ValueError(f"{folder} holds no results yet: train first")
    document = "\n\n".join(["# A character-level GPT", NOTES, *map(section, experiments)]) + "\n"
    ledger.write_text(document, folder / DOCUMENT)
    return document


def section(experiment: Experiment) -> str:
    """The network and its schedule, the table of its methods, and the result of every run."""
    float32, settings = experiment.runs("float32"), experiment.settings
    rows = [
        {
            "method": name,
            "bits per character": text(estimate(runs, bits), ".3f"),
            "Δ to float32": NOTHING if name == "float32" else text(difference(runs, float32, bits), "+.3f"),
            **costs(runs),
            "seeds": str(len(runs)),
        }
        for name, runs in experiment.methods.items()
    ]
    return (
        f"{settings['layers']} layers of width {settings['width']}, context {settings['context']}, "
        f"{settings['epochs'] * settings['steps_per_epoch']:,} steps of batch {settings['batch_size']}:\n\n"
        f"{markdown.table(list(rows[0]), [list(row.values()) for row in rows])}\n\n"
        f"{sources(experiment.methods, bits, '.4f', 'bits per character')}"
    )
