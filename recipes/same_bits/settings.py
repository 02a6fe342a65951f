"""The settings of a run."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes, beside its start.

    Args:
        method: a name in `recipes.same_bits.methods.METHODS`.
        bits: the budget in bits per weight, where the method takes one.
        options: further keyword arguments of the method's policy, or of `attach_lsq`.
        seed: of the order, the crops and the flips of the pictures.
        epochs, batch_size: as usual.
        lr: the first learning rate; it falls to 0 as a cosine over all steps.
        momentum: of SGD.
        execution: "bfloat16" to run the products of layers with short words in it, or None.
    """

    method: str
    bits: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 1
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    execution: str | None = "bfloat16"
