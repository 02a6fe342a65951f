"""A trained network as the bits that a device holds: captured, packed, and proven to compute the same."""

from adapt.export.capture import capture
from adapt.export.exported import Exported
from adapt.export.integer import IntegerNetwork
from adapt.export.loading import load
from adapt.export.verification import Verification, verify

__all__ = ["Exported", "IntegerNetwork", "Verification", "capture", "load", "verify"]
