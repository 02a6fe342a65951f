"""adapt: train neural networks at adaptive fixed-point precision."""

from adapt import learned, perfmodel, switching
from adapt.adaptive.asgd import ASGD
from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.files import load, save
from adapt.initialization import tnvs_
from adapt.numerics import Precision
from adapt.rounding import quantize
from adapt.switching.adapt import AdaPT
from adapt.switching.fixed import Fixed
from adapt.switching.muppet import MuPPET
from adapt.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "AdaPT",
    "Controller",
    "Fixed",
    "MuPPET",
    "Precision",
    "Trace",
    "attach",
    "learned",
    "load",
    "perfmodel",
    "quantize",
    "save",
    "switching",
    "tnvs_",
]
