"""What happens to one element of a layer around the optimizer step, in NumPy scalars, one operation at a time."""

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


def descended(gradient, buffer, master, rates):
    """One step of SGD for one element, every operation rounded to float32: the master and the buffer afterwards.

    `gradient` is what the optimizer sees; `buffer` is None where there is no momentum.
    """
    rate, sign, decay, momentum, kept, nesterov = map(F, rates)
    direction = sign * F(gradient)
    if decay != 0:
        direction = direction + F(master) * decay
    if buffer is not None:
        buffer = F(buffer) * momentum + direction * kept
        direction = direction + buffer * momentum if nesterov else buffer
    return F(master) + direction * rate, buffer
