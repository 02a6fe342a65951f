"""A trained network as the bits that a device holds: captured, packed, and proven to compute the same."""

from adapt.export.capture import capture
from adapt.export.exported import Exported
from adapt.export.hls4ml import to_hls4ml
from adapt.export.integer import IntegerNetwork
from adapt.export.json_file import to_json
from adapt.export.loading import load
from adapt.export.onnx import to_onnx
from adapt.export.qonnx import to_qonnx
from adapt.export.runtime import runner, session
from adapt.export.verification import Verification, verify

__all__ = [
    "Exported",
    "IntegerNetwork",
    "Verification",
    "capture",
    "load",
    "runner",
    "session",
    "to_hls4ml",
    "to_json",
    "to_onnx",
    "to_qonnx",
    "verify",
]
