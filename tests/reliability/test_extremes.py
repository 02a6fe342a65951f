"""Many layers, and one that is very large: what a step takes, in time and in memory."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import adapt

ROOT = Path(__file__).parents[2]
POLICY = adapt.AdaPT(lookback=(2, 4), resolution=(20, 50))


@pytest.mark.long
def test_ten_thousand_layers():
    """Formats of all of them move, and a step costs well under 100 microseconds per layer."""
    layers = 10_000
    parameters = {f"layer{i}": nn.Parameter(torch.randn(4, 4)) for i in range(layers)}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-3)
    controller = adapt.attach(optimizer, parameters, POLICY)
    started = time.perf_counter()
    for step in range(20):
        for parameter in parameters.values():
            parameter.grad = torch.randn(4, 4)
        controller.observe(1 / (step + 1))
        if step == 5:
            started = time.perf_counter()
        optimizer.step()
    per_layer = (time.perf_counter() - started) / 15 / layers
    print(f"{per_layer * 1e6:.0f} µs per layer and step, switches included")
    trace = controller.trace
    assert trace.word_length.shape == (20, layers)
    assert trace.switches().any(axis=0).mean() > 0.9
    assert per_layer < 1e-3
    for (name, parameter), precision in zip(parameters.items(), controller.precisions.values(), strict=True):
        assert torch.equal(parameter, adapt.quantize(parameter, precision)), name


def measure_large(elements):
    """Train one layer of so many weights to its first switches; print seconds and GiB."""

    def report(what, started):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {time.perf_counter() - started:.1f} s, peak {peak:.1f} GiB", flush=True)

    started = time.perf_counter()
    weight = nn.Parameter(torch.empty(1000, elements // 1000).normal_(std=0.02))
    weight.grad = torch.empty_like(weight).normal_()
    report("weight and gradient", started)
    optimizer = torch.optim.SGD([weight], lr=1e-3, foreach=False)
    started = time.perf_counter()
    controller = adapt.attach(optimizer, {"weight": weight}, POLICY, l1=1e-6)
    report("attach", started)
    before = None
    for step in range(5):
        controller.observe(1.0)
        started = time.perf_counter()
        optimizer.step()
        report(f"step {step + 1} ({controller.precisions['weight']})", started)
        before = before or controller.precisions["weight"]
    assert len(set(controller.trace.word_length[:, 0].tolist())) > 1, "no switch happened"
    piece = weight.detach()[-1]
    assert torch.equal(piece, adapt.quantize(piece, controller.precisions["weight"]))
    assert controller.masters["weight"].isfinite().all()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_layer_of_five_hundred_million_weights():
    """Needs some 16 GiB, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.reliability.test_extremes import measure_large; measure_large(500_000_000)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_layer_of_a_million_weights():
    """The same on a scale for every day."""
    measure_large(1_000_000)
