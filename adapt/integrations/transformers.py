"""Adaptive precision in the Trainer of Hugging Face's transformers."""

from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME

from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.adaptive.options import Options
from adapt.engine import persistence
from adapt.engine.losses import training_loss
from adapt.layers.hooks import remove_all
from adapt.numerics import LONGEST_WORD
from adapt.switching.policy import Policy


class AdaptivePrecisionCallback(TrainerCallback):  # type: ignore[misc]
    """Trains the model of a `transformers.Trainer` at adaptive precision: `Trainer(callbacks=[this])`.

    When training begins the optimizer is attached to; when it ends the model keeps its quantised weights. The loss is
    the one that the model returns: with `label_smoothing_factor` or `compute_loss_func` it returns none, and none is
    observed. The run's state is saved with the optimizer's, so `train(resume_from_checkpoint=…)` is exact, and
    `load_best_model_at_end` brings back the formats with which the best model was measured.

    Args:
        policy, options: as in `adapt.attach`.
        resume_from: the checkpoint's folder, needed only where `train(resume_from_checkpoint=…)` is given one that is
            not in the trainer's `output_dir`: the Trainer does not tell its callbacks.

    Attributes:
        controller: the controller of the running training or the latest; None before.
    """

    def __init__(
        self, policy: Policy[Any] | None = None, *, resume_from: str | Path | None = None, **options: Unpack[Options]
    ) -> None:
        self.controller: Controller | None = None
        self._policy, self._resume_from, self._options = policy, resume_from, options
        self._handles: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach, and resume from the checkpoint that the Trainer has loaded.

        Raises:
            ValueError: the checkpoint was saved without this callback, or is not found.
        """
        model: nn.Module = kwargs["model"]
        self._detach()
        self.controller = controller = attach(kwargs["optimizer"], model, self._policy, **self._options)
        try:
            if state.global_step:
                controller.optimizer.load_state_dict(self._saved(args, state))
        except BaseException:
            controller.detach("masters")
            raise
        steps = args.gradient_accumulation_steps

        def see(module: nn.Module, _: Any, inputs: dict[str, Any], output: Any) -> None:
            loss = training_loss(output)
            if loss is not None and module.training:
                # Divided by the items of all micro-batches, their losses add up to that of the step; ours are averaged.
                controller.observe(loss if inputs.get("num_items_in_batch") is None else loss.detach() * steps)

        self._handles = [model.register_forward_hook(see, with_kwargs=True)]

    def _saved(self, args: Any, state: Any) -> dict[str, Any]:
        given = self._resume_from or args.resume_from_checkpoint
        given = given if isinstance(given, str | Path) else Path(args.output_dir, f"checkpoint-{state.global_step}")
        saved = _optimizer_state(Path(given))
        if persistence.KEY not in saved:
            raise ValueError(
                f"the training resumes from step {state.global_step}, but {Path(given, OPTIMIZER_NAME)} "
                f"{'was saved without this callback' if saved else 'does not exist'}: give the checkpoint's folder as "
                "AdaptivePrecisionCallback(resume_from=…), or begin a new training"
            )
        return saved

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the mean word length of the weights to the log."""
        if self.controller is not None and self.controller.is_attached:
            layers: dict[str, Tensor] = self.controller.layers
            bits = sum(
                layers[name].numel() * (LONGEST_WORD if form is None else form.word_length)
                for name, form in self.controller.precisions.items()
            )
            figures = {"adapt/mean_word_length": bits / sum(layer.numel() for layer in layers.values())}
            for entry in (logs, state.log_history[-1] if state.log_history else None):
                if entry is not None:
                    entry.update(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach: the model keeps its weights rounded to nearest, and the best one, if it was loaded, its formats."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and self.controller is not None:
            saved = _optimizer_state(Path(best))
            if persistence.KEY in saved:
                self.controller.load_state_dict(saved[persistence.KEY])
            else:
                # Saved without the optimizer: the weights are on the grid of a step whose formats are not known.
                self.controller.detach("masters")
        self._detach()

    def _detach(self) -> None:
        remove_all(self._handles)
        self._handles = []
        if self.controller is not None:
            self.controller.detach()


def _optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """Return the optimizer's state in a checkpoint's folder; empty if there is none."""
    path = checkpoint / OPTIMIZER_NAME
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
    return state
