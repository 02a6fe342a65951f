"""The finished runs of the tables, by network and schedule."""

from pathlib import Path

from recipes.adapt_tables.rows import ROWS
from recipes.adapt_tables.runs import LEDGER
from recipes.common import comparison, ledger
from recipes.common.comparison import Estimate


def percent(line: ledger.Line) -> float:
    """Accuracy in percent."""
    return 100 * float(line["accuracy"])


class Experiment(comparison.Experiment):
    """All runs of one network on one data set under one schedule, by method and seed."""

    @property
    def key(self) -> tuple[str, str]:
        """Data set and network."""
        return self.settings["data_set"], self.settings["model"]

    @property
    def schedule(self) -> str:
        """Epochs, batch size, pictures and the shape of the schedule."""
        now = self.settings
        pictures = f", {now['subset']:,} pictures" if now["subset"] else ""
        return f"{now['epochs']} epochs, batch {now['batch_size']}{pictures}, {now['schedule']}"

    def difference(self, method: str) -> Estimate | None:
        """Accuracy of a method minus that of float32 with the same seed, in points; None if no seed has both."""
        return comparison.difference(self.runs(method), self.runs("float32"), percent)

    def iso_accuracy(self, method: str) -> Estimate | None:
        """SU² of table 3: float32's whole cost over ours until the first epoch that is as accurate as float32's end.

        Seeds that never reach that accuracy are left out; None if none does.
        """
        ours, float32 = self.runs(method), self.runs("float32")
        speedups = []
        for seed in sorted(ours.keys() & float32.keys()):
            epochs = ours[seed]["history"]
            for number, epoch in enumerate(epochs, 1):
                if epoch["accuracy"] >= float32[seed]["accuracy"]:
                    speedups.append(epoch["training_speedup"] * len(epochs) / number)
                    break
        return Estimate.of(speedups)


def gather(folder: Path) -> list[Experiment]:
    """The experiments whose results are in `folder`, in the order of `ROWS`.

    Raises:
        ValueError: the file of results is damaged.
    """
    order = list(ROWS)
    experiments = map(Experiment, comparison.gather(folder / LEDGER))
    return sorted(experiments, key=lambda experiment: (order.index("-".join(experiment.key)), experiment.schedule))
