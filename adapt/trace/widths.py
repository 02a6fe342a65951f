"""The history of every learned word length: one for each weight channel and each activation tensor."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adapt.trace import archive
from adapt.trace.archived import Archived

VERSION = 2
"""Version 1 did not record the release that wrote it."""

_LAYOUT: archive.Layout = {
    "names": (None, ("tensors",)),
    "channels": (np.dtype("<i8"), ("tensors",)),
    "numel": (np.dtype("<i8"), ("formats",)),
    "step": (np.dtype("<i8"), ("rows",)),
    "word_length": (np.dtype("<i1"), ("rows", "formats")),
}


class Widths(Archived):
    """Word lengths by channel. A row is valid from its optimizer step until the next row.

    Args:
        names: the tensors' names: the parameter's name for a weight, the weight's name plus ".input" for an activation.
        channels: number of formats of each tensor, int [tensors].
        numel: number of elements with each format, int [formats]; for activations, those of one sample.

    Raises:
        ValueError: the sizes do not match.
    """

    _version, _unreadable = VERSION, "holds no readable widths"

    def __init__(self, names: Sequence[str], channels: ArrayLike, numel: ArrayLike) -> None:
        self.names = tuple(names)
        self.channels = np.asarray(channels, np.int64)
        self.numel = np.array(numel, np.int64)
        fits = len(self.channels) == len(self.names) and int(self.channels.sum()) == len(self.numel)
        if not fits or (self.channels < 0).any() or len(set(self.names)) < len(self.names):
            raise ValueError("widths need unique names, the channels of each, and the sizes of all formats")
        ends = np.cumsum(self.channels)
        self._places = {name: slice(e - c, e) for name, c, e in zip(self.names, self.channels, ends, strict=True)}
        self._steps: list[int] = []
        self._rows: list[NDArray[np.int8]] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def step(self) -> NDArray[np.int64]:
        """Optimizer step of each row, int64 [rows], increasing."""
        return np.array(self._steps, np.int64)

    @property
    def word_length(self) -> NDArray[np.int8]:
        """Bits of every format, int8 [rows, formats]."""
        return np.stack(self._rows) if self._rows else np.empty((0, len(self.numel)), np.int8)

    def of(self, name: str) -> NDArray[np.int8]:
        """Return the word lengths of one tensor's channels, int8 [rows, channels].

        Raises:
            KeyError: there is no such tensor.
        """
        if name not in self._places:
            raise KeyError(f"no tensor is called {name!r}; there are {', '.join(self.names[:8])}, …")
        return self.word_length[:, self._places[name]]

    def by_channel(self) -> dict[str, NDArray[np.int8]]:
        """Return the word lengths of every tensor with several formats, int8 [rows, channels], by its name."""
        return {name: self.of(name) for name, count in zip(self.names, self.channels, strict=True) if count > 1}

    def sizes(self, name: str) -> NDArray[np.int64]:
        """Return the number of elements in each of a tensor's formats, int64 [channels]."""
        return self.numel[self._places[name]]

    def means(self) -> NDArray[np.float64]:
        """Return the word length of each tensor, averaged over its elements, float64 [rows, tensors]."""
        bits = self.word_length.astype(np.float64)
        parts = [
            bits[:, place] @ (self.numel[place] / max(int(self.numel[place].sum()), 1))
            for place in self._places.values()
        ]
        return np.stack(parts, axis=1) if parts else np.empty((len(self), 0))

    def means_at(self, step: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return `means` at these optimizer steps, float64 [steps, tensors]; before the first row, those of the first.

        Raises:
            ValueError: there are no rows.
        """
        if not self._steps:
            raise ValueError("there are no word lengths yet")
        return self.means()[np.maximum(np.searchsorted(self.step, step, side="right") - 1, 0)]

    def append(self, step: int, word_length: ArrayLike) -> None:
        """Add a row, unless its word lengths equal those of the last row.

        Raises:
            ValueError: the step does not increase, or the number of word lengths is not that of the formats.
        """
        row = np.asarray(word_length)
        if row.shape != self.numel.shape or (row.size and not (row.min() >= 0 and row.max() <= 32)):
            raise ValueError(f"word_length must be {self.numel.shape} numbers of 0 to 32 bits, got {row!r:.80}")
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f"step must increase from row to row, got {step} after {self._steps[-1]}")
        if not self._rows or not np.array_equal(self._rows[-1], row):
            self._steps.append(int(step))
            self._rows.append(row.astype(np.int8))

    def _content(self) -> archive.Content:
        return {
            "names": list(self.names),
            "channels": self.channels,
            "numel": self.numel,
            "step": self.step,
            "word_length": self.word_length,
        }

    @classmethod
    def _from_content(cls, content: Mapping[str, Any]) -> Self:
        archive.check(content, _LAYOUT)
        widths = cls(content["names"], content["channels"], content["numel"])
        for step, row in zip(content["step"].tolist(), content["word_length"], strict=True):
            before = len(widths)
            widths.append(step, row)
            if len(widths) == before:
                raise ValueError("two rows hold the same word lengths")
        return widths
