"""`Learner`, the controller of an optimizer whose formats are learned."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.controller import Controller
from adapt.learned.phases import Phases, rate
from adapt.learned.plan import FixedWidths, LearnedWidths, Plan
from adapt.learned.rules import StepRule
from adapt.learned.run import LearnedRun
from adapt.learned.widths import Widths
from adapt.perfmodel.inputs import samples_of, tensors_in
from adapt.run.settings import Settings
from adapt.switching.policy import Policy

_PEAK = "initial_lr"
"""The name by which torch's schedulers know a group's peak rate, and which rides in the optimizer's state."""


class Format(NamedTuple):
    """The format of a weight, channel by channel, or of an activation: float32 and int64 arrays [channels].

    `step` is d, `maximum` is q₊, `word_length` the bits that follow, `signed` whether one of them is a sign.
    """

    step: NDArray[np.float32]
    maximum: NDArray[np.float32]
    word_length: NDArray[np.int64]
    signed: bool


class Size(NamedTuple):
    """Sizes in kB of 8000 bits, and average word lengths; NaN bits where nothing is quantised."""

    weight_kilobytes: float
    activation_kilobytes: float
    weight_bits: float
    activation_bits: float

    @property
    def kilobytes(self) -> float:
        """Weights and activations together."""
        return self.weight_kilobytes + self.activation_kilobytes


class Learner(Controller):
    """Keeps an optimizer's layers on grids whose steps and ranges are learned. `attach` and `attach_lsq` make it.

    A `Controller` with formats of another kind: masters, views of the weights in training, evaluation and
    checkpoints, persistence in `optimizer.state_dict()` and the trace are as there. All rounding is to nearest.
    """

    _run: LearnedRun

    def __init__(
        self,
        optimizer: Optimizer,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        plan: Plan,
        settings: Settings,
    ) -> None:
        super().__init__(optimizer, module, parameters, plan, settings)  # type: ignore[arg-type]
        if plan.is_scheduled:
            for group in optimizer.param_groups:
                # Whatever an earlier schedule left there: the present rates are the peaks.
                group[_PEAK] = float(group["lr"])

    @property  # type: ignore[misc]
    def policy(self) -> Policy[Any]:
        """A learner has none: its `plan` and the gradients decide."""
        raise AttributeError("a Learner has no policy: see its plan")

    @property
    def plan(self) -> Plan:
        """What was chosen."""
        return self._run.plan

    @property
    def formats(self) -> dict[str, Format]:
        """The format of every weight and bias by its name, and of activations by the weight's name and ".input"."""
        formats = self._run.formats
        step, maximum = formats.step.cpu().numpy(), formats.maximum.cpu().numpy()
        return {
            name: Format(
                step[place].copy(), maximum[place].copy(), formats.bits[place].copy(), bool(formats.signed[place][0])
            )
            for name, place in formats.places.items()
            if formats.numel[place].any()
        }

    @property
    def precisions(self) -> dict[str, Any]:
        """The formats of the weights: see `formats`."""
        return {name: form for name, form in self.formats.items() if name in self._run.layers.names}

    @property
    def activation_precisions(self) -> dict[str, Any]:
        """The formats of the activations: see `formats`."""
        return {name: form for name, form in self.formats.items() if name not in self._run.layers.names}

    @property
    def size(self) -> Size:
        """How large weights and activations are now."""
        return Size(*self._run.sizes.kilobytes, *self._run.sizes.averages)

    @property
    def phase(self) -> str:
        """The phase of the next step: "pretraining", "learning" or "finetuning"; "lsq" where widths are given."""
        return "lsq" if isinstance(self.plan, FixedWidths) else self.plan.phases.at(self.step)[0]

    @property
    def widths(self) -> Widths:
        """The word length of every channel and activation, whenever it changed."""
        return self._run.widths

    @property
    def log(self) -> list[dict[str, float | str]]:
        """What each finished phase did, as numbers by name.

        Average bits, by how much the widths changed (mean bits and the share that moved), the root mean square of the
        gradient to log₂ of steps and ranges; of learning also the sizes, by how much they missed the budgets (0.05
        is 5 % too large), and the sizes to which they were brought.
        """
        return copy.deepcopy(self._run.log.entries)

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite: zero to the optimizer, and unknown to the formats."""
        return dict(zip(self._run.layers.names, self._run.layers.skipped.tolist(), strict=True))

    def penalty(self) -> Tensor:
        """Eq. 2's two terms at the full β, a 0-dim tensor without gradient: steps and ranges get it by themselves."""
        return torch.tensor(self._run.sizes.penalty())

    def _begin(self, policy: Policy[Any], settings: Settings, layers: Mapping[str, Tensor]) -> LearnedRun:
        assert self._module is not None
        return LearnedRun(policy, settings, layers, self._module)  # type: ignore[arg-type]

    @torch.no_grad()
    def _before_update(self, loss: Any) -> None:
        self._schedule()
        super()._before_update(loss)

    def _schedule(self) -> None:
        """Give the step that comes its learning rate."""
        plan, step = self.plan, self.step
        if isinstance(plan, LearnedWidths) and plan.is_scheduled:
            _, at, length = plan.phases.at(step)
            self._set_rate(rate(at, length, plan.warmup))
        elif isinstance(plan, FixedWidths) and plan.steps is not None:
            self._set_rate(rate(min(step, plan.steps - 1), plan.steps, plan.warmup))
        if isinstance(self._run.rule, StepRule):
            self._run.rule.rate = float(self.optimizer.param_groups[0]["lr"])

    def _set_rate(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            peak = float(group.setdefault(_PEAK, float(group["lr"])))
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * share)
            else:
                group["lr"] = peak * share

    @property
    def is_calibrated(self) -> bool:
        """Whether activations, where they are quantised, have ranges."""
        formats = self._run.formats
        return self._run.sites is None or bool(formats.numel[formats.weights :].any())

    def use_phases(self, phases: Phases) -> None:
        """Let the phases have other lengths, as when the length of a training is known late.

        Ends that are past by then are made up for in the next step. What is settled or frozen stays so.

        Args:
            phases: optimizer steps of each, counted from the run's first one.
        """
        self._run.use_phases(phases)

    def calibrate(self, batches: Iterable[Any], network: nn.Module | None = None) -> None:
        """Set the activations' first ranges; `attach` does it.

        Args:
            batches: each a tensor, or a tuple of the positional arguments of the network's forward.
            network: what to run, the module itself if None.

        Raises:
            TypeError, ValueError, RuntimeError: no batches, one that forward does not take, or a budget that cannot be
                met.
        """
        sites, module = self._run.sites, network or self._module
        if sites is None or module is None:
            return
        if isinstance(batches, Tensor):
            raise TypeError(
                f"calibration must be batches, got one tensor of shape {tuple(batches.shape)}: pass [batch]"
            )
        if not isinstance(batches, Iterable):
            raise TypeError(f"calibration must be batches, got {batches!r}: give a few, each as forward takes it")
        met, empty = sites.watch(), True
        device = self._run.formats.device
        with self.master_weights(), _undisturbed(module), torch.no_grad():
            sites.pin(None)
            for batch in batches:
                inputs = batch if isinstance(batch, tuple) else (batch,)
                inputs = tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)
                samples, empty = _samples(inputs), False
                for one in met:
                    one.samples = samples
                try:
                    # Compiled, it would be traced once more for nothing.
                    getattr(module, "_orig_mod", module)(*inputs)
                except Exception as error:
                    reason = (str(error).splitlines() or [""])[0]
                    raise RuntimeError(
                        f"calibration could not run a batch through {type(module).__name__} "
                        f"({type(error).__name__}: {reason}): a batch is a tensor, or a tuple of forward's positional "
                        "arguments, so of a loader of inputs and labels pass [x for x, _ in loader]"
                    ) from error
        if empty:
            raise ValueError("calibration has no batch: give a few, each as the module's forward takes it")
        self._run.calibrate(met)

    # Persistence

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from where `state_dict` was taken. Nothing changes unless all of it fits.

        Args:
            state: what `state_dict` answered.
            strict: True. A budget is that of a whole network, so layers cannot be matched by name.

        Raises:
            ValueError: `strict` is not True, or the state is of another kind, version, plan or network.
        """
        if strict is not True:
            raise ValueError(
                f"strict must be True, got {strict!r}: learned formats go on with all layers of their network or none"
            )
        super().load_state_dict(state)


def _samples(inputs: tuple[Any, ...]) -> int:
    """How many samples a calibration batch holds.

    Raises:
        ValueError: it holds none, or its tensors disagree.
    """
    try:
        return samples_of(inputs, None)
    except ValueError:
        shapes = [list(x.shape) for x in tensors_in(inputs)]
        raise ValueError(
            "calibration needs batches whose tensors share their first dimension, that of the samples, and have some, "
            f"got shapes {shapes}"
        ) from None


@contextlib.contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Buffers and random streams as before."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = sorted({p.device.index for p in module.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
