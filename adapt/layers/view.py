"""What parameters show of their float32 masters."""

from dataclasses import dataclass
from typing import Literal

View = Literal["training", "evaluation", "masters"]
"""Ŵ as training rounds it, Ŵ rounded to nearest, or W itself."""


@dataclass
class Pin:
    """The view that a context such as `master_weights()` asks for, shared by all that show or use it.

    Attributes:
        view: the view; None outside of such contexts, where each module's mode decides.
    """

    view: View | None = None
