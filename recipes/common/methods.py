"""The methods that the recipes compare, by name: each is a policy, a rounding and default rates.

| name                        | what it is                                               |
|-----------------------------|----------------------------------------------------------|
| float32                     | plain SGD, no controller                                 |
| adapt                       | AdaPT as printed                                         |
| adapt-algorithm4            | pushed up by algorithm 4 instead of equation 4           |
| adapt-unnormalized          | gradients keep their norms, so float32's rates apply     |
| adapt-unpenalized           | neither L1 nor L2                                        |
| adapt-nearest               | rounded to nearest in training too                       |
| adapt-tolerance-0, -0.1, -1 | this many bits of divergence are tolerated (adapt: 0.01) |
| compact                     | `AdaPT.compact()`, rounded to nearest in training too    |
| muppet                      | block floating point, raised at epoch ends               |
| fixed2 … fixed32            | one word length throughout, range ±2                     |
| compact2 … compact16        | `AdaPT.compact(bits=…)`: so many bits on average         |
| block2 … block16            | as muppet at one word length, rounded to nearest         |

All of them quantise only the weights, so that they can be compared; MuPPET's authors round activations and errors too.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import adapt

Policy = adapt.AdaPT | adapt.MuPPET | adapt.Fixed


@dataclass(frozen=True)
class Method:
    """A way to train.

    Args:
        policy: takes buffer_bits and steps_per_epoch and returns the policy, None for float32.
        rates: takes a network's name and returns lr, l1 and l2 for one-cycle training on CIFAR-10 at batch 128, which
            were found by short runs.
        rounding: of the weights in training, "stochastic" or "nearest".
    """

    policy: Callable[[int, int], Policy | None]
    rates: Callable[[str], dict[str, float]]
    rounding: str = "stochastic"


def plain_rates(network: str) -> dict[str, float]:
    """Rates for gradients that keep their norms."""
    return {"lr": 0.1 if network == "resnet20" else 0.05, "l1": 0.0, "l2": 5e-4}


def normalized_rates(network: str) -> dict[str, float]:
    """Rates for gradients of norm 1, which make steps of length `lr` in every layer, whatever the loss.

    The l2 keeps lr·l2, which decides how fast the weights of a normalised network rotate, near that of float32.
    """
    return {"lr": 0.02 if network == "alexnet" else 0.05, "l1": 1e-5, "l2": 1e-3}


def compact_rates(network: str) -> dict[str, float]:
    """The rates of float32, with an L1 penalty on networks that have most of their weights in dense layers."""
    return {**plain_rates(network), "l1": 5e-6 if network == "alexnet" else 0.0}


def _float32(buffer_bits: int, steps_per_epoch: int) -> None:
    return None


def _adapt(buffer_bits: int, steps_per_epoch: int, **options: Any) -> Policy:
    return adapt.AdaPT(buffer_bits=buffer_bits, **options)


def _compact(bits: int | None, buffer_bits: int, steps_per_epoch: int) -> Policy:
    return adapt.AdaPT.compact(bits=bits)


def _fixed(word_length: int, buffer_bits: int, steps_per_epoch: int) -> Policy:
    return adapt.Fixed(adapt.Precision(word_length, word_length - 2))


def _muppet(buffer_bits: int, steps_per_epoch: int) -> Policy:
    return adapt.MuPPET(steps_per_epoch=steps_per_epoch)


def block(word_length: int, **options: Any) -> adapt.MuPPET:
    """Block floating point of one word length throughout: MuPPET whose first epoch never ends."""
    return adapt.MuPPET(steps_per_epoch=10**9, word_lengths=(word_length,), **options)


def _block(word_length: int, buffer_bits: int, steps_per_epoch: int) -> Policy:
    return block(word_length)


ALONE: Mapping[str, Method] = {
    "float32": Method(_float32, plain_rates),
    "adapt": Method(_adapt, normalized_rates),
    "adapt-algorithm4": Method(partial(_adapt, push_up="diversity"), normalized_rates),
    "adapt-unnormalized": Method(
        partial(_adapt, normalize_gradients=False), lambda network: {**plain_rates(network), "l1": 1e-5}
    ),
    "adapt-unpenalized": Method(_adapt, lambda network: {**normalized_rates(network), "l1": 0.0, "l2": 0.0}),
    "adapt-nearest": Method(_adapt, normalized_rates, rounding="nearest"),
    **{
        f"adapt-tolerance-{bits:g}": Method(partial(_adapt, kl_tolerance=bits), normalized_rates)
        for bits in (0.0, 0.1, 1.0)
    },
    "compact": Method(partial(_compact, None), compact_rates, rounding="nearest"),
    "muppet": Method(_muppet, plain_rates),
}
FAMILIES = {
    ("fixed", range(2, 33)): Method(_fixed, plain_rates),
    ("compact", range(2, 17)): Method(_compact, plain_rates, rounding="nearest"),
    ("block", range(2, 17)): Method(_block, plain_rates, rounding="nearest"),
}
"""Methods with a number of bits at the end of their name, which their policy takes first."""

METHODS: Mapping[str, Method] = {
    **ALONE,
    **{
        f"{family}{bits}": dataclasses.replace(made, policy=partial(made.policy, bits))
        for (family, lengths), made in FAMILIES.items()
        for bits in lengths
    },
}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(names())}, got {name!r}")
    return METHODS[name]


def names() -> list[str]:
    """The methods' names, with one entry for those of a family."""
    return [*ALONE, *(f"{family}{bits[0]} … {family}{bits[-1]}" for family, bits in FAMILIES)]


def buffer_bits(network: str, data_set: str) -> int:
    """AdaPT's buffer bits in the paper: 8 for residual networks and for CIFAR-100, 4 for others."""
    return 8 if network == "resnet20" or data_set == "cifar100" else 4


def description(policy: Any) -> dict[str, Any] | None:
    """The name of a policy and all its hyperparameters, in types that JSON has; None for float32."""
    if policy is None:
        return None
    described: dict[str, Any] = json.loads(json.dumps({"name": type(policy).__name__, **dataclasses.asdict(policy)}))
    return described


def signature(policy: Any) -> dict[str, Any] | None:
    """The part of `description` that tells policies apart: the name and the hyperparameters that are not defaults.

    It does not change when a later version adds a hyperparameter.
    """
    if (described := description(policy)) is None:
        return None
    changed = [field.name for field in dataclasses.fields(policy) if getattr(policy, field.name) != field.default]
    return {name: described[name] for name in ("name", *changed)}
