"""The figures of a run, computed once: every table, file and page shows these."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.perfmodel.ratios import inference_speedup
from adapt.switching.pushup import STRATEGIES
from adapt.trace import Trace, display
from adapt.trace.widths import Widths

Row = dict[str, Any]
"""Figures by name: texts, numbers, and None for what is not known."""


def totals(trace: Trace) -> dict[str, float]:
    """Return figures of the whole network, each weighted by the layers' sizes.

    Returns:
        mean_word_length (bits) and nonzero (share) in the last row; run_mean_word_length and run_nonzero, their means
        over the rows; size_ratio, the final network's size over its size in float32; memory_ratio, the memory that
        training needs for weights and masters over what it needs in float32.

    Raises:
        ValueError: the trace has no rows.
    """
    check_rows(trace)
    by_row = display.totals(trace)
    means = {f"run_{name}": float(by_row[name].mean()) for name in ("mean_word_length", "nonzero")}
    return means | {name: float(values[-1]) for name, values in by_row.items()}


def summary(trace: Trace, operations: Mapping[str, int] | None = None, widths: Widths | None = None) -> list[Row]:
    """Return a row of figures for each layer.

    Args:
        trace: what happened.
        operations: multiply-adds per sample by layer, from `adapt.perfmodel.operations`. Without them the modelled
            share of the cost is None.
        widths: the word lengths by channel of a run that learned them. The trace rounds their mean to whole bits;
            where they are given, word_length_last and bytes are exact.

    Returns:
        layer and weights; word_length_first, _mean and _last, fraction_length_last (bits); nonzero_mean and _last
        (shares); moves, raised and lowered (changes of the format, of them to more and to fewer bits) and last_move
        (its step, None without one); bytes, those of the layer's words packed without gaps, and float32_bytes;
        modelled_speedup, 32/(sp·WL), and modelled_share, the layer's share of ops·sp·WL; diversity_raised and
        diversity_lowered, medians of Δs in the windows that ended with such a move; divergence and rounding_cost, the
        medians of the bits that push-down gave up, and of what rounding the layer had cost the loss, at a move; and
        strategy, AdaPT's push-up strategy at the last move.

    Raises:
        ValueError: the trace has no rows.
    """
    check_rows(trace)
    last, switches = display.word_lengths(trace, widths)[-1], trace.switches()
    change = np.zeros(switches.shape, np.int16)
    change[1:] = np.diff(trace.word_length, axis=0)
    cost = None if operations is None else trace.nonzero[-1] * last * [operations.get(n, 0) for n in trace.layers]
    rows = []
    for i, (name, numel) in enumerate(zip(trace.layers, trace.numel.tolist(), strict=True)):
        moves = np.flatnonzero(switches[:, i])
        kept = float(trace.nonzero[-1, i] * last[i])
        windows = trace.diversity[:, i]
        rows.append(
            {
                "layer": name,
                "weights": numel,
                "word_length_first": int(trace.word_length[0, i]),
                "word_length_mean": float(trace.word_length[:, i].mean()),
                "word_length_last": float(last[i]),
                "fraction_length_last": int(trace.fraction_length[-1, i]),
                "nonzero_mean": float(trace.nonzero[:, i].mean(dtype=np.float64)),
                "nonzero_last": float(trace.nonzero[-1, i]),
                "moves": len(moves),
                "raised": int((change[:, i] > 0).sum()),
                "lowered": int((change[:, i] < 0).sum()),
                "last_move": int(trace.step[moves[-1]]) if len(moves) else None,
                "bytes": math.ceil(round(numel * last[i], 6) / 8),
                "float32_bytes": 4 * numel,
                "modelled_speedup": 32 / kept if kept else None,
                "modelled_share": None if cost is None or not cost.sum() else float(cost[i] / cost.sum()),
                "diversity_raised": _median(windows[change[:, i] > 0]),
                "diversity_lowered": _median(windows[change[:, i] < 0]),
                "divergence": _median(trace.divergence[moves, i]),
                "rounding_cost": _median(trace.rounding_cost[moves, i]),
                "strategy": strategy_name(trace.strategy[moves[-1], i]) if len(moves) else None,
            }
        )
    return rows


def overall(trace: Trace, rows: list[Row], operations: Mapping[str, int] | None = None) -> Row:
    """Return the figures of the whole network: those of `totals`, and sums over the rows of `summary`."""
    counts = [operations.get(name, 0) for name in trace.layers] if operations else []
    speedup = inference_speedup(counts, trace.word_length[-1:], trace.nonzero[-1:]) if any(counts) else math.inf
    size, before = sum(row["bytes"] for row in rows), sum(row["float32_bytes"] for row in rows)
    figures = totals(trace)
    figures["mean_word_length"] = sum(r["word_length_last"] * r["weights"] for r in rows) / int(trace.numel.sum())
    return {
        "first_step": int(trace.step[0]),
        "last_step": int(trace.step[-1]),
        "layers": len(rows),
        "weights": int(trace.numel.sum()),
        "bytes": size,
        "float32_bytes": before,
        "moves": sum(row["moves"] for row in rows),
        **figures,
        "modelled_inference_speedup": speedup if math.isfinite(speedup) else None,
        "strategies": _strategies(trace),
    }


def strategy_name(code: int) -> str | None:
    """Return the name of a push-up strategy as the trace's column holds it; None without one."""
    return STRATEGIES[code - 1] if code else None


def _strategies(trace: Trace) -> dict[str, float] | None:
    """Return the share of the rows that each push-up strategy has; None if the policy has none."""
    codes = trace.strategy.max(axis=1)
    return {name: float((codes == code).mean()) for code, name in enumerate(STRATEGIES, 1)} if codes.any() else None


def check_rows(trace: Trace) -> None:
    """Refuse a trace without rows.

    Raises:
        ValueError: it has none.
    """
    if not len(trace):
        raise ValueError("the trace has no rows: no optimizer step was recorded")


def _median(values: NDArray[Any]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
