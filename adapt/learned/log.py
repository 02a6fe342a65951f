"""What each finished phase of a run did, as numbers by name."""

from typing import Any

import numpy as np

from adapt import user_warnings
from adapt.learned.format_table import FormatTable
from adapt.learned.sizes import Sizes

Entry = dict[str, float | str]
"""What a phase did, by name."""


class Log:
    """Entries of the finished phases, and what the entry of the present one will be made of.

    Args:
        formats: the formats that move.
        sizes: how large they are.

    Attributes:
        entries: one for each finished phase.
        began: the word lengths with which the present phase began, int64 [F].
        gradients: of each update of the phase, the root mean square of the gradient to log₂ of steps and ranges.
        missed: the budgets, and by how much the learned sizes missed them.
    """

    def __init__(self, formats: FormatTable, sizes: Sizes) -> None:
        self._formats, self._sizes = formats, sizes
        self.entries: list[Entry] = []
        self.began = formats.bits.copy()
        self.gradients: list[float] = []
        self.missed: dict[str, float] = {}

    def begin(self) -> None:
        """Measure from the present widths on."""
        self.began = self._formats.bits.copy()

    def has(self, phase: str) -> bool:
        """Whether the phase has ended."""
        return any(entry["phase"] == phase for entry in self.entries)

    def end(self, phase: str, length: int) -> None:
        """Write down how far the widths went in a phase of so many steps; the next one begins."""
        entry = self._entry(phase, length)
        if phase == "learning":
            entry |= self.missed
            entry["weight_kilobytes"], entry["activation_kilobytes"] = self._sizes.kilobytes
        self.entries.append(entry)
        self.begin()
        self.gradients.clear()

    def state_dict(self) -> dict[str, Any]:
        """The entries, and what the next one must know of the budgets."""
        return {"phases": self.entries, "missed": self.missed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, which `check_state` let pass."""
        self.entries, self.missed = state["phases"], state["missed"]

    def check_state(self, state: Any) -> None:
        """Refuse a state that `load_state_dict` could not take.

        Raises:
            ValueError: it is no log.
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
        """Warn where learning has left every width as it was."""
        free = ~self._formats.is_pinned
        if free.any() and (self._formats.bits == self.began)[free].all():
            user_warnings.warn(
                "no bit width moved in learning by its gradient (root mean square to log₂ of steps and ranges: "
                f"{self._gradient:.3g}); what the log shows as moved was only cut to the budgets afterwards: give the "
                "phase more steps, a smaller update_every, or a higher width_rate or beta",
            )


def _is_entry(value: object) -> bool:
    """Whether it is numbers and words by name."""
    return isinstance(value, dict) and all(isinstance(figure, float | str) for figure in value.values())
