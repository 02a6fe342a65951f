"""Rounding of the layers' activations, and of the errors that flow back."""

from adapt.activations.activations import MODES, Activations, check_state

__all__ = ["MODES", "Activations", "check_state"]
