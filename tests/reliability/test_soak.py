"""Long runs: memory stays flat, and the weights stay the rounded masters.

What grows with a run is its trace: BYTES_PER_ROW for each layer and step, and half as much room ahead of it.
"""

import gc
import tracemalloc

import pytest
import torch
from torch import nn

import adapt
from adapt.switching import algorithm2

torch.set_num_threads(1)

BYTES_PER_ROW = 24
SLACK = 2**19
"""Bytes that a run may hold more at its end than after its warm-up, trace aside, however many steps it takes."""


@pytest.fixture
def switches(monkeypatch):
    """One entry for each switch of a layer: every one asks for the lowest precision."""
    seen, original = [], algorithm2.lowest_precision

    def counted(*arguments, **options):
        seen.append(None)
        return original(*arguments, **options)

    monkeypatch.setattr(algorithm2, "lowest_precision", counted)
    return seen


def soak(steps, checked_every):
    """Train a small net with a switch every 25 to 100 gradients and look after it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    # Algorithm 4 aside, this is everything that allocates: switches, biases with formats of their own, penalties.
    controller = adapt.attach(optimizer, model, adapt.AdaPT(), l1=1e-5, l2=1e-4, quantize_biases=True, seed=1)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(1024, 8, generator=generator)
    targets = (inputs[:, :3] + torch.randn(1024, 3, generator=generator) / 2).argmax(1)
    warm_up = steps // 4
    start = growth = 0
    drifted = []
    for step in range(1, steps + 1):
        chosen = torch.randint(1024, (16,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
        loss.backward()
        controller.observe(loss)
        optimizer.step()
        if step % checked_every == 0:
            drifted += [f"{name} at step {step}" for name in drift(model, controller)]
        if step == warm_up:
            gc.collect()
            tracemalloc.start()
            start = held()
    gc.collect()
    growth = held() - start
    rows = steps - warm_up
    tracemalloc.stop()
    return controller, drifted, growth - 1.5 * BYTES_PER_ROW * rows * len(controller.trace.layers)


def held():
    """Bytes that Python and NumPy hold, and those of every tensor that is alive."""
    kinds = (torch.Tensor, nn.Parameter)
    alive = [o for o in gc.get_objects() if type(o) in kinds and o.layout == torch.strided]
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    return tracemalloc.get_traced_memory()[0] + sum(tensors.values())


def drift(model, controller):
    """The layers whose weights are not their masters rounded with the key of this step, in either view."""
    masters = controller.all_masters[0]
    wrong = []
    for index, (name, master) in enumerate(controller.masters.items()):
        precision, weight = controller.precisions[name], model.get_parameter(name)
        if not torch.equal(weight, masters.view_of(index, "training")):
            wrong.append(f"{name} is not Q(master)")
        if ((weight - master).abs() > precision.step)[inside(master, precision)].any():
            wrong.append(f"{name} is further than a step from its master")
    with controller.evaluation_weights():
        for name, master in controller.masters.items():
            if not torch.equal(model.get_parameter(name), adapt.quantize(master, controller.precisions[name])):
                wrong.append(f"{name} is not its master rounded to nearest")
    return wrong


def inside(master, precision):
    return (master >= precision.minimum) & (master <= precision.maximum)


def assert_sound(steps, controller, drifted, growth, switches):
    assert drifted == []
    assert growth < SLACK, f"{growth / 2**20:.1f} MiB more than the trace accounts for"
    trace = controller.trace
    assert len(trace) == steps
    assert steps / 100 - 1 <= switches / len(trace.layers) <= steps / 25, (
        "a layer should switch every 25 to 100 gradients"
    )
    assert all(master.isfinite().all() for master in controller.masters.values())


@pytest.mark.filterwarnings("ignore:every quantised weight")
def test_memory_is_flat_and_weights_follow_their_masters_for_600_steps(switches):
    controller, drifted, growth = soak(600, checked_every=50)
    assert_sound(600, controller, drifted, growth, len(switches))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore:every quantised weight")
def test_memory_is_flat_and_weights_follow_their_masters_for_20000_steps(switches):
    controller, drifted, growth = soak(20_000, checked_every=100)
    print(f"{growth / 2**10:.0f} KiB more than the trace accounts for")
    assert_sound(20_000, controller, drifted, growth, len(switches))
