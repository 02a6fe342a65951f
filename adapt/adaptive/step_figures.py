"""Figures of the steps that the policy has not seen yet, kept on the device until it needs them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Figures(NamedTuple):
    """What the fused pass measured, on the host: float64 arrays [steps, layers] unless noted otherwise.

    `squared` is ‖G‖₂² (NaN where there was no gradient), `squared_sums` is ‖ΣG‖₂² including this gradient, `l1_norms`
    and `squared_weights` are ‖W‖₁ and ‖W‖₂² of the master weights, `nonzeros` counts the non-zero elements of the Ŵ
    used in the step's forward pass, `losses` is the step's loss without penalties, [steps], NaN if not observed.
    """

    squared: NDArray[np.float64]
    squared_sums: NDArray[np.float64]
    l1_norms: NDArray[np.float64]
    squared_weights: NDArray[np.float64]
    nonzeros: NDArray[np.float64]
    losses: NDArray[np.float64]


class Slot(NamedTuple):
    """Views into which one step's figures are written, float64 on the device: see `Figures`."""

    squared: Tensor
    squared_sums: Tensor
    masters: Tensor
    """[layers, 3]: `nonzeros`, `l1_norms` and `squared_weights`."""
    loss: Tensor


class StepFigures:
    """One buffer on the device with a row for each step, so that one transfer brings all of it to the host.

    Args:
        layers: the number of layers.
        capacity: the number of rows.
        device: the device on which the figures are measured.
    """

    def __init__(self, layers: int, capacity: int, device: torch.device) -> None:
        n = self._layers = layers
        self.capacity = capacity
        self._buffer = torch.empty(capacity, 5 * n + 1, dtype=torch.float64, device=device)
        # Each view costs microseconds, so they are created once, not in every step.
        self._views = [Slot(row[:n], row[n : 2 * n], row[2 * n : 5 * n].view(n, 3), row[5 * n]) for row in self._buffer]
        # On the CPU the buffer is read in place: ten times faster than through tensor operations.
        self._host = self._buffer.numpy() if device.type == "cpu" else None
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    @property
    def full(self) -> bool:
        """Whether there is no room for another step."""
        return self._rows == self.capacity

    @property
    def slot(self) -> Slot:
        """The views for the next step's figures; the caller must write all of them."""
        return self._views[self._rows]

    def add(self) -> None:
        """Count the slot as written. A step that fails before this leaves nothing behind."""
        self._rows += 1

    def take(self) -> Figures:
        """Transfer all rows to the host, empty the buffer, and return the rows."""
        rows = self._buffer[: self._rows].cpu().numpy() if self._host is None else self._host[: self._rows].copy()
        self._rows = 0
        n = self._layers
        masters = rows[:, 2 * n : 5 * n].reshape(-1, n, 3)
        return Figures(
            squared=rows[:, :n],
            squared_sums=rows[:, n : 2 * n],
            l1_norms=masters[..., 1],
            squared_weights=masters[..., 2],
            nonzeros=masters[..., 0],
            losses=rows[:, -1],
        )
