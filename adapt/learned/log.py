"""What each finished phase of a run did, as numbers by name."""

import numpy as np

from adapt import notices
from adapt.learned.formats import Formats
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

    def __init__(self, formats: Formats, sizes: Sizes) -> None:
        self._formats, self._sizes = formats, sizes
        self.entries: list[Entry] = []
        self.began = formats.bits.copy()
        self.gradients: list[float] = []
        self.missed: dict[str, float] = {}

    def begin(self) -> None:
        """Measure from the present widths on."""
        self.began = self._formats.bits.copy()

    def end(self, phase: str, length: int) -> None:
        """Write down how far the widths went in a phase of so many steps; the next one begins."""
        entry = self._entry(phase, length)
        if phase == "learning":
            entry |= self.missed
            entry["weight_kilobytes"], entry["activation_kilobytes"] = self._sizes.kilobytes
        self.entries.append(entry)
        self.begin()
        self.gradients.clear()

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
            "gradient": float(np.mean(self.gradients)) if self.gradients else 0.0,
        }

    def warn_if_unmoved(self) -> None:
        """Warn where learning has left every width as it was."""
        if (self._formats.bits == self.began).all():
            notices.warn(
                "no bit width moved in learning (root mean square of the gradient to log₂ of steps and ranges: "
                f"{np.mean(self.gradients):.3g}): give the phase more steps, a smaller update_every, or a higher "
                "width_rate or beta",
            )
