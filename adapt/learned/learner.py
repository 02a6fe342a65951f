"""Learned formats on the user's own optimizer and modules: `attach`, `attach_lsq`, and what they answer."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from adapt import attachment, layering
from adapt.controller import Controller
from adapt.learned.budget import Budget
from adapt.learned.phases import Phases, rate
from adapt.learned.plan import FixedWidths, LearnedWidths, Plan
from adapt.learned.rules import StepRule
from adapt.learned.run import LearnedRun
from adapt.learned.scaling import DELTA
from adapt.learned.widths import Widths
from adapt.perfmodel.rehearsal import samples_of
from adapt.settings import Settings
from adapt.switching.policy import Policy


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
        return Size(*self._run.sizes, *self._run.averages)

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
        return copy.deepcopy(self._run.log)

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite: zero to the optimizer, and unknown to the formats."""
        return dict(zip(self._run.layers.names, self._run.layers.skipped.tolist(), strict=True))

    def penalty(self) -> Tensor:
        """Eq. 2's two terms at the full β, a 0-dim tensor without gradient: steps and ranges get it by themselves."""
        if isinstance(self.plan, FixedWidths):
            return torch.zeros(())
        return torch.tensor(self._run.penalty())

    def forget_losses(self) -> None:
        """Nothing to forget: losses do not matter here."""

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
        if isinstance(plan, LearnedWidths) and plan.schedule:
            _, at, length = plan.phases.at(step)
            self._set_rate(rate(at, length, plan.warmup))
        elif isinstance(plan, FixedWidths) and plan.steps is not None:
            self._set_rate(rate(min(step, plan.steps - 1), plan.steps, plan.warmup))
        if isinstance(self._run.rule, StepRule):
            self._run.rule.rate = float(self.optimizer.param_groups[0]["lr"])

    def _set_rate(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            # The name by which torch's schedulers know the peak, and which rides in the optimizer's state.
            peak = float(group.setdefault("initial_lr", float(group["lr"])))
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
            ValueError, RuntimeError: no batch, one that forward does not take, or a budget that cannot be met.
        """
        sites, module = self._run.sites, network or self._module
        if sites is None or module is None:
            return
        met, samples = sites.watch(), []
        device = self._run.formats.device
        with self.master_weights(), _undisturbed(module), torch.no_grad():
            for hook in sites._hooks:
                hook.idle = False
            for batch in batches:
                inputs = batch if isinstance(batch, tuple) else (batch,)
                inputs = tuple(x.to(device) if isinstance(x, Tensor) else x for x in inputs)
                samples.append(samples_of(inputs, None))
                try:
                    # Compiled, it would be traced once more for nothing.
                    getattr(module, "_orig_mod", module)(*inputs)
                except Exception as error:
                    raise RuntimeError(
                        f"calibration could not run a batch through {type(module).__name__}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
        if not samples:
            raise ValueError("calibration has no batch: give a few, each as the module's forward takes it")
        self._run.calibrate(met, samples)


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


def attach(
    optimizer: Optimizer,
    module: nn.Module,
    calibration: Iterable[Any] = (),
    *,
    weight_budget: Budget,
    activation_budget: Budget | None = None,
    phases: Phases,
    activation_size: str = "sum",
    floor: int = 2,
    weight_scaling: str = "ewgs",
    activation_scaling: str = "invtanh",
    delta: float = DELTA,
    beta: float | None = None,
    update_every: int = 20,
    width_rate: float | None = None,
    warmup: float = 0.04,
    schedule: bool = True,
    quantize_biases: bool = True,
    layers: layering.Choice = layering.is_matrix,
) -> Learner:
    """Learn the bit width of every weight channel and activation under size budgets (Schaefer et al. 2023).

    Hooks go on the optimizer and the modules; no module is replaced and the names in state_dict stay. Training then
    goes through three phases, counted in optimizer steps: all formats at the budget's average + 2 bits; learning of
    steps d and ranges q₊, from which the widths follow, under the penalty of eq. 2; fine-tuning with frozen formats.
    At the end of learning the widths are brought to the budgets, `Learner.log` says from where, and batch
    normalisation begins its statistics anew.

    Formats: weights by output channel, symmetric; biases and inputs of linear layers and convolutions one per tensor,
    inputs without a sign where calibration met none. First and last layers are layers like all others. A GradScaler's
    scale would count in the gradients to the activations' formats: use bfloat16, which needs none.

    Args:
        optimizer: any torch optimizer that evaluates the loss once in a step.
        module: the module that it trains.
        calibration: a few batches of inputs, each a tensor or a tuple of forward's positional arguments, which run
            through the module in its present mode. Needed with an activation budget.
        weight_budget: size of weights and quantised biases.
        activation_budget: size of the activations of one sample; None leaves activations in float32.
        phases: optimizer steps of each phase.
        activation_size: whether activations count by the "sum" of their tensors or by the largest, "max".
        floor: the fewest bits, 2 or 1. One signed bit is ±q₊.
        weight_scaling, activation_scaling: the gradient scaling of each, one of `adapt.learned.SCALINGS`.
        delta: δ of the scalings.
        beta: β of eq. 2 per kB²; by default 30 over the squared budget, so that an excess of 10 % costs 0.3. It rises
            to this value over the first half of learning.
        update_every: Φ: steps and ranges move every so many steps, by the mean of their gradients since.
        width_rate: octaves that d and q₊ move in an update at the peak of the schedule. By default fit for the number
            of updates that there are.
        warmup: share of each phase in which the learning rate rises.
        schedule: let the optimizer's learning rates, whose present values are the peaks, rise and then fall as a
            cosine in each phase. Off, they are left to you.
        quantize_biases: quantise the biases of quantised layers too.
        layers: which parameters are weights, called with (name, parameter); all of two or more dimensions if not given.

    Returns:
        The learner. It lives as long as the optimizer.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: an argument does not fit, a budget is below what
            `floor` bits take, calibration cannot run, or as `adapt.attach`.
    """
    plan = LearnedWidths(
        weight_budget=weight_budget,
        activation_budget=activation_budget,
        phases=phases,
        activation_size=activation_size,
        floor=floor,
        weight_scaling=weight_scaling,
        activation_scaling=activation_scaling,
        delta=delta,
        beta=beta,
        update_every=update_every,
        width_rate=width_rate,
        warmup=warmup,
        schedule=schedule,
    )
    return attach_plan(optimizer, module, plan, calibration, quantize_biases=quantize_biases, layers=layers)


def attach_lsq(
    optimizer: Optimizer,
    module: nn.Module,
    calibration: Iterable[Any] = (),
    *,
    weight_bits: int,
    activation_bits: int | None = None,
    per_channel: bool = True,
    steps: int | None = None,
    warmup: float = 0.04,
    momentum: float = 0.9,
    weight_scaling: str = "ste",
    activation_scaling: str = "ste",
    delta: float = DELTA,
    quantize_biases: bool = True,
    layers: layering.Choice = layering.is_matrix,
) -> Learner:
    """LSQ: train at given bit widths with learned steps, the homogeneous case of learned widths.

    Steps begin at 2·E|x|/√Q_P and move in every optimizer step by gradient descent with momentum, at the optimizer's
    first learning rate, their gradients times 1/√(numel·Q_P).

    Args:
        optimizer, module, calibration, quantize_biases, layers: as in `attach`.
        weight_bits: 1 to 8. One bit is ±d.
        activation_bits: 1 to 8; None leaves activations in float32.
        per_channel: a step for each output channel of a weight, instead of one for the weight.
        steps: length of the training, over which the optimizer's learning rates rise and fall as in `attach`; None
            leaves them to you.
        warmup: share of the steps in which the learning rate rises.
        momentum: of the steps' own gradient descent.
        weight_scaling, activation_scaling, delta: as in `attach`; plain straight-through by default.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as `attach`.
    """
    plan = FixedWidths(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        per_channel=per_channel,
        steps=steps,
        warmup=warmup,
        momentum=momentum,
        weight_scaling=weight_scaling,
        activation_scaling=activation_scaling,
        delta=delta,
    )
    return attach_plan(optimizer, module, plan, calibration, quantize_biases=quantize_biases, layers=layers)


def attach_plan(
    optimizer: Optimizer,
    module: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | None,
    *,
    quantize_biases: bool,
    layers: layering.Choice,
) -> Learner:
    """What `attach` and `attach_lsq` share: a learner with a plan, not yet calibrated if `calibration` is None.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as they do.
    """
    layering.check_optimizer(optimizer)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not callable(layers):
        raise TypeError(f"layers must be a function of (name, parameter), got {layers!r}")
    parameters = layering.named(module)
    biases = _biases(module, parameters, layers) if quantize_biases else set()
    settings = Settings(
        l1=0.0,
        l2=0.0,
        rounding="nearest",
        seed=0,
        layers=lambda name, parameter: name in biases or layers(name, parameter),
        quantize_biases=False,
        l1_by_word_length=False,
        trace_every=1,
        activations=None,
        quantize_errors=False,
        execution=None,
        execution_backward=True,
    )
    learner = attachment.admit(
        optimizer,
        parameters,
        lambda: Learner(optimizer, module, parameters, plan, settings),  # type: ignore[arg-type]
    )
    try:
        if calibration is not None:
            learner.calibrate(calibration)
    except BaseException:
        learner.detach("masters")
        raise
    return learner


def _biases(module: nn.Module, parameters: Mapping[str, Tensor], layers: layering.Choice) -> set[str]:
    """The names of the biases that belong to a module with a quantised weight."""
    names = {id(p): name for name, p in parameters.items()}
    found = set()
    for owner in module.modules():
        own = [p for p in owner.parameters(recurse=False) if id(p) in names]
        if any(layers(names[id(p)], p) for p in own):
            found |= {names[id(p)] for p in own if p.ndim == 1 and p.dtype == torch.float32}
    return found
