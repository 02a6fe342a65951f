"""adapt: train neural networks at adaptive fixed-point precision."""

from adapt import learned, perfmodel, switching
from adapt.attachment import attach
from adapt.controller import Controller
from adapt.files import load, save
from adapt.initialization import tnvs_
from adapt.optim import ASGD
from adapt.precision import Precision
from adapt.rounding import quantize
from adapt.switching.adapt import AdaPT
from adapt.switching.cyclic import CyclicPrecision
from adapt.switching.fixed import Fixed
from adapt.switching.muppet import MuPPET
from adapt.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "AdaPT",
    "Controller",
    "CyclicPrecision",
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
