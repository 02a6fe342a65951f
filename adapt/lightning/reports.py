"""When a fit logs, draws and saves."""

import time
from collections.abc import Collection, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from adapt.engine.engine import Engine
from adapt.lightning import metrics
from adapt.lightning.compatibility import changes_accumulation
from adapt.lightning.forward_inputs import batch_size, count_operations
from adapt.lightning.packages import LightningModule, Logger, Trainer
from adapt.trace import Trace
from adapt.trace.widths import Widths

_DRAWING_SHARE = 0.05
"""Share of the time that pictures may take while training goes on."""


class Reports:
    """Logs at the trainer's logging steps, and draws and saves at the ends. Only then does it wait for the device.

    Args:
        internals: whether loggers also get what AdaPT decides from.
    """

    _bar: Collection[str] = ("adapt/mean_word_length",)
    """What the progress bar shows: nothing that is modelled, which would look measured there."""

    def __init__(self, internals: bool = False) -> None:
        self._internals = internals
        self._aggregates: metrics.Aggregates | None = None
        self._counts: dict[Tensor, int] = {}
        self._timelines: dict[Logger, Any] = {}
        self._widths: Widths | None = None
        self._steps = 0
        self._draw_after = 0.0

    def describe(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Give the loggers the settings of the run as hyperparameters: they are known when training starts.

        A hyperparameter "adapt" of the module or the data module stays as it is. TensorBoard shows
        the first hyperparameters that it is given, which are the module's, but every text.
        """
        if not trainer.loggers:
            return
        # Every process reads the traces, though only one logs: bringing them up to date may need all processes.
        runs = [controller.trace.run for controller in controllers]
        if not trainer.is_global_zero:
            return
        self._timelines = metrics.timelines(trainer.loggers, internals=self._internals)
        # Lightning 2.4 has no such switch.
        if not getattr(trainer, "enable_autolog_hparams", True):
            return
        made = runs[0] if len(runs) == 1 else {str(index): run for index, run in enumerate(runs)}
        data = trainer.datamodule  # type: ignore[attr-defined]
        is_taken = any("adapt" in part.hparams for part in (pl_module, data) if part is not None)
        for logger in trainer.loggers:
            if logger in self._timelines:
                self._timelines[logger].describe(made)
            elif not is_taken:
                logger.log_hyperparams({"adapt": made})

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Find out from the first training batch what a forward pass costs."""
        if self._aggregates is not None:
            return
        counts, reason = count_operations(pl_module, batch)
        samples = batch_size(batch)
        if counts is not None and samples is None:
            counts, reason = None, "the number of samples in a training batch is not clear"
        if counts is None:
            rank_zero_info(
                f"AdaptivePrecision leaves the speedups out: {reason}. Set example_input_array of "
                f"{type(pl_module).__name__} to a batch as its forward takes it."
            )
        self._counts = counts or {}
        accumulation = None if changes_accumulation(trainer) else trainer.accumulate_grad_batches
        if counts is not None and accumulation is None:
            rank_zero_info(
                "AdaptivePrecision leaves adapt/training_speedup out: GradientAccumulationScheduler changes how many "
                "batches a step has."
            )
        self._aggregates = metrics.Aggregates(batch_size=samples or 1, accumulation=accumulation)

    def log(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Log after a step, if it is the first, the last of an epoch, or one in which the trainer logs."""
        before, self._steps = self._steps, sum(controller.step for controller in controllers)
        due = trainer._logger_connector.should_update_logs
        if self._steps == before or trainer.barebones or not (due or before == 0 or trainer.is_last_batch):
            return
        traces = [controller.trace for controller in controllers]
        for name, value in self._figures(traces, controllers).items():
            pl_module.log(
                name, value, on_step=True, on_epoch=False, prog_bar=name in self._bar, logger=bool(trainer.loggers)
            )
        if due and trainer.is_global_zero:
            self._log_layers(trainer, self._layer_values(traces, controllers, pl_module))
            # Merging long traces takes too long to do it often; those of several optimizers wait until they are drawn.
            if len(traces) == 1:
                for timeline in self._timelines.values():
                    timeline.write_layers(traces[0], self._widths)

    def _figures(self, traces: Sequence[Trace], controllers: Sequence[Engine]) -> dict[str, float]:
        """Return the figures of the whole network, by the names under which they are logged."""
        if self._aggregates is None:
            return {}
        # The names in the counts must be those of the controller, which may differ from the module's.
        counts = [{name: self._counts.get(p, 0) for name, p in c.layers.items()} for c in controllers]
        return self._aggregates.update(traces, counts)

    def _layer_values(
        self, traces: Sequence[Trace], controllers: Sequence[Engine], module: LightningModule
    ) -> dict[str, float]:
        """Return the present values of every layer, by the names under which loggers get them."""
        return metrics.layer_values(traces, _names(traces, controllers, module), internals=self._internals)

    def _log_layers(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Give the layers' values to all loggers but those with a timeline, which writes them itself."""
        for logger in trainer.loggers:
            if logger not in self._timelines:
                # The same step that the trainer and its own callbacks give to the loggers.
                logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def draw(self, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Draw the timeline, unless drawing would take more than a small share of the time."""
        # Every process reads the traces, though only one draws: bringing them up to date may need all processes.
        traces = [controller.trace for controller in controllers]
        start = time.monotonic()
        if start >= self._draw_after:
            self._draw(traces, _names(traces, controllers, pl_module))
            end = time.monotonic()
            self._draw_after = end + (end - start) / _DRAWING_SHARE

    def end(self, trainer: Trainer, pl_module: LightningModule, controllers: Sequence[Engine]) -> None:
        """Draw once more and save the files."""
        traces = [controller.trace for controller in controllers]
        self._draw(traces, _names(traces, controllers, pl_module))
        if trainer.is_global_zero:
            files = self.files(traces, controllers)
            try:
                metrics.save_files(files, trainer.loggers)
            except OSError as error:
                rank_zero_warn(f"{' or '.join(files)} could not be saved, the callback still has it: {error}")

    def files(self, traces: Sequence[Trace], controllers: Sequence[Engine]) -> dict[str, metrics.Saved]:
        """Return what is saved when a fit ends, by the files' names: a trace for each optimizer."""
        if len(traces) == 1:
            return {"trace.npz": traces[0]}
        return {f"trace_{index}.npz": trace for index, trace in enumerate(traces)}

    def _draw(self, traces: Sequence[Trace], names: Sequence[Sequence[str]]) -> None:
        if self._timelines and traces:
            trace = metrics.merged(traces, names)
            for timeline in self._timelines.values():
                timeline.write_layers(trace, self._widths, to_the_end=True)
                timeline.draw(trace)


def _names(traces: Sequence[Trace], controllers: Sequence[Engine], module: LightningModule) -> list[Sequence[str]]:
    return metrics.distinct_names(traces, [controller.layers for controller in controllers], module)
