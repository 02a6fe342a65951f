"""Made-up result lines."""

from recipes.common import ledger
from recipes.mixed_precision.methods import kind_of
from recipes.mixed_precision.runs import LEDGER

WEIGHTS, INPUTS = 80_000, 40_000


def line(method="lsq4", seed=0, accuracy=0.8, *, model="resnet20", seconds=10.0, policy=None, missed=None, **settings):
    """A line of a tuning that takes `seconds` of the processor; learned widths fill 99 % and 98 % of their bytes."""
    kind, bits = kind_of(method)
    bits = {"compact": 6}.get(kind, bits)
    weight_bits, input_bits = (0.99 * bits, 0.98 * bits) if kind == "learned" else (bits, bits)
    return {
        "settings": {
            "model": model, "method": method, "lr": 0.02, "start_epochs": 8, "epochs": 2, "batch_size": 128,
            "momentum": 0.9, "l2": 5e-4, "subset": 25_000, "seed": seed, "data_set": "cifar10", **settings,
        },
        "policy": policy,
        "rounding": "nearest",
        "accuracy": accuracy,
        "seconds": 3 * seconds,
        "history": [{"accuracy": accuracy, "seconds": 1.5 * seconds, "processor_seconds": seconds / 2}] * 2,
        "weight_kilobytes": WEIGHTS * weight_bits / 8000,
        "activation_kilobytes": INPUTS * input_bits / 8000,
        "layers": {
            "a.weight": {
                "weights": WEIGHTS / 4, "weight_bits": weight_bits, "inputs": INPUTS, "input_bits": input_bits,
            },
            "a.bias": {"weights": WEIGHTS * 3 / 4, "weight_bits": weight_bits},
        },
        "phases": [{"phase": "learning", "weight_missed_by": missed, "activation_missed_by": 0.1}] if missed else [],
        "widths": None,
        "provenance": {"command": f"python -m recipes.mixed_precision --methods {kind}", "device": "cpu"},
    }  # fmt: skip


def start(seed=0, accuracy=0.75, model="resnet20"):
    """The line of a float32 start."""
    settings = {
        "data_set": "cifar10", "model": model, "method": "float32", "epochs": 8, "batch_size": 128,
        "schedule": "onecycle", "lr": 0.1, "momentum": 0.9, "l1": 0.0, "l2": 5e-4, "buffer_bits": 4, "subset": 25_000,
        "seed": seed,
    }  # fmt: skip
    return {"settings": settings, "policy": None, "rounding": None, "accuracy": accuracy, "history": []}


def store(folder, *lines):
    """Write the lines."""
    for one in lines:
        ledger.append(folder / LEDGER, one)
