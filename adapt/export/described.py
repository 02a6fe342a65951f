"""Formats and packed files in words."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from adapt.command_line import aligned
from adapt.export.packed import Contents
from adapt.numerics import Format


def describe_formats(formats: Mapping[str, Format]) -> str:
    """Return a line for every format, as text."""
    return "\n".join(_printed([(name, str(form)) for name, form in formats.items()]))


def describe_packed(contents: Contents, stored: Mapping[str, tuple[str, int]], size: int) -> str:
    """Return what a packed file holds, as text: a line for every tensor of words, and for every rounded activation.

    Args:
        contents: what was read.
        stored: the encoding and the bytes of every tensor of words.
        size: the bytes of the file.
    """
    lines: list[tuple[str, ...]] = [("weights", "shape", "format", "entropy", "stored as", "bytes", "bits each")]
    for name, words in contents.words.items():
        encoding, taken = stored[name]
        each = 8 * taken / max(words.numel(), 1)
        shape = "×".join(map(str, words.shape))
        form = str(contents.formats[name])
        lines.append((name, shape, form, f"{entropy(words):.2f}", encoding, f"{taken:,}", f"{each:.2f}"))
    sites = [(name, str(form)) for name, form in contents.formats.items() if name not in contents.words]
    others = sum(tensor.nbytes for tensor in contents.tensors.values())
    packed = sum(taken for _, taken in stored.values())
    parts = f"{packed:,} of words, {others:,} of other tensors, {size - packed - others:,} to describe them"
    summary = [
        ("file", f"{size:,} bytes: {parts}"),
        *contents.origin.items(),
        *((name, f"the same as {first}") for name, first in contents.aliases.items()),
    ]
    tables: list[Sequence[tuple[str, ...]]] = [lines, [("activations", "format"), *sites] if sites else [], summary]
    return "\n\n".join("\n".join(_printed(table)) for table in tables if table)


def entropy(words: torch.Tensor) -> float:
    """Return the fewest bits that a word can take on average, if words are coded one by one: −Σ p·log₂ p."""
    _, counts = np.unique(words.numpy(), return_counts=True)
    shares = counts / max(words.numel(), 1)
    return float(-(shares * np.log2(shares)).sum())


def _printed(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """The cells in columns. What a terminal could take for a command is left out."""
    return aligned([["".join(c for c in cell if c.isprintable()) for cell in line] for line in lines])
