"""The tracer of torch.jit would record one rounding as constants; it is refused."""

import copy
import io

import pytest
import torch
from torch import nn

import adapt
from adapt.learned import attach_lsq
from tests.training import net

INPUTS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def adaptive(**options):
    return lambda optimizer, model: adapt.attach(optimizer, model, adapt.Fixed(adapt.Precision(8, 6)), **options)


def learned(optimizer, model):
    return attach_lsq(optimizer, model, weight_bits=4)


def learned_activations(optimizer, model):
    return attach_lsq(optimizer, model, [INPUTS], weight_bits=4, activation_bits=4)


GUESTS = [adaptive(), adaptive(activations=8), adaptive(execution="bfloat16"), learned, learned_activations]
TRACERS = [
    lambda model: torch.jit.trace(model, INPUTS),
    lambda model: torch.jit.trace(lambda x: model(x) * 2, INPUTS),
    lambda model: torch.jit.trace(model[0], INPUTS),
    lambda model: torch.onnx.export(model, (INPUTS,), io.BytesIO(), dynamo=False),
]


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


def test_tensorboard_may_draw_the_graph(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    controller = adaptive()(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(model, INPUTS)
    assert any(tmp_path.iterdir())
    assert controller.is_attached
