"""A quantised network compared with the same network in float32: inference speedup, size and memory."""

import math

from adapt.perfmodel.checked_arrays import FLOAT32_BITS, ArrayLike, Operations, as_operations, as_rows, as_weights


def inference_speedup(operations: Operations, word_length: ArrayLike, nonzero: ArrayLike) -> float:
    """AdaPT table 6, SU: Σ ops·32 / Σ ops·sp·WL at the last row; above 1 is faster, ∞ where nothing is left.

    This assumes hardware on which every saved bit saves work and zeros cost nothing; `profiled_inference_speedup` does
    not.

    Args:
        operations: ops, multiply-adds per sample [layers].
        word_length: WL, bits, [rows, layers] or one row.
        nonzero: sp, share of weights that are not zero, 0 to 1, as `word_length`.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    counts = as_operations(operations)
    lengths, shares = as_rows(word_length, nonzero, len(counts))
    cost = float((shares[-1] * lengths[-1]) @ counts)
    return FLOAT32_BITS * float(counts.sum()) / cost if cost else math.inf


def size_ratio(word_length: ArrayLike, nonzero: ArrayLike, numel: ArrayLike | None = None) -> float:
    """AdaPT 4.1.2, SZ: Σ sp·WL / Σ 32 at the last row, ours over float32 as in the paper's tables; below 1 is smaller.

    Args:
        word_length: WL, bits, [rows, layers] or one row.
        nonzero: sp, share of weights that are not zero, 0 to 1, as `word_length`.
        numel: number of weights of each layer [layers], by which layers are weighted, for the physical figure. Without
            it all layers count the same, as in the paper.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    lengths, shares = as_rows(word_length, nonzero)
    weights = as_weights(numel, lengths.shape[1])
    return float((shares[-1] * lengths[-1]) @ weights) / FLOAT32_BITS


def memory_ratio(word_length: ArrayLike, nonzero: ArrayLike, numel: ArrayLike | None = None) -> float:
    """AdaPT 4.1.2, MEM: the mean over rows of Σ (sp·WL + 32) / Σ 32, ours over float32; between 1 and 2.

    Training keeps the float32 master weights in addition to the quantised ones. All rows count the same, so a trace of
    every k-th step is enough.

    Args:
        word_length, nonzero, numel: as in `size_ratio`, except that every row counts.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    lengths, shares = as_rows(word_length, nonzero)
    weights = as_weights(numel, lengths.shape[1])
    return float(((shares * lengths + FLOAT32_BITS) @ weights).mean()) / FLOAT32_BITS
