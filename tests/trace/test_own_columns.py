"""A policy with a column of its own, from its decisions to the trace, the checkpoint, the loggers and the report."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.switching.policy import Observation, State
from adapt.trace import Column, Trace


@dataclass(frozen=True)
class CountingState(State):
    steps: int
    largest: np.ndarray


@dataclass(frozen=True)
class Counting:
    """Cycles through word lengths and records the largest gradient norm of each layer so far."""

    period: int = 3

    normalize_gradients = False
    quantize_gradients = False
    sums_gradients = False
    samples_gradients = False
    keeps_gradients = False
    uses_loss = False
    columns = {"largest_norm": Column(np.float32, 0, np.inf, float32=0, default=0, doc="largest ‖G‖₂ so far")}  # noqa: RUF012

    def start(self, weights):
        layers = len(weights)
        return CountingState((adapt.Precision(8, 6),) * layers, np.zeros(layers, np.int64), 0, np.zeros(layers))

    def patience(self, state):
        return self.period - 1 - state.steps % self.period

    def advance(self, state, observation: Observation):
        steps = state.steps + 1
        formats = (adapt.Precision(8 + steps // self.period % 3, 6),) * len(state.formats)
        largest = np.maximum(state.largest, np.where(observation.seen, observation.norms, 0))
        return dataclasses.replace(state, formats=formats, steps=steps, largest=largest)

    def record(self, state):
        return {"largest_norm": state.largest}


class Silent(Counting):
    """The same policy before it had the column."""

    columns = {}  # noqa: RUF012

    def record(self, state):
        return {}


def begin(policy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, optimizer, adapt.attach(optimizer, model, policy)


def train(model, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(5, 3, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.fixture
def trace():
    model, optimizer, controller = begin(Counting())
    train(model, optimizer, 0, 10)
    return controller.trace


def test_the_trace_has_it(trace, tmp_path):
    assert [*trace.own_columns] == ["largest_norm"]
    assert trace["largest_norm"].shape == (10, 2)
    assert (np.diff(trace["largest_norm"], axis=0) >= 0).all()
    assert (trace["largest_norm"] > 0).all()
    trace.save(tmp_path / "trace.npz")
    assert np.array_equal(Trace.load(tmp_path / "trace.npz")["largest_norm"], trace["largest_norm"])


def test_a_resumed_run_goes_on_with_it(trace, tmp_path):
    model, optimizer, _ = begin(Counting())
    train(model, optimizer, 0, 4)
    adapt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    state = adapt.load(tmp_path / "run.pt")
    model, optimizer, controller = begin(Counting())
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(model, optimizer, 4, 10)
    assert np.array_equal(controller.trace["largest_norm"], trace["largest_norm"])


def test_a_run_from_before_the_column_goes_on_with_it(trace):
    model, optimizer, controller = begin(Silent())
    train(model, optimizer, 0, 4)
    assert not controller.trace.own_columns
    weights, state = model.state_dict(), optimizer.state_dict()
    state["adapt"]["policy"] = "Counting"
    model, optimizer, controller = begin(Counting())
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, 4, 10)
    assert not controller.trace["largest_norm"][:4].any()
    assert np.array_equal(controller.trace["largest_norm"][4:], trace["largest_norm"][4:])


def test_a_run_goes_on_by_a_policy_with_a_column():
    model, optimizer, controller = begin(Silent())
    train(model, optimizer, 0, 4)
    state = optimizer.state_dict()["adapt"]
    model, optimizer, controller = begin(Counting())
    controller.load_state_dict(state | {"policy": "Counting"})
    assert controller.step == 4
    state["policy"], state["state"]["novelty"] = "Counting", 1
    with pytest.raises(
        ValueError, match=rf"holds 'novelty', .* load it with adapt {adapt.__version__}, which wrote it"
    ):
        controller.load_state_dict(state)


def test_a_layer_that_joins_has_it():
    model, optimizer, controller = begin(Counting())
    train(model, optimizer, 0, 4)
    model.append(nn.Linear(2, 2))
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, 4, 8)
    assert controller.trace["largest_norm"].shape == (8, 3)
    assert controller.trace["largest_norm"][:4, 2].tolist() == [0] * 4
    assert (controller.trace["largest_norm"][4:, 2] > 0).all()
