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

_BAR = ("adapt/weight_bits", "adapt/activation_bits")


class WidthReports(Reports):
    """Logs sizes and word lengths at the trainer's logging steps, and draws and saves at the ends."""

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Count nothing: no figure here needs the multiply-adds."""

    def log(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Log after a step, if it is the first, the last of an epoch, or one in which the trainer logs."""
        (learner,) = _learners(controllers)
        self._widths = learner.widths
        before, self._steps = self._steps, learner.step
        due = trainer._logger_connector.should_update_logs
        if self._steps == before or trainer.barebones or not (due or before == 0 or trainer.is_last_batch):
            return
        whole = totals(learner.trace, learner.widths) if len(learner.trace) else {}
        figures = {f"adapt/{name}": float(values[-1]) for name, values in whole.items()}
        figures |= {f"adapt/{name}": value for name, value in learner.size._asdict().items() if value == value}
        figures["adapt/penalty"] = float(learner.penalty())
        for name, value in figures.items():
            pl_module.log(
                name, value, on_step=True, on_epoch=False, prog_bar=name in _BAR, logger=bool(trainer.loggers)
            )
        if due and trainer.is_global_zero:
            values = {
                f"adapt_layers/word_length/{name}": float(bits)
                for name, bits in zip(learner.widths.names, learner.widths.means()[-1], strict=True)
            }
            self._log_layers(trainer, values)
            for timeline in self._timelines.values():
                timeline.write_layers(learner.trace, learner.widths)

    def end(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Draw once more, the channels too, and save the files."""
        super().end(trainer, pl_module, controllers)
        (learner,) = _learners(controllers)
        for timeline in self._timelines.values():
            timeline.write_channels(learner.widths.step, _by_channel(learner))

    def files(self, traces: Sequence[Trace], controllers: Sequence[Engine]) -> dict[str, metrics.Saved]:
        """Return what is saved when a fit ends, by the files' names: the trace and the widths."""
        (learner,) = _learners(controllers)
        return {**super().files(traces, controllers), "widths.npz": learner.widths}


def _learners(controllers: Sequence[Engine]) -> list[Learner]:
    return [controller for controller in controllers if isinstance(controller, Learner)]


def _by_channel(learner: Learner) -> dict[str, Any]:
    """Return the word lengths of every weight with several formats, [rows, channels], by the weight's name."""
    return {name: learner.widths.of(name) for name in learner.masters if learner.widths.sizes(name).size > 1}
