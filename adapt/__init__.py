"""adapt: train neural networks at adaptive fixed-point precision."""

from adapt import learned, perfmodel, switching
from adapt.adaptive.asgd import ASGD
from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.engine.saved_formats import formats
from adapt.files import load, save
from adapt.initialization import tnvs_
from adapt.numerics import Format, Precision
from adapt.recorder import Recorder
from adapt.rounding import quantize
from adapt.switching.adapt import AdaPT
from adapt.switching.cyclic import CyclicPrecision
from adapt.switching.fixed import Fixed
from adapt.switching.muppet import MuPPET
from adapt.trace import Trace

__version__ = "0.2.0"

__all__ = [
    "ASGD",
    "AdaPT",
    "Controller",
    "CyclicPrecision",
    "Fixed",
    "Format",
    "MuPPET",
    "Precision",
    "Recorder",
    "Trace",
    "attach",
    "formats",
    "learned",
    "load",
    "perfmodel",
    "quantize",
    "save",
    "switching",
    "tnvs_",
]


def __dir__() -> list[str]:
    return __all__
