"""Check the arguments of equations, and hyperparameters; an error is one sentence that names the argument.

Equations accept numbers of Python, NumPy or torch. Hyperparameters are stored unchanged in objects that are compared,
hashed and saved, so they must be Python numbers, or behave like them (`numbers.Real`).
"""

import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, TypeGuard

from torch import Tensor

from adapt.numerics import ChannelPrecision, FixedPoint, Precision


def number(name: str, value: Any) -> float:
    """Return one number (Python, NumPy or a tensor) as a float; True, False and text do not count as numbers.

    Raises:
        TypeError: the value is something else.
    """
    if type(value) is float:
        return value
    if not isinstance(value, bool | str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def whole(name: str, value: Any, unit: str = "") -> int:
    """Return a whole number as an int; True and False do not count.

    Args:
        name: the argument's name, for the message.
        value: the argument.
        unit: what it counts, for the message.

    Raises:
        TypeError: the value is something else.
    """
    if type(value) is int:
        return value
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be a whole number{unit and f' of {unit}'}, got {value!r}")


def bounds(name: str, value: Any) -> tuple[int, int]:
    """Return two whole numbers with 1 ≤ lower ≤ upper.

    Raises:
        TypeError: the value is not two whole numbers.
        ValueError: they are reversed or below 1.
    """
    try:
        lower, upper = value
        lower, upper = whole(name, lower), whole(name, upper)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two whole numbers (lower, upper), got {value!r}") from None
    if not 1 <= lower <= upper:
        raise ValueError(f"{name} must be (lower, upper) with 1 ≤ lower ≤ upper, got {value!r}")
    return lower, upper


def items(value: object) -> tuple[Any, ...]:
    """Return the items of a list, a tuple or a configuration tool's list; none for text and anything else."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def tensor(name: str, value: Any) -> Tensor:
    """Return a floating-point tensor.

    Raises:
        TypeError: the value is something else.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    return value


def precision(name: str, value: Any) -> Precision:
    """Return a Precision.

    Raises:
        TypeError: the value is something else.
    """
    if not isinstance(value, Precision):
        raise TypeError(f"{name} must be an adapt.Precision, got {value!r}")
    return value


def fixed_point(name: str, value: Any) -> FixedPoint:
    """Return a Precision or a ChannelPrecision.

    Raises:
        TypeError: the value is something else.
    """
    return value if isinstance(value, ChannelPrecision) else precision(name, value)


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a hyperparameter is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a hyperparameter is a number; True, False and tensors are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: object, least: int, unit: str = "") -> None:
    """Check that a hyperparameter is a whole number, and not below the least.

    Raises:
        TypeError: it is something else.
        ValueError: it is below the least.
    """
    if not is_whole(value):
        raise TypeError(f"{name} must be a whole number{unit and f' of {unit}'}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{unit and f' {unit}'}, got {value}")


def check_number(name: str, value: object) -> None:
    """Check that a hyperparameter is a number.

    Raises:
        TypeError: it is something else.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Check that a hyperparameter is a finite number from low to high, both included.

    Raises:
        TypeError: it is not a number.
        ValueError: it lies outside, or is not finite.
    """
    check_number(name, value)
    if not low <= float(value) <= high or math.isinf(float(value)):
        bounds = f"be a finite number ≥ {low:g}" if math.isinf(high) else f"lie between {low:g} and {high:g}"
        raise ValueError(f"{name} must {bounds}, got {value!r}")


def check_option(name: str, value: object, options: Iterable[str | None]) -> None:
    """Check that a value is one of the options.

    Raises:
        ValueError: it is something else.
    """
    if not (value is None or isinstance(value, str)) or value not in (options := list(options)):
        *others, last = (f'"{option}"' if option else str(option) for option in options)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def check_flags(owner: object, *names: str) -> None:
    """Check that attributes of `owner` are True or False.

    Raises:
        TypeError: one is something else.
    """
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
