"""What one element of a layer goes through around the optimizer step, in NumPy scalars, one operation at a time."""

import math

import numpy as np

F = np.float32


def treated_gradient(gradient, master, squared, l1, l2, *, normalize):
    """g·c + (l1·sign(m) + l2·m), every operation rounded to float32; 0 where the norm is not finite."""
    if not math.isfinite(squared):
        return F(0)
    factor = F(1)
    if normalize and squared > 0:
        factor = F(min(1 / math.sqrt(squared), float(np.finfo(F).max)))
    result = F(gradient) * factor
    if l1 != 0 or l2 != 0:
        result = result + (F(np.sign(F(master))) * F(l1) + F(master) * F(l2))
    return result


def running_sum(total, gradient, squared):
    return F(total) + F(gradient) if math.isfinite(squared) else F(total)
