"""Rounding what flows through the layers, forward and back."""

from adapt.activations.activations import MODES, Activations, check_state

__all__ = ["MODES", "Activations", "check_state"]
