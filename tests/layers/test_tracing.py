"""The tracer of torch.jit would record one rounding as constants; it is refused."""

import copy
import io

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import adapt
from adapt.layers import frozen_rounding
from adapt.learned import attach_aqt, attach_lsq
from tests.training import copies, net, train

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def adaptive(**options):
    return lambda optimizer, model: adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(8, 6)), **options)


def learned(optimizer, model):
    return attach_lsq(optimizer, model, weight_bits=4)


def learned_activations(optimizer, model):
    return attach_lsq(optimizer, model, [INPUTS], weight_bits=4, activation_bits=4)


def observed_activations(optimizer, model):
    return attach_aqt(optimizer, model, steps=5)


GUESTS = [
    adaptive(),
    adaptive(activations=8),
    adaptive(execution="bfloat16"),
    learned,
    learned_activations,
    observed_activations,
]
TRACERS = [
    lambda model: torch.jit.trace(model, INPUTS),
    lambda model: torch.jit.trace(lambda x: model(x) * 2, INPUTS),
    lambda model: torch.jit.trace(model[0], INPUTS),
    lambda model: torch.onnx.export(model, (INPUTS,), io.BytesIO(), dynamo=False),
]


TRANSFORMS = {
    "vmap": lambda model: torch.func.vmap(model)(INPUTS),
    "jacrev": lambda model: torch.func.jacrev(model)(INPUTS[0]),
    "jacfwd": lambda model: torch.func.jacfwd(model)(INPUTS[0]),
    "grad": lambda model: torch.func.grad(lambda x: model(x).square().sum())(INPUTS),
    "make_fx": lambda model: make_fx(model)(INPUTS)(INPUTS),
}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("attach", [adaptive(), adaptive(rounding="nearest"), learned])
def test_transforms_compute_with_the_weights_of_the_mode(attach, transform, training, steps):
    """The first pass in another mode rewrites the weights, and the passes before the first step look for writes."""
    model = net()
    controller = attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    train(model, controller.optimizer, steps)
    model.train(training)
    found = transform(model)
    model(INPUTS)
    torch.testing.assert_close(found, transform(copy.deepcopy(model)))
    train(model.train(), controller.optimizer, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("attach", [adaptive(activations=8), learned_activations, observed_activations])
def test_transforms_of_rounded_activations_are_refused_until_the_controller_is_detached(attach, transform, training):
    model = net()
    controller = attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    train(model, controller.optimizer, 2)
    model.train(training)
    with pytest.raises(NotImplementedError, match=r"make_fx cannot trace the rounding of activations.*detach\(\)"):
        transform(model)
    train(model.train(), controller.optimizer, 1)
    controller.detach(keep_activations=True)
    found, expected = transform(model), model(INPUTS)
    if found.shape == expected.shape:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attach", GUESTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracing_is_refused_and_nothing_is_lost(attach):
    model = net()
    controller = attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for training in (True, False):
        model.train(training)
        for trace in TRACERS:
            with pytest.raises(RuntimeError, match=r"attached controller cannot be traced.*call detach\(\).*adapt"):
                trace(model)
    with controller.evaluation_weights(), pytest.raises(RuntimeError, match="cannot be traced"):
        torch.jit.trace(model, INPUTS)
    with pytest.raises(AttributeError, match=r"call detach\(\) on the controller before torch\.jit\.script"):
        torch.jit.script(model)
    expected = model(INPUTS)
    assert torch.equal(model(INPUTS), expected)
    with controller.evaluation_weights():
        twin = copy.deepcopy(model)
    controller.detach()
    for plain in (model, twin):
        assert torch.equal(torch.jit.trace(plain, INPUTS)(INPUTS), plain(INPUTS))
    torch.jit.script(model)


def drawn_by_torch(model, folder):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(folder) as writer:
        writer.add_graph(model, INPUTS)


def drawn_by_lightning(model, folder):
    lightning = pytest.importorskip("lightning")
    module = lightning.LightningModule()
    module.net, module.forward = model, model.__call__
    logger = lightning.pytorch.loggers.TensorBoardLogger(folder, log_graph=True)
    logger.log_graph(module, INPUTS)
    logger.finalize("success")


@pytest.mark.covering(1)
@pytest.mark.parametrize("draw", [drawn_by_torch, drawn_by_lightning])
@pytest.mark.parametrize("attach", [*GUESTS, adaptive(activations="range", quantize_errors=True)])
def test_tensorboard_may_draw_the_graph_without_a_trace_in_training(attach, draw, tmp_path):
    """Ranges, streams of noise and what calibration met stay as they were."""
    weights = []
    for draws in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        controller = attach(optimizer, model)
        for step in range(3):
            for training in (False, True):
                model.train(training)
                if draws:
                    draw(model, tmp_path / f"{step} {training}")
                    assert any((tmp_path / f"{step} {training}").rglob("events*"))
            train(model, optimizer, 1, step)
        assert controller.is_attached
        weights.append(copies(model.named_parameters()))
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight)


@pytest.mark.parametrize("attach", [adaptive(activations="range"), learned_activations])
def test_rounding_that_stays_after_detaching_is_traced_and_drawn(attach, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = attach(optimizer, model)
    train(model, optimizer, 3)
    controller.detach(keep_activations=True)
    inputs = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(model(inputs), plain(model)(inputs))
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            traced = torch.jit.trace(model, INPUTS)
        assert torch.equal(traced(inputs), model(inputs))
        # A traced program trains as the module does, however it was traced.
        results = []
        for network in (model, traced):
            network.zero_grad()
            x = inputs.clone().requires_grad_()
            network(x).square().sum().backward()
            results.append([x.grad, *(p.grad for p in network.parameters())])
        for found, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(found, expected)
    drawn_by_torch(model, tmp_path)
    assert any(tmp_path.iterdir())


def plain(model):
    twin = copy.deepcopy(model)
    frozen_rounding.remove(twin)
    return twin
