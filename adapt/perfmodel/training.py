"""The cost of a training run: AdaPT eq. 6 to 9 and the speedup SU, in bit operations per multiply-add."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapt.arguments import check_option
from adapt.perfmodel.checked_arrays import (
    FLOAT32_BITS,
    Array,
    ArrayLike,
    Operations,
    amount,
    as_operations,
    as_rows,
    as_tables,
    bounded,
    broadcastable,
    check_count,
)

Form = Literal["physical", "paper"]


def push_down_operations(numel: ArrayLike, resolution: ArrayLike) -> Array:
    """AdaPT eq. 6: ops_pd ≤ 2·log₂(32 − 8)·r·3·numel, the operations of one push-down.

    Args:
        numel, resolution: weights of the layer, and r, histogram bins. Shapes that broadcast.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    sizes, bins = broadcastable(numel=numel, resolution=resolution)
    return np.asarray(2 * math.log2(32 - 8) * bins * 3 * sizes)


def push_up_operations(numel: ArrayLike, lookback: ArrayLike) -> Array:
    """AdaPT eq. 7: ops_pu ≤ (lb + 1)·numel + 1, the operations of one push-up.

    Args:
        numel, lookback: weights of the layer, and lb, gradients in the window. Shapes that broadcast.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number below 0 or not finite, or shapes that do not broadcast.
    """
    sizes, window = broadcastable(numel=numel, lookback=lookback)
    return np.asarray((window + 1) * sizes + 1)


def training_cost(
    operations: Operations,
    word_length: ArrayLike,
    nonzero: ArrayLike,
    *,
    accumulation: int = 1,
    backward_bits: float = 32,
    backward_factor: float | None = None,
    form: Form = "paper",
) -> float:
    """AdaPT eq. 8: Σ_i Σ_l ops·(sp·WL + backward), in bits × multiply-adds per sample.

    With b = `backward_factor`·`backward_bits`, backward is b/accs in the paper's form, and b in the physical form,
    because the backward pass runs on every micro-batch.

    Args:
        operations: ops, multiply-adds per sample [layers].
        word_length: WL, bits, [rows, layers], a row per step, or one row or one number.
        nonzero: sp, share of weights that are not zero, 0 to 1, as `word_length`.
        accumulation: accs, micro-batches per optimizer step. It only matters in the paper's form.
        backward_bits: bits of the backward pass, whose operands are not quantised.
        backward_factor: products in the backward pass for each one in the forward pass; by default 1 in the paper's
            form and 2 in the physical one (the gradients of the inputs and of the weights).
        form: "paper" or "physical".

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    check_option("form", form, ("physical", "paper"))
    counts = as_operations(operations)
    lengths, shares = as_rows(word_length, nonzero, len(counts))
    check_count("accumulation", accumulation)
    if backward_factor is None:
        backward_factor = 1 if form == "paper" else 2
    backward = amount("backward_factor", backward_factor) * amount("backward_bits", backward_bits)
    if form == "paper":
        backward /= accumulation
    return float(((shares * lengths + backward) @ counts).sum())


def switching_cost(
    numel: ArrayLike, nonzero: ArrayLike, lookback: ArrayLike, resolution: ArrayLike, *, accumulation: int = 1
) -> float:
    """AdaPT eq. 9: Σ_i Σ_l 32·(sp·ops_pd + ops_pu)/(accs·lb), in bits × operations, for any batch size.

    A switch happens every lb optimizer steps; its cost is spread evenly over them. A layer whose lookback is 0 keeps no
    window and never switches: it costs nothing.

    Args:
        numel: weights of each layer [layers].
        nonzero, lookback, resolution: sp, lb and r, [rows, layers] or one row.
        accumulation: accs, micro-batches per optimizer step.

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    sizes = np.atleast_1d(bounded("numel", numel, 0.0, math.inf))
    if sizes.ndim > 1:
        raise ValueError(f"numel must have one number per layer, got the shape {list(sizes.shape)}")
    shares, window, bins = as_tables(
        "numel",
        len(sizes),
        nonzero=bounded("nonzero", nonzero, 0.0, 1.0),
        lookback=bounded("lookback", lookback, 0.0, math.inf),
        resolution=bounded("resolution", resolution, 0.0, math.inf),
    )
    check_count("accumulation", accumulation)
    work = FLOAT32_BITS * (shares * push_down_operations(sizes, bins) + push_up_operations(sizes, window))
    switches = np.divide(1.0, window, out=np.zeros_like(window), where=window > 0)
    return float((work * switches).sum() / accumulation)


@dataclass(frozen=True)
class OtherRun:
    """The run that a training run is compared with; by default it trains in float32.

    Args:
        steps: optimizer steps that it took.
        batch_size: samples in one micro-batch.
        accumulation: micro-batches per optimizer step.
        word_length: bits, [rows, layers] or one row or number. All rows count the same and together represent all
            steps.
        nonzero: share of weights that are not zero, as `word_length`.
        operations: its multiply-adds per sample, if it trains another network.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    word_length: ArrayLike = FLOAT32_BITS
    nonzero: ArrayLike = 1.0
    operations: Operations | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            check_count(name, getattr(self, name))


def training_speedup(
    operations: Operations,
    word_length: ArrayLike,
    nonzero: ArrayLike,
    *,
    batch_size: int,
    overhead: float = 0.0,
    accumulation: int = 1,
    steps: int | None = None,
    other: OtherRun | None = None,
    backward_bits: float = 32,
    backward_factor: float | None = None,
    form: Form = "physical",
) -> float:
    """AdaPT 4.1.2, SU: the other run's cost over ours; above 1, ours is cheaper.

    The physical form is bs_other·train_other / (bs·train_ours + overhead): costs are per sample, the overhead of
    switching is per step. The paper prints (bs_other·train_other)/(bs·(train_ours + overhead)). The other run has no
    overhead. All rows count the same, so a trace of every k-th step is enough.

    Args:
        operations, word_length, nonzero, backward_bits, backward_factor: as in `training_cost`. With a backward factor
            of 1 the figure is comparable with the paper's tables in either form.
        batch_size: bs, samples in one micro-batch.
        overhead: `switching_cost` of the same rows, with the same `accumulation`.
        accumulation: accs, micro-batches per optimizer step.
        steps: optimizer steps that the rows together represent; by default the number of rows.
        other: the run to compare with; by default the same network trained in float32 with the same steps and batches.
        form: "physical" or "paper".

    Raises:
        TypeError: an argument that is not numeric.
        ValueError: a number out of its range, or shapes that do not match.
    """
    if not isinstance(other, OtherRun | None):
        raise TypeError(f"other must be an OtherRun or None, got {other!r:.80}")
    counts = as_operations(operations)
    lengths, shares = as_rows(word_length, nonzero, len(counts))
    overhead = amount("overhead", overhead)
    steps = len(lengths) if steps is None else steps
    check_count("steps", steps)
    ours = OtherRun(steps, batch_size, accumulation, lengths, shares, counts)
    if other is None:
        other = OtherRun(steps, batch_size, accumulation)

    def cost_per_sample(run: OtherRun) -> tuple[float, int]:
        """Return the mean cost of a row, and the samples that the whole run saw."""
        rows, _ = as_rows(run.word_length, run.nonzero)
        cost = training_cost(
            counts if run.operations is None else run.operations,
            run.word_length,
            run.nonzero,
            accumulation=run.accumulation,
            backward_bits=backward_bits,
            backward_factor=backward_factor,
            form=form,
        )
        return cost / len(rows), run.steps * run.accumulation * run.batch_size

    cost_ours, samples_ours = cost_per_sample(ours)
    cost_other, samples_other = cost_per_sample(other)
    per_sample = overhead / len(lengths) / (batch_size if form == "physical" else 1)
    total = samples_ours * (cost_ours + per_sample)
    return samples_other * cost_other / total if total else math.inf
