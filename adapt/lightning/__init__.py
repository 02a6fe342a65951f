"""Adaptive precision in Lightning: `Trainer(callbacks=[AdaptivePrecision(adapt.AdaPT())])`."""

import importlib.util

if importlib.util.find_spec("lightning") is None:
    raise ImportError("adapt.lightning needs Lightning: run pip install 'adapt-precision[lightning]'")

from adapt.lightning.adaptive import AdaptivePrecision
from adapt.lightning.learned import LearnedBitwidth

__all__ = ["AdaptivePrecision", "LearnedBitwidth"]
