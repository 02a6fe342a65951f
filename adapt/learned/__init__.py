"""Bit widths that are learned under size budgets; and LSQ and AQT, for which the widths are given."""

from adapt.learned.aqt import aqt
from adapt.learned.attachment import attach, attach_aqt, attach_lsq
from adapt.learned.budget import Budget
from adapt.learned.distillation import Distillation
from adapt.learned.learner import Learner, Size
from adapt.learned.lsq import lsq
from adapt.learned.phases import Phases
from adapt.learned.quantizer import quantize, word_length
from adapt.learned.scaling import SCALINGS
from adapt.trace.widths import Widths

__all__ = [
    "SCALINGS",
    "Budget",
    "Distillation",
    "Learner",
    "Phases",
    "Size",
    "Widths",
    "aqt",
    "attach",
    "attach_aqt",
    "attach_lsq",
    "lsq",
    "quantize",
    "word_length",
]
