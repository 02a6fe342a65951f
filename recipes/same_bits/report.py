"""What the runs show: a table of methods, and paired differences with 95 % intervals.

python -m recipes.same_bits.report recipes/results/same_bits.jsonl
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from recipes.common import ledger, markdown
from recipes.common.comparison import NOTHING, Estimate, Runs

TITLE = "The same bits for every layer, or bits where they pay"
NOTES = """\
Accuracy on the test pictures of networks whose weights are rounded and whose activations are float32, except under aqt,
which gives them as many bits as the layer's weights, and in rows that name the bits of activations; means over seeds ±
the standard error. Bits are the mean word length of a quantised weight; bytes are the words packed without gaps, zeros
included, and, beside them, what an ideal entropy coder would need. Bias and normalisation stay float32 and are not
counted. Differences pair the runs of the same seed, which see the same pictures in the same order, and come with the
95 % interval of Student's t. They are to three ways of giving all layers the same bits: block floating point; uniform,
where each layer's range has the least squared error, found anew as compact does; and LSQ with one power of two per
layer. compact-entropy, whose budget is one of coded bytes, is compared with the block floating point that takes the
most similar number of them, and compact-channels, whose bytes include a shift for each channel, with those of as many
bytes. The rows of lsq and lsq-p2 with float32 activations were made before the steps of channels were counted, which on
ResNet-20 take 2,792 and 698 bytes more."""

RIVALS = ("block", "uniform", "lsq-layer-p2")
"""The ways of giving all layers the same bits with which rows are compared."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with the half width of its 95 % interval, which is NaN for a single pair."""

    mean: float
    half_width: float
    pairs: int

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> "Difference":
        """Return mean ± t·s/√n of the differences values − others, t the 97.5 % quantile for n − 1 degrees of freedom.

        Raises:
            ValueError: there are no pairs, or the numbers of values differ.
        """
        differences = [a - b for a, b in zip(values, others, strict=True)]
        if not differences:
            raise ValueError("differences need at least one pair")
        n = len(differences)
        half = math.nan if n < 2 else float(stats.t.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)
        return cls(fmean(differences), half, n)

    def text(self) -> str:
        """Return the difference in points with its interval, such as "+0.42 [+0.20, +0.64]"."""
        if math.isnan(self.half_width):
            return _minus(f"{self.mean:+.2f}")
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return _minus(f"{self.mean:+.2f} [{low:+.2f}, {high:+.2f}]")


def grouped(lines: Sequence[ledger.Line]) -> dict[tuple[Any, ...], dict[int, ledger.Line]]:
    """Return the lines by (label, epochs, bits of activations, method, bits, options) and seed."""
    groups: dict[tuple[Any, ...], dict[int, ledger.Line]] = {}
    for line in lines:
        settings, chosen = line["settings"], dict(line["settings"]["options"])
        activations = chosen.pop("activations", 32)
        options = ", ".join(f"{name}={value}" for name, value in sorted(chosen.items()))
        key = (line["label"], settings["epochs"], activations, settings["method"], settings["bits"] or 0, options)
        groups.setdefault(key, {})[settings["seed"]] = line
    return groups


def paired(runs: Runs, others: Runs) -> Difference | None:
    """Return the difference in accuracy, in points, over the seeds that both have; None where there are none."""
    seeds = sorted(runs.keys() & others.keys())
    if not seeds:
        return None
    return Difference.of(*([100 * part[seed]["accuracy"] for seed in seeds] for part in (runs, others)))


def document(lines: Sequence[ledger.Line]) -> str:
    """Return the report in Markdown: a table for each network that runs started from.

    Raises:
        ValueError: there are no lines.
    """
    if not lines:
        raise ValueError("there are no results yet: make runs first")
    starts = {line["start"]: None for line in lines}
    tables = (f"## From {start}\n\n{table([line for line in lines if line['start'] == start])}" for start in starts)
    return "\n\n".join([f"# {TITLE}", NOTES, *tables]) + "\n"


def table(lines: Sequence[ledger.Line]) -> str:
    """Return a row for each method and budget, with its differences to block, to LSQ and to float32."""
    groups = grouped(lines)
    header = [
        "method",
        "bits",
        "accuracy, %",
        "bytes",
        "entropy-coded",
        "Δ to block",
        "Δ to uniform",
        "Δ to LSQ",
        "Δ to float32",
        "seeds",
    ]
    rows = []
    for key in sorted(groups, key=lambda key: (*key[:3], key[4] or math.inf, *key[3:])):
        *common, method, bits, options = key
        label, epochs, activations = common
        runs = groups[key]
        # Under compact-channels words are shorter by what the shifts take.
        words = round(bits) if method == "compact-channels" else bits
        rivals = [{} if method == rival else groups.get((*common, rival, words, ""), {}) for rival in RIVALS]
        rivals.append({} if method == "float32" else groups.get((label, epochs, 32, "float32", 0, ""), {}))
        if method == "compact-entropy":
            blocks = [others for other, others in groups.items() if other[:4] == (*common, "block")]
            rivals[0] = _of_similar_size(runs, blocks)
        differences = [paired(runs, other) for other in rivals]
        parts = (method, bits or "", options, label, f"with {activations}-bit activations" if activations < 32 else "")
        name = " ".join(str(part) for part in parts if part)
        rows.append(
            [
                name if epochs == 1 else f"{name}, {epochs} epochs",
                _mean(runs, "bits", ".2f"),
                Estimate.of([100 * line["accuracy"] for line in runs.values()]).text(),
                _mean(runs, "dense_bytes", ",.0f"),
                _mean(runs, "entropy_bytes", ",.0f"),
                *(NOTHING if d is None else d.text() for d in differences),
                str(len(runs)),
            ]
        )
    return markdown.table(header, rows)


def _of_similar_size(runs: Runs, others: Sequence[Runs]) -> Runs:
    """Return those of the others that take the most similar number of coded bytes; none where there are none."""

    def coded(these: Runs) -> float:
        return math.log(fmean(line["entropy_bytes"] for line in these.values()))

    return min(others, key=lambda other: abs(coded(other) - coded(runs)), default={})


def _mean(runs: Runs, name: str, form: str) -> str:
    values = [line[name] for line in runs.values() if name in line]
    return f"{fmean(values):{form}}" if values else NOTHING


def _minus(text: str) -> str:
    return text.replace("-", "−")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(document(ledger.read(Path(sys.argv[1]))), end="")
