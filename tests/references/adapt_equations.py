"""AdaPT's equations taken literally, one weight and one bin at a time; the fast versions must agree with them."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np


def nearest(weight, word_length, fraction_length):
    """Round half to even and saturate, in exact arithmetic; the top of the range is cut to what float32 holds."""
    top = 2 ** (word_length - 1) - 1
    while int(np.float32(top)) != top:
        top -= 1
    bottom = -(2 ** (word_length - 1))
    steps = min(max(round(Fraction(float(weight)) * Fraction(2) ** fraction_length), bottom), top)
    return Fraction(steps) / Fraction(2) ** fraction_length


def histogram(values, low, high, resolution):
    """Counts per bin: bin i holds e_i ≤ value < e_(i+1), the first and last also hold what lies outside."""
    edges = [low + i * ((high - low) / resolution) for i in range(resolution + 1)]
    counts = np.zeros(resolution)
    for value in values:
        bin_ = 0
        for i in range(1, resolution):
            if Fraction(edges[i]) <= value:
                bin_ = i
        counts[bin_] += 1
    return counts


def divergence(weights, quantized, resolution):
    """Eq. 1 and 2, with one pseudo-observation spread over the bins."""
    weights = [Fraction(float(w)) for w in np.ravel(weights)]
    quantized = [Fraction(float(q)) for q in np.ravel(quantized)]
    if not weights or min(weights) == max(weights):
        return 0.0
    low, high = float(min(weights)), float(max(weights))
    q = histogram(weights, low, high, resolution)
    p = histogram(quantized, low, high, resolution)
    total = 0.0
    for i in range(resolution):
        p_i = (p[i] + 1 / resolution) / (len(weights) + 1)
        q_i = (q[i] + 1 / resolution) / (len(weights) + 1)
        total += p_i * math.log2(p_i / q_i)
    return total


def word_length(largest, fraction_length):
    """FL + IL with the fewest integer bits that hold `largest`, saturating by at most half a step."""
    largest, step = Fraction(largest), Fraction(2) ** -fraction_length
    length = 0
    while largest > Fraction(2) ** (length - 1) * step - step / 2:
        length += 1
    return length


def push_down(weights, resolution, tolerance):
    """Alg. 3: bisect FL between the coarsest that resolves the largest weight and the finest of 32 bits."""
    weights = np.ravel(weights)
    largest = float(np.abs(weights).max()) if weights.size else 0.0
    if largest == 0:
        return 2, 0
    lengths = {}
    for fl in range(-126, 127):
        lengths[fl] = word_length(largest, fl)
        if lengths[fl] > 32:
            break
    fitting = [fl for fl, wl in lengths.items() if 2 <= wl <= 32] or [126]
    # The last fraction length known to fail, and the first taken to pass.
    failing, passing = fitting[0] - 1, fitting[-1]
    if weights.min() == weights.max():
        passing = fitting[0]
    while passing - failing > 1:
        middle = (failing + passing) // 2
        quantized = [nearest(w, lengths[middle], middle) for w in weights]
        if divergence(weights, quantized, resolution) <= tolerance:
            passing = middle
        else:
            failing = middle
    return max(lengths[passing], 2), passing


def diversity(gradients):
    """Eq. 3 from the stored gradients."""
    sum_of_norms = sum(math.sqrt(sum(float(g) ** 2 for g in np.ravel(gradient))) for gradient in gradients)
    total = np.sum([np.ravel(gradient).astype(np.float64) for gradient in gradients], axis=0)
    norm_of_sum = math.sqrt(sum(float(g) ** 2 for g in total))
    if norm_of_sum == 0 or not math.isfinite(sum_of_norms) or not math.isfinite(norm_of_sum):
        return math.inf
    return sum_of_norms / norm_of_sum


def log_diversity(diversity):
    """Eq. 3, second line."""
    if 0 < diversity < math.inf:
        return math.log(diversity)
    return 1


def suggest(diversity, fraction_length, strategy):
    """Eq. 4."""
    log = log_diversity(diversity)
    if not log > 0:
        return 1
    x = log - 1
    s1 = min(max(math.ceil(1 / x), 1), 32) if x > 0 else 1
    s2 = max(min(math.ceil(32 * log**2 - 1), 32) - fraction_length, 1)
    return {"min": min(s1, s2), "mean": math.ceil((s1 + s2) / 2), "max": max(s1, s2)}[strategy]


def push_up(lowest_word_length, lowest_fraction_length, diversity, strategy, buffer_bits):
    """The new format, buffer bits included."""
    s = suggest(diversity, lowest_fraction_length, strategy)
    fraction_length = min(lowest_fraction_length + s, 32 - buffer_bits)
    return max(min(fraction_length + buffer_bits, 32), lowest_word_length), fraction_length


def push_up_by_diversity(lowest, current, gradients, buffer_bits):
    """Alg. 4 with formats (WL, FL), on gradients rounded to nearest; a window of zeros has no diversity."""

    def diversity_at(word_length, fraction_length):
        quantized = [
            np.array([float(nearest(g, word_length, fraction_length)) for g in np.ravel(gradient)])
            for gradient in gradients
        ]
        return diversity(quantized) if any(q.any() for q in quantized) else 0

    word_length, fraction_length = lowest
    while word_length < 32 and diversity_at(word_length, fraction_length) < diversity_at(*current):
        word_length, fraction_length = word_length + 1, fraction_length + 1
    fraction_length = min(fraction_length, 32 - buffer_bits)
    return max(min(fraction_length + buffer_bits, 32), word_length), fraction_length


def next_lookback(lookback, diversity, bounds, momentum):
    """3.3: the moving average, without the printed ceiling."""
    lower, upper = bounds
    quotient = upper / diversity if 0 < diversity < math.inf else upper
    new = min(max(math.ceil(quotient), lower), upper) if quotient < math.inf else upper
    return momentum * new + (1 - momentum) * lookback


def next_resolution(resolution, lookback, resolution_bounds, lookback_bounds):
    """Eq. 5."""
    if math.ceil(lookback) >= lookback_bounds[1]:
        new = resolution + 1
    elif math.ceil(lookback) <= lookback_bounds[0]:
        new = resolution - 1
    else:
        new = resolution
    return min(max(new, resolution_bounds[0]), resolution_bounds[1])


def next_strategy(strategy, loss, previous_losses):
    """3.3: bolder where the loss did not fall below its average."""
    if not previous_losses:
        return strategy
    average = sum(previous_losses) / len(previous_losses)
    if abs(average) <= abs(loss):
        return {"min": "mean", "mean": "max", "max": "max"}[strategy]
    return "min"


def rounding_cost(gradients, weights, word_length, fraction_length, l1=0.0, l2=0.0):
    """⟨mean of G + α·sign(W) + β·W, Q(W) − W⟩."""
    total = sum(np.asarray(gradient, np.float64) for gradient in gradients)
    cost = 0.0
    for weight, gradient in zip(map(float, np.ravel(weights)), np.ravel(total), strict=True):
        error = float(nearest(weight, word_length, fraction_length)) - weight
        cost += (float(gradient) / len(gradients) + l1 * np.sign(weight) + l2 * weight) * error
    return cost


def largest_cost(gradients, weights, word_length, fraction_length, l1=0.0, l2=0.0):
    """‖mean of G + α·sign(W) + β·W‖ · ‖Q(W) − W‖."""
    total = sum(np.asarray(gradient, np.float64) for gradient in gradients)
    pulls = errors = 0.0
    for weight, gradient in zip(map(float, np.ravel(weights)), np.ravel(total), strict=True):
        pulls += (float(gradient) / len(gradients) + l1 * np.sign(weight) + l2 * weight) ** 2
        errors += (float(nearest(weight, word_length, fraction_length)) - weight) ** 2
    return math.sqrt(pulls) * math.sqrt(errors)


def explained(layers):
    """r·|r| of the mean cosine r between gradients and errors, [(gradients, errors) of each layer]."""
    together = sum(float(g) * float(e) for gradients, errors in layers for g, e in zip(gradients, errors, strict=True))
    most = sum(math.hypot(*map(float, gradients)) * math.hypot(*map(float, errors)) for gradients, errors in layers)
    mean_cosine = together / most if most else 0.0
    return math.copysign(mean_cosine**2, mean_cosine)


def squared_error(weights, word_length, fraction_length):
    """Mean of (Q(w) − w)², exact."""
    values = [Fraction(float(weight)) for weight in np.ravel(weights)]
    total = sum((nearest(value, word_length, fraction_length) - value) ** 2 for value in values)
    return total / len(values) if values else Fraction(0)


def range_of(weights, word_length):
    """The finest FL whose range holds every weight, saturating by at most half a step."""
    values = [Fraction(float(weight)) for weight in np.ravel(weights)]
    half = Fraction(2) ** (word_length - 1)
    fraction_length = 126
    while any(
        not -half - Fraction(1, 2) <= v * Fraction(2) ** fraction_length <= half - Fraction(1, 2) for v in values
    ):
        fraction_length -= 1
    return fraction_length if any(values) else word_length - 1


def best_range(weights, word_length, shortest=-200):
    """From the longest range that any weight asks for, a bit less at a time while the squared error falls."""
    fraction_length = max(range_of(weights, word_length), shortest)
    error = squared_error(weights, word_length, fraction_length)
    while error > 0 and fraction_length < 126:
        finer = squared_error(weights, word_length, fraction_length + 1)
        if finer >= error:
            break
        fraction_length, error = fraction_length + 1, finer
    return fraction_length, error


def errors_by_word(weights, current):
    """Word length → (FL, squared error), the error of the present format taken for two thirds of what it is."""
    table, shortest = {}, -200
    for word_length in range(2, 17):
        table[word_length] = best_range(weights, word_length, shortest)
        shortest = table[word_length][0]
    word_length, fraction_length = current
    if word_length in table:
        error = squared_error(weights, word_length, fraction_length) * 2 / 3
        if error <= table[word_length][1]:
            table[word_length] = fraction_length, error
    return table


def best_channel_ranges(channels, words):
    """Word length → [(FL, Σ(Q(w) − w)²) of each channel]; a channel of zeros is held like the whole layer."""
    layer = [weight for channel in channels for weight in channel]
    table, shortest = {}, [-200] * len(channels)
    for word_length in words:
        table[word_length] = []
        for c, channel in enumerate(channels):
            if any(channel):
                fraction_length, _ = best_range(channel, word_length, shortest[c])
            else:
                fraction_length = max(range_of(layer, word_length), shortest[c])
            shortest[c] = fraction_length
            error = squared_error(channel, word_length, fraction_length) * len(channel)
            table[word_length].append((fraction_length, error))
    return table


def errors_by_channel(channels, current):
    """Word length → ([FL of each channel], mean squared error), present formats judged as in `errors_by_word`."""
    word_length, present = current
    found = {}
    for word, row in best_channel_ranges(channels, range(2, 17)).items():
        if word == word_length:
            for c, (channel, fraction_length) in enumerate(zip(channels, present, strict=True)):
                error = squared_error(channel, word, fraction_length) * len(channel) * 2 / 3
                if error <= row[c][1]:
                    row[c] = fraction_length, error
        total = sum(error for _, error in row)
        found[word] = [length for length, _ in row], total / sum(map(len, channels))
    return found


def allocate(costs, prices, budget):
    """Lists by format for each layer. Refine one layer at a time, where a bit lowers its cost most."""

    def slope(layer, now, to):
        saved, paid = costs[layer][now] - costs[layer][to], prices[layer][to] - prices[layer][now]
        return saved / paid if paid > 0 else math.inf if saved > 0 else 0.0

    prices = [[max(price[: index + 1]) for index in range(len(price))] for price in prices]
    words, spent = [0] * len(costs), sum(price[0] for price in prices)
    while True:
        offers = []
        for layer, cost in enumerate(costs):
            now = words[layer]
            slopes = [slope(layer, now, to) for to in range(now + 1, len(cost))]
            if slopes and max(slopes) > 0:
                # A layer offers its steepest refinement only; if that does not fit, nothing of this layer does.
                to = now + 1 + slopes.index(max(slopes))
                if spent + prices[layer][to] - prices[layer][now] <= budget:
                    offers.append((max(slopes), -layer, to))
        if not offers:
            return words
        _, layer, to = max(offers)
        spent += prices[-layer][to] - prices[-layer][words[-layer]]
        words[-layer] = to


def code_length(weights, word_length, fraction_length):
    """Entropy of the words and the description of their frequencies, in bits per weight."""
    counts = Counter(nearest(float(weight), word_length, fraction_length) for weight in np.ravel(weights))
    n = sum(counts.values())
    return sum(-k / n * math.log2(k / n) for k in counts.values()) + (len(counts) - 1) / 2 * math.log2(n) / n


def next_bits(bits, cost, allowed):
    """A bit more where rounding costs too much, one less where it costs under an eighth of that."""
    if cost > allowed:
        return bits + 1
    if -allowed < 8 * cost < allowed:
        return bits - 1
    return bits
