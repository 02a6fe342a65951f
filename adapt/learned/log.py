"""Figures of the finished phases of a run."""

from typing import Any

import numpy as np

from adapt import user_warnings
from adapt.learned.format_table import FormatTable
from adapt.learned.sizes import Sizes

Entry = dict[str, float | str]
"""Figures of one phase, by name."""


class Log:
    """Entries of the finished phases, and the material for the present phase's entry.

    Args:
        formats: the learned formats.
        sizes: their sizes.

    Attributes:
        entries: one for each finished phase.
        began: the word lengths with which the present phase began, int64 [F].
        gradients: for each update of the phase, the root mean square of the gradient with respect to log₂ of steps and
            ranges.
        missed: the budgets, and by how much the learned sizes missed them.
    """

    def __init__(self, formats: FormatTable, sizes: Sizes) -> None:
        self._formats, self._sizes = formats, sizes
        self.entries: list[Entry] = []
        self.began = formats.bits.copy()
        self.gradients: list[float] = []
        self.missed: dict[str, float] = {}

    def begin(self) -> None:
        """Measure changes from the present widths."""
        self.began = self._formats.bits.copy()

    def has(self, phase: str) -> bool:
        """Return whether the phase has ended."""
        return any(entry["phase"] == phase for entry in self.entries)

    def end(self, phase: str, length: int) -> None:
        """Add the entry of a phase of `length` steps, and begin the next phase."""
        entry = self._entry(phase, length)
        if phase == "learning":
            entry |= self.missed
            entry["weight_kilobytes"], entry["activation_kilobytes"] = self._sizes.kilobytes
        self.entries.append(entry)
        self.begin()
        self.gradients.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the entries, and `missed` for the next one."""
        return {"phases": self.entries, "missed": self.missed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, after `check_state` has accepted it."""
        self.entries, self.missed = state["phases"], state["missed"]

    def check_state(self, state: Any) -> None:
        """Check that `load_state_dict` can load this state.

        Raises:
            ValueError: it is not a log.
        """
        phases, missed = (state.get("phases"), state.get("missed")) if isinstance(state, dict) else (None, None)
        if not (
            isinstance(phases, list) and all(map(_is_entry, [*phases, missed])) and all("phase" in p for p in phases)
        ):
            raise ValueError(f"the precision state should hold the log of finished phases, got {state!r:.80}")

    def _entry(self, phase: str, length: int) -> Entry:
        moved = np.abs(self._formats.bits - self.began)[self._formats.numel > 0]
        weight_bits, activation_bits = self._sizes.averages
        return {
            "phase": phase,
            "steps": float(length),
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "bit_change": float(moved.mean()),
            "moved": float((moved > 0).mean()),
            "gradient": self._gradient,
        }

    @property
    def _gradient(self) -> float:
        return float(np.mean(self.gradients)) if self.gradients else 0.0

    def warn_if_unmoved(self) -> None:
        """Warn if learning has changed no width."""
        free = ~self._formats.is_pinned
        if free.any() and (self._formats.bits == self.began)[free].all():
            user_warnings.warn(
                "no bit width moved in learning by its gradient (root mean square to log₂ of steps and ranges: "
                f"{self._gradient:.3g}); any changes in the log come from the cut to the budgets: give the phase more "
                "steps, a smaller update_every, or a higher width_rate or beta"
            )


def _is_entry(value: object) -> bool:
    """Return whether a value is a dict of numbers and strings."""
    return isinstance(value, dict) and all(isinstance(figure, float | str) for figure in value.values())
