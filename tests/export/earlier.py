"""Writes the packed file that later versions of the package must still read.

    python -m tests.export.earlier tests/export/files/version_2.safetensors

What it holds follows from formulas alone, so that every machine and every later version makes the same.
"""

import sys

import numpy as np
import torch

from adapt.export import Exported
from adapt.numerics import Precision
from adapt.numerics.format import Format


def pattern(shape, seed, low, high):
    """Whole numbers from low to high, int32 of `shape`."""
    positions = np.arange(np.prod(shape), dtype=np.int64)
    numbers = ((positions + 1) * (seed + 3) * 2654435761 >> 7) % (high - low + 1) + low
    return torch.from_numpy(numbers.astype(np.int32).reshape(shape))


def network():
    """Words of every kind: short and long, signed, unsigned and of one bit, with and without channels."""
    fixed = {"a.weight": Precision(5, 7), "b.weight": Precision(11, -2), "c.weight": Precision(24, 20)}
    words = {
        name: pattern((4, 6, 3), i, -(2 ** (p.word_length - 1)), 2 ** (p.word_length - 1) - 1)
        for i, (name, p) in enumerate(fixed.items())
    }
    formats = {name: Format.of(precision) for name, precision in fixed.items()}
    # Few different words, which zstd stores in fewer bytes than their bits take.
    words["d.weight"] = pattern((32, 32), 5, -1, 0)
    formats["d.weight"] = Format.of(Precision(8, 8))
    widths = np.array([2, 3, 9, 4])
    formats["e.weight"] = Format(
        widths,
        np.array([0.25, 0.5, 0.75, 1.125]),
        np.full(4, True),
        -(2 ** (widths - 1)) + 1,
        2 ** (widths - 1) - 1,
        axis=0,
    )
    words["e.weight"] = pattern((4, 5), 6, -1, 1)
    formats["f.weight"] = Format(
        np.full(6, 1), np.full(6, 0.375), np.full(6, True), np.full(6, -1), np.full(6, 1), axis=1, groups=2
    )
    words["f.weight"] = 2 * pattern((4, 3, 2), 7, 0, 1) - 1
    formats["a.input"] = Format.of(Precision(8, 4))
    formats["e.input"] = Format(np.array(4), np.array(0.09375), np.array(False), np.array(0), np.array(11))
    types = dict.fromkeys(("a.weight", "d.weight", "f.weight"), torch.int8)
    types |= {"b.weight": torch.int16, "c.weight": torch.int32, "e.weight": torch.int16}
    return Exported(
        {name: tensor.to(types[name]) for name, tensor in words.items()},
        formats,
        {
            "a.bias": pattern((4,), 8, -9, 9) / 8,
            "norm.count": torch.tensor(7),
            "half": torch.ones(3, dtype=torch.bfloat16),
        },
        {"tied.weight": "a.weight"},
        None,
        {"policy": "Fixed(⟨5, 7⟩)"},
    )


if __name__ == "__main__":
    network().save(sys.argv[1])
