"""The real controller against a literal algorithm 1 that stores its gradients: every format and every bit."""

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from tests.references.algorithm1 import Algorithm1

# A power of two, so that the product with it is exact and it does not matter whether the update fuses it with the sum.
LEARNING_RATE = 2.0**-5


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batches(steps):
    generator = torch.Generator().manual_seed(5)
    rule = torch.randn(4, 3, generator=generator)
    for _ in range(steps):
        inputs = torch.randn(6, 4, generator=generator)
        yield inputs, (inputs @ rule + torch.randn(6, 3, generator=generator) / 2).argmax(dim=1)


def forward_backward(net, inputs, targets):
    net.zero_grad()
    loss = nn.functional.cross_entropy(net(inputs), targets)
    loss.backward()
    return loss.detach()


def array(tensor):
    return tensor.detach().numpy().copy()


SETTINGS = {
    "the paper's rules": ({}, {}),
    "nearest": ({}, {"rounding": "nearest"}),
    "momentum and penalties": ({"buffer_bits": 8}, {"momentum": 0.9, "l1": 1e-3, "l2": 1e-2, "seed": 7}),
    "gradients as they are": ({"normalize_gradients": False, "lookback": (2, 9)}, {"l1": 1e-4}),
    "quantised gradients": ({"quantize_gradients": True, "lookback_momentum": 0.6}, {"seed": -1}),
    "algorithm 4": ({"push_up": "diversity", "lookback": (6, 12)}, {"momentum": 0.5}),
    "compact": (
        {"initial": None, "push_up": "loss", "normalize_gradients": False, "loss_tolerance": 1e-4},
        {"momentum": 0.5, "l1": 1e-3, "l2": 1e-2, "rounding": "nearest"},
    ),
    "compact within a budget": (
        {"initial": None, "push_up": "loss", "normalize_gradients": False, "bits": 4.5, "lookback": (1, 8)},
        {"momentum": 0.9, "rounding": "nearest"},
    ),
    "loose tolerance": ({"initial": None, "kl_tolerance": 0.3, "buffer_bits": 0, "resolution": (5, 9)}, {"l2": 1e-3}),
    "equal histograms": ({"kl_tolerance": 0.0, "lookback": (7, 7), "lookback_momentum": 1.0}, {}),
}


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        *((setting, 300 if setting.startswith("compact") else 120) for setting in SETTINGS),  # compact() switches less
        *(pytest.param(s, 300, marks=pytest.mark.long) for s in SETTINGS if not s.startswith("compact")),
    ],
)
def test_controller_equals_literal_algorithm_bit_for_bit(setting, steps):
    hyperparameters, options = SETTINGS[setting]
    policy = adapt.AdaPT(**({"lookback": (4, 16), "resolution": (8, 20)} | hyperparameters))
    net, twin_net = make_net(), make_net()
    twin = Algorithm1({n: array(p) for n, p in twin_net.named_parameters()}, policy, lr=LEARNING_RATE, **options)
    momentum = options.get("momentum", 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=momentum)
    controller = adapt.attach(optimizer, net, policy, **{k: v for k, v in options.items() if k != "momentum"})

    for inputs, targets in batches(steps):
        controller.observe(forward_backward(net, inputs, targets))
        optimizer.step()

        with torch.no_grad():
            for name, parameter in twin_net.named_parameters():
                parameter.copy_(torch.from_numpy(twin.shown[name]))
        loss = float(forward_backward(twin_net, inputs, targets))
        twin.step(loss, {name: array(p.grad) for name, p in twin_net.named_parameters()})

        formats = {n: (p.word_length, p.fraction_length) for n, p in controller.precisions.items()}
        assert formats == {layer.name: layer.precision for layer in twin.layers}, twin.step_number
        for name, parameter in net.named_parameters():
            np.testing.assert_array_equal(array(parameter), twin.shown[name], err_msg=f"{name} {twin.step_number}")
        for name, master in controller.masters.items():
            np.testing.assert_array_equal(array(master), twin.masters[name], err_msg=f"{name} {twin.step_number}")

    trace = controller.trace
    np.testing.assert_array_equal(trace.step, np.arange(1, steps + 1))
    for field in ("lookback", "resolution", "diversity"):
        expected = [getattr(layer, field) for layer in twin.layers]
        np.testing.assert_allclose(getattr(trace, field)[-1], expected, rtol=1e-6)
    expected = [np.count_nonzero(twin.shown[layer.name]) / twin.shown[layer.name].size for layer in twin.layers]
    np.testing.assert_allclose(trace.nonzero[-1], expected, rtol=1e-6)
    # A comparison of formats that never move would prove nothing.
    assert twin.switches > 20
    assert trace.switches().sum() > 5
