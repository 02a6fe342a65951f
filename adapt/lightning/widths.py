"""What a fit with learned bit widths logs, draws and saves."""

from collections.abc import Sequence
from typing import Any

from adapt.engine.engine import Engine
from adapt.learned.learner import Learner
from adapt.lightning import metrics
from adapt.lightning.packages import LightningModule, Trainer
from adapt.lightning.reports import Reports
from adapt.trace import Trace
from adapt.trace.display import totals


class WidthReports(Reports):
    """Logs sizes and word lengths at the trainer's logging steps, and draws and saves at the ends."""

    _bar = ("adapt/weight_bits", "adapt/activation_bits")

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Count nothing: no figure here needs the multiply-adds."""

    def log(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        (learner,) = _learners(controllers)
        self._widths = learner.widths
        super().log(trainer, pl_module, controllers)

    def _figures(self, traces: Sequence[Trace], controllers: Sequence[Engine]) -> dict[str, float]:
        (learner,), (trace,) = _learners(controllers), traces
        network = totals(trace, learner.widths) if len(trace) else {}
        figures = {name: float(values[-1]) for name, values in network.items()}
        figures |= {name: value for name, value in learner.size._asdict().items() if value == value}
        figures["penalty"] = float(learner.penalty())
        return {f"adapt/{name}": value for name, value in figures.items()}

    def _layer_values(
        self, traces: Sequence[Trace], controllers: Sequence[Engine], module: LightningModule
    ) -> dict[str, float]:
        (learner,) = _learners(controllers)
        means = zip(learner.widths.names, learner.widths.means()[-1], strict=True)
        return {f"adapt_layers/word_length/{name}": float(bits) for name, bits in means}

    def end(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Draw once more, the channels too, and save the files."""
        super().end(trainer, pl_module, controllers)
        (learner,) = _learners(controllers)
        for timeline in self._timelines.values():
            timeline.write_channels(learner.widths.step, learner.widths.by_channel())

    def files(self, traces: Sequence[Trace], controllers: Sequence[Engine]) -> dict[str, metrics.Saved]:
        """Return what is saved when a fit ends, by the files' names: the trace and the widths."""
        (learner,) = _learners(controllers)
        return {**super().files(traces, controllers), "widths.npz": learner.widths}


def _learners(controllers: Sequence[Engine]) -> list[Learner]:
    return [controller for controller in controllers if isinstance(controller, Learner)]
