"""The views of the float32 masters that parameters may show."""

from dataclasses import dataclass
from typing import Literal

View = Literal["training", "evaluation", "masters"]
"""Ŵ as training rounds it, Ŵ rounded to nearest, or W itself."""


@dataclass
class Pin:
    """The view that a context such as `master_weights()` asks for, shared by everything that shows or uses it.

    Attributes:
        view: the view; None outside such contexts, where each module's mode decides.
    """

    view: View | None = None
