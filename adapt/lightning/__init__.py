"""Adaptive precision in Lightning: `Trainer(callbacks=[AdaptivePrecision(adapt.AdaPT())])`.

The callbacks work in trainers of `lightning` and of `pytorch_lightning`.
"""

from adapt.lightning.adaptive import AdaptivePrecision
from adapt.lightning.fixed_widths import AQT, LSQ
from adapt.lightning.learned import LearnedBitwidth

__all__ = ["AQT", "LSQ", "AdaptivePrecision", "LearnedBitwidth"]
