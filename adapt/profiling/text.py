"""A model card as text for the terminal, and as JSON."""

import json
from typing import Any

from adapt.command_line import aligned

Card = dict[str, Any]
"""The result of `adapt.perfmodel.model_card`, plus the network's name and the figures of training."""

HEAD = ("layer", "kind", "multiply-adds", "weights", "in", "out", "bits", "runs at", "cost", "µs", "before")


def as_json(card: Card) -> str:
    """Return all figures, as strict JSON."""
    return json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False)


def as_text(card: Card) -> str:
    """Return one line per layer, and the figures of the whole network."""
    lines = aligned([HEAD, *map(cells, card["layers"])], left=2)
    figures = summary(card)
    width = max(map(len, figures))
    return "\n".join(
        [
            f"{card['network']} on {card['machine']}, batch {card['batch_size']}, modelled",
            "",
            lines[0],
            "-" * max(map(len, lines)),
            *lines[1:],
            "",
            *(f"{name.ljust(width)}   {value}" for name, value in figures.items()),
        ]
    )


def cells(row: dict[str, Any]) -> list[str]:
    """Return a layer's figures as text, in the order of `HEAD`."""
    weights, activations = row["runs_at"]
    return [
        row["layer"],
        row["kind"],
        *(f"{row[name]:,}" for name in ("multiply_adds", "weights", "inputs", "outputs")),
        f"{row['weight_bits']:g}×{row['activation_bits']:g}",
        f"{weights:g}×{activations:g}",
        "–" if row["cost_share"] is None else f"{row['cost_share']:.1%}",
        f"{row['microseconds']:.3g}",
        f"{row['baseline_microseconds']:.3g}",
    ]


def summary(card: Card) -> dict[str, str]:
    """Return the figures of the whole network as text, by name."""
    totals, training = card["totals"], card["training"]
    baseline = "float32" if card["baseline_bits"] == 32 else f"{card['baseline_bits']:g} bits, its widest"
    bounds = {
        "roofline": "bounded by memory",
        "measured layers": "from measured layers",
        "none": "bounded by rates alone",
    }
    figures = {
        "parameters": f"{totals['parameters']:,}",
        "multiply-adds": f"{totals['multiply_adds']:,} per sample",
        "weights": f"{totals['mean_weight_bits']:.2f} bits on average, {totals['size_ratio']:.3f} of float32",
        "footprint": f"{totals['footprint_kilobytes']:,.0f} kB: parameters and the largest activation, of "
        f"{totals['largest_activation']:,} elements",
        "memory traffic": f"{totals['kilobytes_moved']:,.0f} kB per sample",
        "multiplier cost": f"linear {totals['linear_cost_ratio']:.3f}, quadratic {totals['quadratic_cost_ratio']:.3f} "
        "of float32 (AQT)",
        "energy": f"{totals['energy_microjoules']:,.4g} µJ per sample, float32 "
        f"{totals['float32_energy_microjoules']:,.4g} µJ (arithmetic at 45 nm, memory left out)",
        "latency": f"{totals['microseconds']:,.4g} µs per batch, before {totals['baseline_microseconds']:,.4g} µs",
        f"speedup over {baseline}": f"idealised {_times(totals['idealised_speedup'])}, profiled "
        f"{_times(totals['profiled_speedup'])}, {bounds[card['bound']]} {_times(totals['bounded_speedup'])}",
    }
    if training is not None:
        figures["speedup of training"] = (
            f"idealised {_times(training['idealised_speedup'])}, profiled {_times(training['profiled_speedup'])}"
        )
    return {**figures, "source": card["source"] or "not given"}


def _times(ratio: float | None) -> str:
    return "∞" if ratio is None else f"{ratio:.2f}×"
