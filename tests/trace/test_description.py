"""What made a run: in the trace, its file, a checkpoint and the report, as it is now."""

import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adapt
from adapt.engine import persistence
from adapt.learned import Budget, Phases
from adapt.report import table
from adapt.switching import from_dict
from adapt.trace import Trace, archive
from adapt.trace.description import packed, plain, unpacked

POLICIES = [
    adapt.AdaPT(lookback=(2, 4)),
    adapt.AdaPT.compact(bits=4),
    adapt.MuPPET(steps_per_epoch=3),
    adapt.Fixed(adapt.Precision(8, 4)),
    adapt.CyclicPrecision(96),
]
OPTIONS = {"rounding": "nearest", "l1": 1e-4, "l2": 1e-3, "seed": 7}


def attached(policy, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, adapt.attach(optimizer, model, policy, **options)


def step(model, optimizer, controller):
    loss = model(torch.ones(2, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    controller.observe(loss)
    optimizer.step()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_trace_names_policy_options_and_release(policy, tmp_path):
    model, optimizer, controller = attached(policy, **OPTIONS)
    step(model, optimizer, controller)
    controller.trace.save(tmp_path / "trace.npz")
    run = Trace.load(tmp_path / "trace.npz").run
    assert run == controller.trace.run == json.loads(json.dumps(run))
    assert run["adapt"] == adapt.__version__
    assert from_dict(run["policy"]) == policy
    assert {name: run[name] for name in OPTIONS} == OPTIONS
    assert run["layers"] == "adapt.layers.choice.is_matrix"


def test_a_checkpoint_holds_it_and_the_run_that_goes_on_describes_itself():
    model, optimizer, controller = attached(POLICIES[0], **OPTIONS)
    step(model, optimizer, controller)
    saved = optimizer.state_dict()
    assert Trace.from_state_dict(persistence.from_bytes(saved["adapt"]["trace"])).run == controller.trace.run
    changed = adapt.AdaPT(lookback=(2, 4), buffer_bits=6)
    _, optimizer, resumed = attached(changed)
    optimizer.load_state_dict(saved)
    # Rounding and seed come with the state, the policy and the penalties from those who attached.
    expected = {**controller.trace.run, "policy": adapt.switching.to_dict(changed), "l1": 0.0, "l2": 0.0}
    assert resumed.trace.run == expected


def test_another_policy_takes_the_place_of_the_first():
    *_, controller = attached(POLICIES[0])
    controller.policy = changed = adapt.AdaPT(lookback=(2, 4), kl_tolerance=0.5)
    assert from_dict(controller.trace.run["policy"]) == changed


def test_a_run_of_learned_widths_names_its_budgets():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = adapt.learned.attach(optimizer, model, weight_budget=Budget(bits=4), phases=Phases(1, 2, 1))
    run = learner.trace.run
    assert run["plan"] == "LearnedWidths"
    assert run["weight_budget"] == {"kilobytes": None, "bits": 4}
    assert run["phases"] == {"pretraining": 1, "learning": 2, "finetuning": 1}
    assert run == json.loads(json.dumps(run))


def test_reordering_keeps_it():
    trace = Trace(["a", "b"], [1, 2])
    trace.run = {"adapt": "0.1"}
    assert trace.reordered(["b", "a"]).run == trace.run


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_plain_data_come_back_from_the_archive(run):
    assert plain(run) == run
    pieces = packed(run)
    assert all(0 < len(piece) <= archive.LONGEST_TEXT for piece in pieces)
    assert unpacked(pieces) == run


def test_a_long_description_is_saved_whole(tmp_path):
    trace = Trace(["a"], [1])
    trace.run = {"note": "é\x00" * 5000}
    trace.save(tmp_path / "trace.npz")
    assert Trace.load(tmp_path / "trace.npz").run == trace.run


@pytest.mark.parametrize(
    ("pieces", "message"),
    [(["{"], "not readable"), ([], "not readable"), (["[" * 1000] * 200, "not readable"), (["[1]"], "named values")],
)
def test_a_damaged_description_is_refused(pieces, message):
    trace = Trace(["a"], [1])
    with pytest.raises(ValueError, match=f"the settings of the run.*{message}"):
        Trace.from_state_dict(trace.state_dict() | {"run.json": pieces})


class TestReport:
    def test_the_table_ends_with_it(self):
        model, optimizer, controller = attached(adapt.AdaPT.compact(bits=4), **OPTIONS)
        step(model, optimizer, controller)
        text = " ".join(table(controller.trace).split())
        assert f"made by adapt {adapt.__version__}, policy (name AdaPT, initial None, buffer_bits 0, " in text
        assert "lookback [2, 128]" in text
        assert "l1 0.0001, l2 0.001, rounding nearest, seed 7" in text

    def test_a_trace_that_does_not_say_ends_as_before(self):
        trace = Trace(["a"], [1])
        trace.append(1, word_length=8, fraction_length=4, nonzero=1.0)
        assert "made by" not in table(trace)

    def test_what_a_terminal_might_act_upon_is_left_out(self):
        trace = Trace(["a"], [1])
        trace.append(1, word_length=8, fraction_length=4, nonzero=1.0)
        trace.run = {"\x1b[2J": "\x1b]0;title\x07"}
        assert "made by          ?[2J ?]0;title?" in table(trace)
