"""A literal AdaPT-SGD: algorithms 1 and 2 with stored gradients, one weight at a time, without torch."""

import math
from fractions import Fraction
from hashlib import blake2b

import numpy as np

from tests.references import adapt_equations as equations
from tests.references.fixed_point import uniform

GOLDEN = 0x9E3779B97F4A7C15


def stream_key(seed, step, name):
    """The 64-bit key of one layer in one step: the name's digest plus a multiple of the step, mixed (SplitMix64)."""
    z = int.from_bytes(blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")
    z = (z + step * GOLDEN) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def stochastic(weight, word_length, fraction_length, draw):
    """The grid value below, or the one above with the fraction as its probability; saturating, exact."""
    steps = Fraction(float(weight)) * Fraction(2) ** fraction_length
    below = math.floor(steps)
    picked = below + 1 if draw < steps - below else below
    return equations.nearest(Fraction(picked) / Fraction(2) ** fraction_length, word_length, fraction_length)


def quantized(weights, precision, key=None):
    """A float32 array on the grid of ⟨WL, FL⟩: stochastic with a key, nearest without."""
    values = [
        equations.nearest(w, *precision) if key is None else stochastic(w, *precision, uniform(key, i))
        for i, w in enumerate(np.ravel(weights))
    ]
    return np.array([float(value) for value in values], np.float32).reshape(np.shape(weights))


def squared_norm(values):
    """‖x‖₂² in float64."""
    return sum(float(value) ** 2 for value in np.ravel(values))


def l1_norm(values):
    """‖x‖₁ in float64."""
    return sum(abs(float(value)) for value in np.ravel(values))


class Layer:
    """One entry of Q: the master, the format, the stored gradients of the window, lookback and resolution."""

    def __init__(self, name, values, policy):
        self.name = name
        if policy.initial is not None:
            self.precision = (policy.initial.word_length, policy.initial.fraction_length)
        else:
            self.precision = equations.push_down(values, policy.resolution[0], policy.kl_tolerance)
        if policy.initial is None and policy.push_up == "loss":
            word_length = 8 if policy.bits is None else math.floor(policy.bits)
            self.precision = (word_length, equations.best_range(values, word_length)[0])
        self.gradients = []
        self.lookback = policy.lookback[0 if policy.push_up == "loss" else 1]
        self.resolution = policy.resolution[0]
        self.diversity = 1.0


class Algorithm1:
    """Trains `parameters`, a dict of float32 arrays, in which those with two dimensions or more are the layers.

    `policy` is an adapt.AdaPT of which only the hyperparameters are read; none of its methods is called. Sums and norms
    are taken in float64 from the stored gradients; the update is in float32, as in torch's SGD.
    """

    def __init__(self, parameters, policy, *, lr, momentum=0.0, l1=0.0, l2=0.0, rounding="stochastic", seed=0):
        self.policy, self.lr, self.momentum, self.l1, self.l2 = policy, lr, momentum, l1, l2
        self.rounding, self.seed, self.step_number = rounding, seed, 0
        self.masters = {name: values.copy() for name, values in parameters.items()}
        self.layers = [Layer(name, values, policy) for name, values in parameters.items() if values.ndim >= 2]
        self.strategy, self.losses = "min", []
        self.momenta = {}
        self.switches = 0
        self.quantize_layers()

    def quantize_layers(self):
        """Alg. 1, line 9 to 11."""
        self.shown = dict(self.masters)
        for layer in self.layers:
            key = stream_key(self.seed, self.step_number, layer.name) if self.rounding == "stochastic" else None
            self.shown[layer.name] = quantized(self.masters[layer.name], layer.precision, key)

    def step(self, loss, gradients):
        """Alg. 1, line 7 to 11, for the gradients and the loss of a forward and backward pass at `shown`."""
        gradients = {name: gradient.copy() for name, gradient in gradients.items()}
        if self.policy.quantize_gradients:
            for layer in self.layers:
                key = stream_key(self.seed, self.step_number, f"{layer.name}.grad")
                gradients[layer.name] = quantized(gradients[layer.name], layer.precision, key)
        self.precision_switch(loss + self.penalty(), gradients)
        for layer in self.layers:
            gradients[layer.name] = self.treated(self.masters[layer.name], gradients[layer.name])
        self.sgd(gradients)
        self.step_number += 1
        self.quantize_layers()

    def penalty(self):
        """α‖W‖₁ + β/2·‖W‖₂² + mean of WL/32·sp."""
        total = 0.0
        for layer in self.layers:
            master, shown = self.masters[layer.name], self.shown[layer.name]
            nonzero = np.count_nonzero(shown) / shown.size
            total += self.l1 * l1_norm(master) + self.l2 / 2 * squared_norm(master)
            total += layer.precision[0] / 32 * nonzero / len(self.layers)
        return total

    def precision_switch(self, loss, gradients):
        """Alg. 2."""
        policy = self.policy
        if policy.push_up == "loss":
            self.compact_switch(loss, gradients)
            return
        average_lookback = math.ceil(sum(layer.lookback for layer in self.layers) / len(self.layers))
        self.strategy = equations.next_strategy(self.strategy, loss, self.losses[-average_lookback:])
        self.losses.append(loss)
        for layer in self.layers:
            layer.gradients.append(gradients[layer.name])
            layer.diversity = equations.diversity(layer.gradients)
            if len(layer.gradients) > 1:
                layer.lookback = equations.next_lookback(
                    layer.lookback, layer.diversity, policy.lookback, policy.lookback_momentum
                )
            # The moving average only approaches its limit; within 5e-10 of a gradient it counts as reached.
            window = math.ceil(layer.lookback - 5e-10)
            layer.resolution = equations.next_resolution(layer.resolution, window, policy.resolution, policy.lookback)
            if len(layer.gradients) >= window:
                layer.precision = self.switched(layer)
                layer.gradients = []
                self.switches += 1

    def switched(self, layer):
        """Alg. 2, line 8 to 10: PushDown, then PushUp."""
        policy = self.policy
        lowest = equations.push_down(self.masters[layer.name], layer.resolution, policy.kl_tolerance)
        if policy.push_up == "diversity":
            return equations.push_up_by_diversity(lowest, layer.precision, layer.gradients, policy.buffer_bits)
        return equations.push_up(*lowest, layer.diversity, self.strategy, policy.buffer_bits)

    def compact_switch(self, loss, gradients):
        """`AdaPT.compact()`: all layers at once, after windows of twice the length each."""
        policy = self.policy
        self.losses.append(loss)
        for layer in self.layers:
            layer.gradients.append(gradients[layer.name])
            layer.diversity = equations.diversity(layer.gradients)
        window = self.layers[0].lookback
        if len(self.layers[0].gradients) < window:
            return
        tables, powers, cost = [], [], 0.0
        sizes = [self.masters[layer.name].size for layer in self.layers]
        spent = sum(n * layer.precision[0] for n, layer in zip(sizes, self.layers, strict=True))
        for layer in self.layers:
            master = self.masters[layer.name]
            tables.append(equations.errors_by_word(master, layer.precision))
            powers.append((sum(math.sqrt(squared_norm(g)) for g in layer.gradients) / window) ** 2)
            cost += equations.rounding_cost(layer.gradients, master, *layer.precision, self.l1, self.l2)
        if policy.bits is None:
            # Of the loss, so much for each layer.
            allowed = policy.loss_tolerance * sum(self.losses[-window:]) / window * len(self.layers)
            bits = equations.next_bits(spent / sum(sizes), cost, allowed)
        else:
            bits = policy.bits
        costs = [[power * float(table[b][1]) for b in table] for power, table in zip(powers, tables, strict=True)]
        prices = [[n * word for word in table] for n, table in zip(sizes, tables, strict=True)]
        words = equations.allocate(costs, prices, bits * sum(sizes))
        for layer, table, word in zip(self.layers, tables, words, strict=True):
            layer.precision = (2 + word, table[2 + word][0])
            layer.gradients, layer.lookback = [], min(2 * window, policy.lookback[1])
            self.switches += 1

    def treated(self, master, gradient):
        """G/‖G‖₂ + α·sign(W) + β·W, each product and sum rounded to float32."""
        norm = math.sqrt(squared_norm(gradient))
        if self.policy.normalize_gradients and norm > 0:
            gradient = gradient * np.float32(1 / norm)
        return gradient + (np.float32(self.l1) * np.sign(master) + np.float32(self.l2) * master)

    def sgd(self, gradients):
        """Torch's SGD: the buffer starts as the first gradient."""
        for name, gradient in gradients.items():
            if self.momentum:
                buffer = self.momenta.get(name)
                gradient = gradient if buffer is None else np.float32(self.momentum) * buffer + gradient
                self.momenta[name] = gradient
            self.masters[name] = self.masters[name] - np.float32(self.lr) * gradient
