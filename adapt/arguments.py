"""What equations and hyperparameters are given: anything else gets one sentence that names the argument.

Equations take whatever is a number, of Python, NumPy or torch. Hyperparameters are kept as they are, in objects that
are compared, hashed and saved, so they are Python's own numbers, or real ones that behave like them.
"""

import operator
from numbers import Real
from typing import Any, TypeGuard

from torch import Tensor

from adapt.numerics import Precision


def number(name: str, value: Any) -> float:
    """The value as a float, if it is one number: Python's, NumPy's or a tensor's, but not True, False or text.

    Raises:
        TypeError: it is something else.
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
    """The value as an int, if it is a whole number, which True and False are not.

    Args:
        unit: what is counted, for the message.

    Raises:
        TypeError: it is something else.
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
    """The value as (lower, upper), if it is two whole numbers with 1 ≤ lower ≤ upper.

    Raises:
        TypeError: it is not two whole numbers.
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


def tensor(name: str, value: Any) -> Tensor:
    """The value, if it is a floating-point tensor.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    return value


def precision(name: str, value: Any) -> Precision:
    """The value, if it is a Precision.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, Precision):
        raise TypeError(f"{name} must be an adapt.Precision, got {value!r}")
    return value


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a hyperparameter is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a hyperparameter is a number, which True, False and tensors are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: object, unit: str = "") -> None:
    """Refuse a hyperparameter that is no whole number.

    Raises:
        TypeError: it is something else.
    """
    if not is_whole(value):
        raise TypeError(f"{name} must be a whole number{unit and f' of {unit}'}, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Refuse a hyperparameter that is no number.

    Raises:
        TypeError: it is something else.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_flags(owner: object, *names: str) -> None:
    """Refuse hyperparameters of an object that are neither True nor False.

    Raises:
        TypeError: one is something else.
    """
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
