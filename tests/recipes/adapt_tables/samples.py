"""Made-up result lines and traces."""

import numpy as np

import adapt
from recipes.adapt_tables.runs import LEDGER
from recipes.common import ledger

SIZES = (100, 300)


def line(
    method="adapt", seed=0, accuracies=(0.5, 0.6), *, data_set="cifar10", model="resnet20", policy=None, **figures
):
    """A line of a run with these accuracies after each epoch; `figures` are the performance model's."""
    settings = {
        "data_set": data_set, "model": model, "method": method, "epochs": len(accuracies), "batch_size": 128,
        "schedule": "onecycle", "lr": 0.05, "momentum": 0.9, "l1": 0.0, "l2": 0.0, "buffer_bits": 4, "subset": 25_000,
        "seed": seed,
    }  # fmt: skip
    base = {
        "training_speedup": 1.25, "inference_speedup": 2.0, "size_ratio": 0.5, "memory_ratio": 1.5,
        "mean_word_length": 16.0, "nonzero": 0.9, "run_mean_word_length": 20.0, "run_nonzero": 0.95,
    }  # fmt: skip
    return {
        "settings": settings,
        "policy": policy,
        "rounding": "stochastic",
        "accuracy": accuracies[-1],
        "performance": {
            "paper": base | figures,
            "physical": base | {"training_speedup": 1.1},
            "printed": base | {"size_ratio": 0.7, "memory_ratio": 1.7},
        },
        "layers": {
            name: {"weights": size, "operations": 10 * size} for name, size in zip(("a", "b"), SIZES, strict=True)
        },
        "history": [{"accuracy": accuracy, "training_speedup": 1.5} for accuracy in accuracies],
        "trace": None,
        "provenance": {"command": f"python -m recipes.adapt_tables {data_set}-{model} --methods {method}"},
    }


def trace(word_lengths=(8, 16), rows=20):
    """A trace in which the first half of the rows has the first word length."""
    sample = adapt.Trace(("a", "b"), SIZES)
    lengths = np.repeat(word_lengths, rows // 2)[:, None].repeat(2, 1)
    sample.append(np.arange(1, rows + 1), word_length=lengths, fraction_length=4, nonzero=0.5)
    return sample


def store(folder, *lines):
    """Write the lines, and for those that name a trace the trace."""
    for one in lines:
        ledger.append(folder / LEDGER, one)
        if one["trace"]:
            (folder / "traces").mkdir(exist_ok=True)
            trace().save(folder / one["trace"])
