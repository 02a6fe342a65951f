"""The update rules of learned steps and ranges."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from adapt.engine import persistence
from adapt.learned.budget import Load, beta_of, penalty_slope
from adapt.learned.format_table import FormatTable
from adapt.learned.options import FixedWidths, LearnedWidths
from adapt.learned.phases import Name, pressure, rate
from adapt.learned.range_growth import has_grown

TRAVEL, LARGEST_MOVE = 12.0, 0.5
"""At the default rate, the octaves that d and q₊ can move in learning if all updates agree, and at most per update."""

SETTLING_TRAVEL = 2.0
"""The octaves that d and q₊ can move together in a phase in which widths stay."""

LARGEST_CHANGE = 0.05
"""The largest share of itself that an update adds to or takes from LSQ's d. Its gradient sums over a channel, so that
at few bits and high rates d would swing ever more widely, from nearly zero to several times the weights."""

MEAN, SQUARE = 0.5, 0.9
"""Decay per update of the running means of gradients and of their squares; small, because there are few updates."""

_KINDS = ("", *get_args(Name), "settling")
"""The phases in which a rule may be; empty before the first update."""


def move(
    mean: Tensor, square: Tensor, count: int, gradient: Tensor, penalty: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute one update of log₂ d and log₂ q₊: Adam, with a penalty that does not enter the running means.

    If it did, the large penalties while the size is far from the budget would dwarf all later gradients. The move is
    −step·clip((mean + penalty)/√square, −1, 1), so no parameter moves further than `step`, whatever its scale.

    Args:
        mean, square: running means of the gradient and of its square.
        count: the number of updates before this one.
        gradient: the gradient of the task's loss.
        penalty: the gradient of the budget's penalty.
        step: the largest move, in octaves.

    Returns:
        The move, the new mean and the new mean square.
    """
    mean = MEAN * mean + (1 - MEAN) * gradient
    square = SQUARE * square + (1 - SQUARE) * gradient.square()
    seen = count + 1
    direction = mean / (1 - MEAN**seen) + penalty
    scaled = direction / (square / (1 - SQUARE**seen)).sqrt().clamp(min=1e-30)
    return -step * scaled.clamp(-1, 1), mean, square


class WidthRule:
    """Updates d and q₊ of learned widths in octaves, by their mean gradients over the steps since the last update.

    In pre-training, and again once the widths are settled, d and q₊ move together and the widths stay. In learning
    each follows its own gradient and the penalty's. An update in learning that would cross the budget from above is
    shortened to land on it.

    Args:
        loads: sizes of the weights' formats, and of the activations'.
        targets: their budgets in kB; infinite if there is none.
    """

    def __init__(self, loads: tuple[Load, Load], targets: tuple[float, float]) -> None:
        self._loads, self._targets = loads, targets
        self._means: dict[str, Tensor] = {}
        self._kind, self._count = "", 0

    def update(self, plan: LearnedWidths, formats: FormatTable, count: int, step: int, *, settled: bool) -> Tensor:
        """Update the formats by their sums over `count` steps, the last of which has the number `step` (from 0).

        Returns:
            The gradients with respect to log₂ d and log₂ q₊, without the penalty's, float64 [2, F].
        """
        phase, at, _ = plan.phases.at(step)
        found = torch.stack(formats.figures(count)[:2])
        free = phase == "learning" and not settled
        self._reset_for(found, "settling" if settled else phase)
        # If the width is fixed, step and range move together.
        tied = formats.is_pinned if free else np.ones_like(formats.is_pinned)
        gradient = torch.where(torch.from_numpy(tied).to(found.device), found.sum(0), found)
        penalty = self._penalties(plan, formats, pressure(at, plan.phases.learned)) if free else torch.zeros_like(found)
        octaves = _octaves(plan, step, free=free, settled=settled)
        moved, self._means["mean"], self._means["square"] = move(
            self._means["mean"], self._means["square"], self._count, gradient, penalty, octaves
        )
        self._count += 1
        if free:
            self._move_to_budget(formats, torch.stack([formats.step, formats.maximum]), moved)
        else:
            formats.shift(moved[0])
        return found

    def forget(self, formats: Tensor) -> None:
        """Reset the running means of these formats, a mask [F], because their formats were replaced."""
        for mean in self._means.values():
            mean[:, formats] = 0

    def _penalties(self, plan: LearnedWidths, formats: FormatTable, share: float) -> Tensor:
        """Return the gradient of eq. 2 with this share of β for log₂ d and log₂ q₊, straight through rounding up.

        It is 0 for a width at its lowest.
        """
        slopes = []
        parts = formats.bits[: formats.weights], formats.bits[formats.weights :]
        lowest = formats.lowest[: formats.weights], formats.lowest[formats.weights :]
        for load, target, bits, least in zip(self._loads, self._targets, parts, lowest, strict=True):
            slope = 0.0
            if math.isfinite(target):
                slope = penalty_slope(load.excess(bits, target), beta_of(plan.beta, target) * share)
            slopes.append(torch.from_numpy(slope * load.shares(bits) * (bits > least)))
        to_width = torch.cat(slopes).to(formats.device) * formats.ratios()
        return torch.stack([-to_width, to_width])

    def _move_to_budget(self, formats: FormatTable, before: Tensor, moved: Tensor) -> None:
        """Move the formats; if that would cross a budget from above, only as far as the budget."""
        parts = slice(0, formats.weights), slice(formats.weights, None)
        above = [
            load.size(formats.bits[part]) > target
            for load, part, target in zip(self._loads, parts, self._targets, strict=True)
        ]
        share = [1.0, 1.0]
        self._move_partly(formats, before, moved, share)
        for i, (load, part, target) in enumerate(zip(self._loads, parts, self._targets, strict=True)):
            if not above[i] or load.size(formats.bits[part]) >= target:
                continue
            low, high = 0.0, 1.0
            for _ in range(10):
                share[i] = (low + high) / 2
                self._move_partly(formats, before, moved, share)
                low, high = (low, share[i]) if load.size(formats.bits[part]) < target else (share[i], high)
            share[i] = high
            self._move_partly(formats, before, moved, share)

    def _move_partly(self, formats: FormatTable, before: Tensor, moved: Tensor, share: Sequence[float]) -> None:
        part = torch.full_like(moved[0], share[1])
        part[: formats.weights] = share[0]
        formats.set(*(before * (moved * part).exp2().to(before)))

    def _reset_for(self, like: Tensor, kind: str) -> None:
        """Reset the means at the beginning of each phase: gradients of steps alone say nothing about widths."""
        if kind != self._kind:
            self._means = {"mean": torch.zeros_like(like), "square": torch.zeros_like(like)}
            self._kind, self._count = kind, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        return {"kind": self._kind, "count": self._count} | {name: t.clone() for name, t in self._means.items()}

    def check_state(self, state: Any, formats: FormatTable) -> None:
        """Check that `load_state_dict` can load this state.

        Raises:
            ValueError: it is not a state of this rule and network.
        """
        kind, count = (state.get(name) for name in ("kind", "count")) if isinstance(state, dict) else (None, None)
        if kind not in _KINDS or type(count) is not int or count < 0:
            raise ValueError(f"the precision state should hold the rule's kind and count, got {state!r:.80}")
        if kind:
            like = torch.empty(2, len(formats.numel), dtype=torch.float64)
            persistence.check_tensors("rule", state, {"mean": like, "square": like})

    def load_state_dict(self, state: dict[str, Any], formats: FormatTable) -> None:
        """Load what `state_dict` returned, after `check_state` has accepted it."""
        self._kind, self._count = state["kind"], state["count"]
        self._means = {name: state[name].to(formats.device) for name in ("mean", "square") if name in state}


def _octaves(plan: LearnedWidths, step: int, *, free: bool, settled: bool) -> float:
    """Return how far an update may move, in octaves."""
    phases, every = plan.phases, plan.update_every
    _, at, length = phases.at(step)
    if free:
        default = min(TRAVEL * every / max(phases.learned, 1), LARGEST_MOVE)
        peak = default if plan.width_rate is None else plan.width_rate
        return peak * rate(min(at, phases.learned - 1), phases.learned, plan.warmup)
    if settled:
        # Settled widths stay settled, even if the phases have changed and this step now comes before the settling.
        at, length = max(step - phases.settling, 0), phases.learning - phases.learned
    return min(SETTLING_TRAVEL * every / max(length, 1), LARGEST_MOVE) * rate(at, length, 0.0)


class StepRule:
    """Updates LSQ's steps d by gradient descent with momentum, at the learning rate of the weights."""

    def __init__(self) -> None:
        self._velocity: Tensor | None = None

    def update(self, plan: FixedWidths, formats: FormatTable, count: int, rate: float) -> None:
        """Update the steps d by their sums over `count` training steps at this learning rate."""
        found = formats.lsq_gradients(count)
        self._velocity = found if self._velocity is None else plan.momentum * self._velocity + found
        moved = formats.step - rate * self._velocity
        confined = moved.clamp((1 - LARGEST_CHANGE) * formats.step, _growth(formats) * formats.step)
        # A velocity that d cannot follow would otherwise grow unseen, and then carry d far too low or too high.
        self._velocity = torch.where(moved == confined, self._velocity, 0.0)
        formats.set_steps(confined.to(formats.step))

    def forget(self, formats: Tensor) -> None:
        """Reset the velocity of these formats, a mask [F], because their formats were replaced."""
        if self._velocity is not None:
            self._velocity[formats] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save."""
        return {} if self._velocity is None else {"velocity": self._velocity.clone()}

    def check_state(self, state: Any, formats: FormatTable) -> None:
        """Check that `load_state_dict` can load this state.

        Raises:
            ValueError: it is not a state of this rule and network.
        """
        if not isinstance(state, dict):
            raise ValueError(f"the precision state should hold the rule's velocity, got {state!r:.80}")
        if state:
            like = torch.empty(len(formats.numel), dtype=torch.float64)
            persistence.check_tensors("rule", state, {"velocity": like})

    def load_state_dict(self, state: dict[str, Any], formats: FormatTable) -> None:
        """Load what `state_dict` returned, after `check_state` has accepted it."""
        self._velocity = state["velocity"].to(formats.device) if "velocity" in state else None


def _growth(formats: FormatTable) -> Tensor:
    """Return the factor by which an update may increase each d: 2 while weights that began near zero are small."""
    factor = torch.full_like(formats.step, 1 + LARGEST_CHANGE)
    if formats.follows:
        numel = torch.from_numpy(formats.numel[: formats.weights]).to(formats.step)
        factor[: formats.weights][~has_grown(formats.maximum[: formats.weights], numel)] = 2.0
    return factor
