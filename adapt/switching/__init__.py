"""When, and to what, a layer's precision moves: one pure function per equation."""

from adapt.switching.divergence import divergence
from adapt.switching.diversity import diversity, log_diversity
from adapt.switching.frugality import fewest_integer_bits, push_up_by_loss, rounding_cost
from adapt.switching.muppet import MuPPET, inter_epoch_diversity, switching_threshold
from adapt.switching.pushdown import push_down
from adapt.switching.pushup import STRATEGIES, push_up, push_up_by_diversity, suggest
from adapt.switching.tempo import next_lookback, next_resolution, next_strategy

__all__ = [
    "STRATEGIES",
    "MuPPET",
    "divergence",
    "diversity",
    "fewest_integer_bits",
    "inter_epoch_diversity",
    "log_diversity",
    "next_lookback",
    "next_resolution",
    "next_strategy",
    "push_down",
    "push_up",
    "push_up_by_diversity",
    "push_up_by_loss",
    "rounding_cost",
    "suggest",
    "switching_threshold",
]
