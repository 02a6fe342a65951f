"""Literal twins of rounding with a learned step: one number at a time, in double precision."""

import math


def shape(name, u, g):
    """Rounding's derivative at distance u from the quantisation point, less 1, over δ (Schaefer et al. 3.2)."""
    sign = math.copysign(1, g) if g else 0.0
    return {
        "ste": 0.0,
        "pbgs": abs(u),
        "ewgs": sign * u,
        "acos": 0.5 * math.sin(math.pi * u),
        "tanh": sign * 0.5 * math.tanh(4 * u),
        "invtanh": sign * 0.5 * math.atanh(1.9 * u) / math.atanh(0.95),
    }[name]


def half_even(v):
    """The nearest whole number, the even one of two."""
    return float(round(v))


def rounded(x, d, low, high, offset=0.0):
    """d·(round(v − offset) + offset) with v = clip(x/d, low, high)."""
    v = min(max(x / d, low), high)
    return d * (half_even(v - offset) + offset)


def smooth(x, d, lower, upper, offset, at, scaling, delta, g):
    """The function whose derivative the quantiser's gradient is: round replaced by its tangent at the point `at`.

    With (x₀, d₀, lower₀, upper₀) = `at`, v₀ = clip(x₀, lower₀, upper₀)/d₀ and u₀ = v₀ − round(v₀), round(v) becomes
    round(v₀) + s·(v − v₀) with s = 1 + δ·f(u₀).
    """
    x0, d0, lower0, upper0 = at
    v0 = min(max(x0, lower0), upper0) / d0
    r0 = half_even(v0 - offset) + offset
    s = 1 + delta * shape(scaling, v0 - r0, g)
    v = min(max(x, lower), upper) / d
    return d * (r0 + s * (v - v0))


def word_length(d, q, signed, floor=2):
    """⌈log₂(q/d + 1)⌉, + 1 with a sign, at least `floor`."""
    return max(math.ceil(math.log2(q / d + 1) - 1e-4) + signed, floor)


def lsq_gradient(x, d, low, high):
    """LSQ eq. 5."""
    v = x / d
    if v < low:
        return low
    return high if v > high else -v + half_even(v)


def nearest_power_of_two(d):
    """2^round(log₂ d)."""
    return 2.0 ** round(math.log2(d))


def outgrown(values, maximum, bits):
    """Whether the share of values beyond ±maximum is at least that of the two ends of a uniform word, or a 16th."""
    beyond = sum(abs(value) > maximum for value in values)
    return beyond / len(values) >= max(2 / 2**bits, 1 / 16)


def growth(present, first, is_outgrown):
    """How much larger the step or the range becomes."""
    return max(2.0, first / present) if is_outgrown else 1.0


def aqt(x, maximum, bits, signed):
    """AQT 3.1: clip, scale to the largest whole number, round, scale back."""
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    clipped = min(max(x, -maximum if signed else 0.0), maximum)
    return half_even(clipped * top / maximum) * maximum / top


def moving_average(maxima, decay):
    """The exponential moving average of a sequence, which begins with its first value."""
    average = maxima[0]
    for value in maxima[1:]:
        average = decay * average + (1 - decay) * value
    return average
