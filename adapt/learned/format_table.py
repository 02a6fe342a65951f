"""Step and range of every learned format of a network: one for each weight channel and each activation tensor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.engine import persistence
from adapt.kernels.learned_steps import SUMS
from adapt.learned import lsq
from adapt.learned.quantizer import is_sign, limit, range_gradients, range_row, word_length
from adapt.learned.word_bounds import WordBounds
from adapt.numerics import LONGEST_WORD, Format

STEPS = {"weight": (2.0**-12, 1.0), "activation": (2.0**-12, 8.0)}
"""Bounds of d (Schaefer et al.)."""

RANGES = (2.0**-8, 127.0)
"""Bounds of q₊."""

LN2 = float(np.log(2.0))


class FormatTable:
    """d and q₊ of F formats, the kernels' table derived from them, and the gradient sums of backward passes.

    Weights come first, tensor by tensor and channel by channel, then activations, with one format each.

    Args:
        names: names of the tensors.
        channels: number of formats of each tensor.
        numel: elements with each format, int64 [F]; 0 for a tensor that calibration did not meet, which stays float32.
        signed: whether a format has both signs, bool [F].
        weights: how many of the formats belong to weights.
        floor: the fewest bits.
        fixed: LSQ's word lengths, int64 [F]; None if word lengths are learned.
        power_of_two: whether LSQ's values are multiples of the power of two nearest to d instead of d itself.
        device: the device of the tensors.

    Attributes:
        step, maximum: d and q₊, float32 [F] on the device.
        rows: the kernels' table, float32 [F, 5] on the device.
        sums: gradient sums of the backward passes since the last update, float64 [F, 4] on the device.
        follows: whether some weights began near zero, so that formats follow weights that outgrow them.
        bits: word lengths, int64 [F] on the host.
        lowest, highest: the bounds of the word lengths, int64 [F] on the host.
    """

    def __init__(
        self,
        names: Sequence[str],
        channels: Sequence[int],
        numel: NDArray[np.int64],
        signed: NDArray[np.bool_],
        *,
        weights: int,
        floor: int,
        fixed: NDArray[np.int64] | None = None,
        power_of_two: bool = False,
        device: torch.device,
    ) -> None:
        self.names, self.channels = tuple(names), tuple(channels)
        self.numel, self.weights, self.floor, self.fixed = numel, weights, floor, fixed
        self._power_of_two = power_of_two
        count = len(numel)
        ends = np.cumsum(channels, dtype=np.int64)
        self.places = {n: slice(int(e - c), int(e)) for n, c, e in zip(names, channels, ends, strict=True)}
        self.signed = torch.from_numpy(signed.copy()).to(device)
        self.follows = False
        self.step = torch.ones(count, device=device)
        self.maximum = torch.ones(count, device=device)
        self.rows = torch.zeros(count, 5, device=device)
        self.sums = torch.zeros(count, SUMS, dtype=torch.float64, device=device)
        self.bits = np.full(count, floor, np.int64)
        bounds = np.array([STEPS["weight" if i < weights else "activation"] for i in range(count)], np.float32)
        self._lowest, self._highest = torch.from_numpy(bounds.reshape(-1, 2)).to(device).unbind(1)
        self.bound(np.full(count, floor, np.int64), np.full(count, LONGEST_WORD, np.int64))

    def bound(self, lowest: NDArray[np.int64], highest: NDArray[np.int64]) -> None:
        """Keep learned word lengths within these bounds, int64 [F], from the next `set` on."""
        self.lowest, self.highest = lowest, highest
        self._words = WordBounds(lowest, highest, self.signed, (self._lowest, self._highest), floor=self.floor)

    @property
    def is_pinned(self) -> NDArray[np.bool_]:
        """Which formats are bounded to a single word length, bool [F]."""
        return np.equal(self.lowest, self.highest)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.step.device

    @property
    def is_weight(self) -> NDArray[np.bool_]:
        """Which formats belong to weights, bool [F]."""
        return np.arange(len(self.numel)) < self.weights

    @torch.no_grad()
    def set_sizes(self, numel: NDArray[np.int64], signed: Tensor) -> None:
        """Use these sizes and signs, [F]. A tensor without elements is not rounded."""
        self.numel[:] = numel
        self.signed.copy_(signed)
        self._derive()

    @torch.no_grad()
    def set(self, step: Tensor, maximum: Tensor) -> None:
        """Use these d and q₊, clipped to their bounds and to d ≤ q₊, from the next pass on.

        At d = q₊ a word has two signed bits: −d, 0, d. With floor 1 the d of a signed format may grow to 4·q₊; beyond
        2·q₊ the values are ±q₊, which do not depend on d, so d has no other bound.
        """
        self.maximum.copy_(self._words.with_room(maximum.clamp(*RANGES)))
        most = torch.where(self.signed, 4.0, 1.0) * self.maximum if self.floor == 1 else self.maximum
        step = torch.minimum(step.clamp(self._lowest, self._highest_steps(step, self.maximum)), most)
        self.step.copy_(self._words.fitted(step, self.maximum))
        self._derive()

    def _highest_steps(self, step: Tensor, maximum: Tensor) -> Tensor:
        """Return the upper bounds of d; infinite for formats of one signed bit, if their bounds allow one."""
        is_one = is_sign(step, maximum, self.signed, self.floor) & self._words.allow_one
        return torch.where(is_one, torch.inf, self._highest)

    @torch.no_grad()
    def shift(self, octaves: Tensor) -> None:
        """Move d and q₊ together as far as both stay within their bounds, so that no width changes.

        Args:
            octaves: the distance in octaves, [F].
        """
        step, maximum, bits = self.step.clone(), self.maximum.clone(), self.bits
        least = torch.maximum(self._lowest / step, RANGES[0] / maximum)
        most = torch.minimum(self._highest_steps(step, maximum) / step, RANGES[1] / maximum)
        factor = octaves.exp2().to(step).clamp(least, most)
        self.set(step * factor, maximum * factor)
        # If q₊/d just fits into a word, float rounding may push it beyond.
        carried = torch.from_numpy(self.bits != bits).to(self.device)
        if carried.any():
            self.set(torch.where(carried, step, self.step), torch.where(carried, maximum, self.maximum))

    @torch.no_grad()
    def set_steps(self, step: Tensor) -> None:
        """Use LSQ's formats with steps d, at least 2⁻²⁰, from the next pass on."""
        self.step.copy_(step.clamp(min=2.0**-20))
        self._derive()

    @property
    def used_step(self) -> Tensor:
        """The distance between neighbouring values: d, or the power of two nearest to it; float32 [F]."""
        return lsq.nearest_power_of_two(self.step) if self._power_of_two else self.step

    def _derive(self) -> None:
        """Update the kernels' table and the word lengths from steps, ranges, signs and sizes."""
        if self.fixed is None:
            row = range_row(self.step, self.maximum, self.signed, floor=self.floor)
            self.bits = word_length(self.step, self.maximum, self.signed, floor=self.floor).cpu().numpy()
        else:
            row = lsq.rows(self.used_step, self.fixed, self.signed)
            self.bits = self.fixed.copy()
        # In place, because hooks and NumPy views hold the table.
        self.rows.copy_(torch.stack(list(row), dim=1))
        self.rows[torch.from_numpy(self.numel == 0).to(self.device), 0] = 0
        if self.fixed is not None:
            self.maximum.copy_(self.rows[:, 3] * self.rows[:, 1])

    @torch.no_grad()
    def set_widths(self, bits: NDArray[np.int64], chosen: NDArray[np.bool_], maximum: Tensor) -> None:
        """Give the chosen formats these widths of up to 16 bits, with the q₊ nearest to `maximum` that allows them.

        Because d has bounds, a width also bounds q₊: clipping d alone would change the width.
        """
        wanted = torch.from_numpy(chosen).to(self.device)
        top = limit(torch.from_numpy(bits).to(self.device), self.signed)
        within = torch.where(top > 0, maximum.clamp(top * self._lowest, top * self._highest), maximum).clamp(*RANGES)
        step = torch.where(top > 0, within / top.clamp(min=1), 4 * within)
        self.set(torch.where(wanted, step, self.step), torch.where(wanted, within, self.maximum))

    def _mean_sums(self, count: int) -> tuple[Tensor, ...]:
        """Return the four gradient sums as means over `count` steps, 0 where they are not finite; float64 [F] each."""
        return (self.sums / max(count, 1)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).unbind(1)

    def figures(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients with respect to log₂ d and log₂ q₊, and Σg², means over `count` steps; float64 [F]."""
        *parts, energy = self._mean_sums(count)
        step, maximum = self.step.double(), self.maximum.double()
        back = range_gradients(parts, step, maximum, self.signed, floor=self.floor)
        return LN2 * step * back[0], LN2 * maximum * back[1], energy

    def lsq_gradients(self, count: int) -> Tensor:
        """Return LSQ's gradients with respect to d, with its gradient scale, means over `count` steps; float64 [F]."""
        assert self.fixed is not None
        numel = torch.from_numpy(self.numel).to(self.device).double()
        found = lsq.scaled_gradients(self._mean_sums(count)[:3], numel, self.fixed, self.signed)
        # The derivative of 2^round(log₂ d) with respect to d, straight through round; 1 if d itself is used.
        return found * (self.used_step / self.step)

    def ratios(self) -> Tensor:
        """Return the derivative of log₂(q₊/d + 1) with respect to log₂(q₊/d): q₊/(q₊ + d), float64 [F]."""
        return (self.maximum / (self.maximum + self.step)).double()

    def averages(self, names: Sequence[str]) -> tuple[list[float], list[float]]:
        """Return the word length and the fraction length −log₂ d of each of these tensors, as means over elements."""
        steps = self.rows[:, 1].log2().cpu().numpy()
        places = [self.places[name] for name in names]
        shares = [self.numel[p] / max(int(self.numel[p].sum()), 1) for p in places]
        words = [float(self.bits[p] @ s) for p, s in zip(places, shares, strict=True)]
        fractions = [float(-steps[p] @ s) for p, s in zip(places, shares, strict=True)]
        return words, fractions

    def state_dict(self) -> dict[str, Any]:
        """Return copies of steps, ranges, signs, sums and sizes."""
        names = ("step", "maximum", "signed", "sums")
        return {
            "numel": torch.from_numpy(self.numel.copy()),
            "follows": self.follows,
            **{name: getattr(self, name).clone() for name in names},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, after `check_state` has accepted it."""
        self.set_sizes(state["numel"].cpu().numpy(), state["signed"])
        # In the first versions, formats did not follow weights.
        self.follows = state.get("follows", False)
        self.sums.copy_(state["sums"])
        if self.fixed is None:
            self.set(state["step"].to(self.device), state["maximum"].to(self.device))
        else:
            self.set_steps(state["step"].to(self.device))

    def check_state(self, state: Any) -> None:
        """Check that `load_state_dict` can load this state.

        Raises:
            ValueError: a tensor is missing, of another kind or size, or not finite.
        """
        likes = self.state_dict()
        del likes["follows"]
        persistence.check_tensors("formats", state if isinstance(state, dict) else {}, likes)
        # Optional, because the first versions did not save it.
        if type(state.get("follows", False)) is not bool:
            raise ValueError(f"the state of the formats should hold 'follows' as bool, got {state['follows']!r:.80}")
        numbers = torch.cat([state["step"], state["maximum"]])
        if not bool(((numbers > 0) & numbers.isfinite()).all() and (state["numel"] >= 0).all()):
            raise ValueError("the state of the formats should hold finite steps and ranges above 0")
        weights = slice(0, self.weights)
        if not np.array_equal(state["numel"][weights].cpu().numpy(), self.numel[weights]):
            raise ValueError("the state of the formats should hold the sizes of this network's weights")

    def format_of(self, name: str, *, axis: int | None, groups: int = 1) -> Format:
        """Return the format of one tensor.

        Args:
            name: the tensor's name.
            axis: the dimension along which its channels lie; None if it has one format.
            groups: blocks of its first dimension: see `adapt.numerics.Format`.
        """
        place = self.places[name]
        rows, bits = self.rows[place].cpu().numpy().astype(np.float64), self.bits[place]
        signed = self.signed[place].cpu().numpy()
        # One signed bit is the word −1 or 1; the kernels' row has the levels ±½ of twice that step.
        sign = signed & (bits == 1)
        low, high = (np.where(sign, end, np.rint(rows[:, column])) for end, column in ((-1, 2), (1, 3)))
        step = np.where(sign, rows[:, 1] / 2, rows[:, 1])
        chosen: Any = slice(None) if axis is not None else 0
        return Format(bits[chosen], step[chosen], signed[chosen], low[chosen], high[chosen], axis, groups)
