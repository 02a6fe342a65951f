"""Scaling of gradients that pass back through rounding (Schaefer et al. 3.2, algorithms and figure 2).

With u = v − r the distance of a value from its quantisation point, in steps, and g the incoming gradient:

    ste      1                                     pbgs     1 + δ·|u|
    ewgs     1 + δ·sign(g)·u                       acos     1 + δ·½sin(πu)
    tanh     1 + δ·sign(g)·½tanh(4u)               invtanh  1 + δ·sign(g)·½artanh(1.9u)/artanh(0.95)

All reach 1 ± δ/2 at u = ½ (tanh 0.48 δ), so δ means the same for each.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adapt.arguments import check_number, check_option
from adapt.kernels.learned_steps import SCALINGS, slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DELTA", "SCALINGS", "draw", "scale"]

DELTA = 5e-3
"""δ, as found by the paper's grid search."""


def check_delta(value: float) -> None:
    """Check that a value can be δ.

    Raises:
        TypeError, ValueError: it is not a number from 0 to 1.
    """
    check_number("delta", value)
    if not 0 <= float(value) <= 1:
        raise ValueError(f"delta must lie between 0 (no scaling) and 1, got {value!r}")


def scale(u: Tensor, gradient: Tensor, scaling: str, delta: float = DELTA) -> Tensor:
    """Return the factor for a gradient at distance u from the quantisation point (Schaefer et al. 3.2, items 1–5).

    Args:
        u: x/d − round(x/d), −½ to ½, any shape.
        gradient: the incoming gradient, of which only the sign matters. Broadcasts with `u`.
        scaling: one of `SCALINGS`.
        delta: δ.

    Raises:
        TypeError, ValueError: the scaling or δ is invalid.
    """
    check_option("scaling", scaling, SCALINGS)
    check_delta(delta)
    return slope(u, gradient, scaling, delta)


def draw(delta: float = 0.5) -> "Figure":
    """Draw every scaling over one quantisation interval, for both signs of g (Schaefer et al. figure 2).

    Args:
        delta: δ; the default is large enough to be visible.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: δ is not a number from 0 to 1.
    """
    check_delta(delta)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: run pip install 'adapt-precision[tensorboard]'") from error
    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    u = torch.linspace(-0.5, 0.5, 401)
    for axes, sign in zip(figure.subplots(1, 2, sharey=True), (1.0, -1.0), strict=True):
        for scaling in SCALINGS:
            values = scale(u, torch.tensor(sign), scaling, delta)
            axes.plot(u.numpy(), np.broadcast_to(values.numpy(), u.shape), label=scaling, linewidth=1.6)
        axes.set_title(f"gradient {'above' if sign > 0 else 'below'} zero", loc="left", fontsize=11)
        axes.set_xlabel("distance from the quantisation point, in steps")
        axes.axvline(0.0, color="#d7dde3", linewidth=0.8, zorder=0)
        axes.set_ylim(1 - 0.6 * max(delta, 1e-3), 1 + 0.6 * max(delta, 1e-3))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"factor, δ = {delta:g}")
    figure.axes[1].legend(frameon=False, fontsize=8)
    return figure
