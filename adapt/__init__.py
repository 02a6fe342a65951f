"""adapt: train neural networks at adaptive fixed-point precision."""

from adapt.precision import Precision

__version__ = "0.1.0"

__all__ = ["Precision"]
