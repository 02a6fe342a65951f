"""A trained network as the bits that a device holds: captured, packed, and proven to compute the same."""

from adapt.export.capture import capture
from adapt.export.exported import Exported
from adapt.export.packed import load

__all__ = ["Exported", "capture", "load"]
