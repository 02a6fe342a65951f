"""Literal twins of the performance model: the equations of AdaPT 4.1.2 as nested loops over steps i and layers l."""

import math


def push_down_operations(numel, resolution):
    """Eq. 6."""
    return 2 * math.log2(32 - 8) * resolution * 3 * numel


def push_up_operations(numel, lookback):
    """Eq. 7."""
    return (lookback + 1) * numel + 1


def training_cost(operations, word_length, nonzero, accumulation):
    """Eq. 8 as printed."""
    total = 0.0
    for i in range(len(word_length)):
        for layer in range(len(operations)):
            total += operations[layer] * (nonzero[i][layer] * word_length[i][layer] + 32 / accumulation)
    return total


def physical_training_cost(operations, word_length, nonzero):
    """Eq. 8 with a backward pass of two products on every micro-batch."""
    total = 0.0
    for i in range(len(word_length)):
        for layer in range(len(operations)):
            forward = operations[layer] * nonzero[i][layer] * word_length[i][layer]
            gradient_of_inputs = operations[layer] * 32
            gradient_of_weights = operations[layer] * 32
            total += forward + gradient_of_inputs + gradient_of_weights
    return total


def switching_cost(numel, nonzero, lookback, resolution, accumulation):
    """Eq. 9; a layer without a window never switches."""
    total = 0.0
    for i in range(len(nonzero)):
        for layer in range(len(numel)):
            if lookback[i][layer] == 0:
                continue
            push_down = push_down_operations(numel[layer], resolution[i][layer])
            push_up = push_up_operations(numel[layer], lookback[i][layer])
            total += 32 * (nonzero[i][layer] * push_down + push_up) / (accumulation * lookback[i][layer])
    return total


def paper_speedup(batch_other, cost_other, batch_ours, training_ours, switching_ours):
    """SU as printed: the batch size multiplies the overhead too."""
    return (batch_other * cost_other) / (batch_ours * (training_ours + switching_ours))


def physical_speedup(batch_other, cost_other, batch_ours, training_ours, switching_ours):
    """SU with costs per sample and an overhead per step."""
    return batch_other * cost_other / (batch_ours * training_ours + switching_ours)


def inference_speedup(operations, word_length, nonzero):
    """Float32's cost over that of the last step."""
    ours = other = 0.0
    for layer in range(len(operations)):
        ours += operations[layer] * nonzero[-1][layer] * word_length[-1][layer]
        other += operations[layer] * 32
    return other / ours


def size_ratio(word_length, nonzero, numel):
    """SZ, ours over float32, each layer as often as it has weights."""
    ours = other = 0.0
    for layer in range(len(numel)):
        ours += numel[layer] * nonzero[-1][layer] * word_length[-1][layer]
        other += numel[layer] * 32
    return ours / other


def memory_ratio(word_length, nonzero, numel):
    """MEM, ours over float32, each layer as often as it has weights."""
    ours = other = 0.0
    for i in range(len(word_length)):
        for layer in range(len(numel)):
            ours += numel[layer] * (nonzero[i][layer] * word_length[i][layer] + 32)
            other += numel[layer] * 32
    steps = len(word_length)
    return (ours / steps) / (other / steps)
