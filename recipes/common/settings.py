"""The settings of a run: everything that decides how it goes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from recipes.common.methods import method, signature

MAY_BE_ZERO = ("l1", "l2", "momentum", "weight_decay", "buffer_bits", "seed", "subset")
"""Numbers that need not be above 0; an empty subset is refused later, when the number of pictures is known."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every run has. Recipes add fields; two runs with equal settings on one device give the same weights.

    Args:
        method: a name in `recipes.common.methods.METHODS`, which selects policy and rounding.
        epochs, batch_size, seed: as usual.
        lr: peak of the learning rate. Rates of methods that divide each layer's gradient by its norm cannot be compared
            with those of the others; see `recipes.common.methods.normalized_rates`.
        l1, l2: penalty coefficients α and β of the weights.
        buffer_bits: AdaPT's; the paper uses 4, and 8 for residual networks and CIFAR-100.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    method: str
    epochs: int
    batch_size: int
    lr: float
    l1: float = 0.0
    l2: float = 0.0
    buffer_bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float):
                continue
            if name in MAY_BE_ZERO:
                if not value >= 0:
                    raise ValueError(f"{name} must not be negative, got {value!r}")
            elif not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        self.policy(1)
        if self.l1 and self.method == "float32":
            raise ValueError(f"l1 must be 0 for float32, got {self.l1!r}: only a controller applies it")

    @property
    def title(self) -> str:
        """What the run is called in headings and beside progress bars."""
        return self.method

    @property
    def rounding(self) -> str:
        """How weights are rounded in training, "stochastic" or "nearest"."""
        return method(self.method).rounding

    def policy(self, steps_per_epoch: int) -> Any:
        """The policy that decides the formats; None for float32.

        Raises:
            ValueError: there is no such method.
        """
        return method(self.method).policy(self.buffer_bits, steps_per_epoch)

    def recorded(self) -> dict[str, Any]:
        """The settings as checkpoints and ledgers store them."""
        return dataclasses.asdict(self)

    def identity(self, steps_per_epoch: int) -> dict[str, Any]:
        """What a finished run is recognised by in a ledger."""
        policy = self.policy(max(steps_per_epoch, 1))
        return {
            "settings": self.recorded(),
            "policy": signature(policy),
            "rounding": None if policy is None else self.rounding,
        }


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
