"""The policies, and the equations with which they choose each layer's precision: one pure function per equation."""

from adapt.switching.allocation import allocate, best_ranges, squared_error
from adapt.switching.configuration import from_dict, to_dict
from adapt.switching.cyclic import CyclicPrecision, cyclic_word_length
from adapt.switching.divergence import divergence
from adapt.switching.diversity import diversity, log_diversity
from adapt.switching.lookback import next_lookback, next_resolution, next_strategy
from adapt.switching.muppet import MuPPET, inter_epoch_diversity, switching_threshold
from adapt.switching.pushdown import push_down
from adapt.switching.pushup import STRATEGIES, push_up, push_up_by_diversity, suggest
from adapt.switching.rounding_costs import explained, largest_cost, next_bits, rounding_cost

__all__ = [
    "STRATEGIES",
    "CyclicPrecision",
    "MuPPET",
    "allocate",
    "best_ranges",
    "cyclic_word_length",
    "divergence",
    "diversity",
    "explained",
    "from_dict",
    "inter_epoch_diversity",
    "largest_cost",
    "log_diversity",
    "next_bits",
    "next_lookback",
    "next_resolution",
    "next_strategy",
    "push_down",
    "push_up",
    "push_up_by_diversity",
    "rounding_cost",
    "squared_error",
    "suggest",
    "switching_threshold",
    "to_dict",
]
