"""What may be loaded into what, by name; and what is refused without changing anything."""

import copy
import io
import os
import pickle
import re
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import adapt
from tests.reliability.earlier import FINISHED, SAVED
from tests.reliability.earlier import Run as EarlierRun
from tests.reliability.runs import Run

torch.set_num_threads(1)
PRECISION = adapt.Precision(6, 4)


def net(*sizes, init=0):
    torch.manual_seed(init)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def quantised(model, policy=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, adapt.attach(optimizer, model, policy or adapt.Fixed(PRECISION), **options)


def train(model, optimizer, steps=3):
    features = model[0].in_features if isinstance(model, nn.Sequential) else 4
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(8, features, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()


def assert_consistent(controller, model):
    """Every weight is its master rounded to nearest when evaluation looks."""
    model.eval()
    model(torch.zeros(1, 4))
    parameters = dict(model.named_parameters())
    for name, master in controller.masters.items():
        shown = parameters.get(name, parameters.get(f"_orig_mod.{name}"))
        assert torch.equal(shown, adapt.quantize(master, controller.precisions[name])), name


# Weights


def test_a_float32_checkpoint_becomes_the_masters():
    plain, model = net(4, 5, 3, init=7), net(4, 5, 3)
    optimizer, controller = quantised(model)
    train(model, optimizer)
    model.load_state_dict(plain.state_dict())
    for name, master in controller.masters.items():
        assert torch.equal(master, plain.get_parameter(name))
    assert_consistent(controller, model)
    model.train()
    train(model, optimizer, 1)
    for name, master in controller.masters.items():
        assert not torch.equal(master, plain.get_parameter(name)), "training goes on from the new masters"


def test_a_quantised_checkpoint_goes_into_the_plain_model():
    model = net(4, 5, 3)
    optimizer, controller = quantised(model)
    train(model, optimizer)
    plain = net(4, 5, 3, init=7)
    assert str(plain.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    for name, master in controller.masters.items():
        assert torch.equal(plain.get_parameter(name), adapt.quantize(master, PRECISION))


@pytest.mark.parametrize("change", ["fewer", "more", "renamed"])
def test_other_layers_follow_torchs_strictness_by_name(change):
    saved = net(4, 5, 3, init=7).state_dict()
    if change == "fewer":
        del saved["1.weight"]
    elif change == "more":
        saved["2.weight"] = torch.ones(2, 3)
    else:
        saved["head.weight"] = saved.pop("1.weight")
    model = net(4, 5, 3)
    optimizer, controller = quantised(model)
    train(model, optimizer)
    before = controller.masters["1.weight"].clone()
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        model.load_state_dict(saved)
    model.load_state_dict(saved, strict=False)
    assert torch.equal(controller.masters["0.weight"], saved["0.weight"])
    assert torch.equal(controller.masters["1.weight"], saved.get("1.weight", before))
    assert_consistent(controller, model)


@pytest.mark.parametrize("compiled", ["source", "target", "both"])
def test_precision_states_match_across_torch_compile(compiled):
    """Names carry `_orig_mod.` under torch.compile; masters and formats are named without it."""
    source, target = net(4, 5, 3), net(4, 5, 3, init=7)
    models = [
        torch.compile(model, backend="eager") if compiled in (which, "both") else model
        for model, which in ((source, "source"), (target, "target"))
    ]
    (optimizer, controller), (fresh, resumed) = (quantised(model) for model in models)
    train(source, optimizer)
    fresh.load_state_dict(optimizer.state_dict())
    assert resumed.masters.keys() == controller.masters.keys() == {"0.weight", "1.weight"}
    for name, master in controller.masters.items():
        assert torch.equal(resumed.masters[name], master)
        assert torch.equal(target.get_parameter(name), source.get_parameter(name))


def test_weights_of_a_compiled_model_become_masters():
    model = torch.compile(net(4, 5, 3), backend="eager")
    _, controller = quantised(model)
    state = torch.compile(net(4, 5, 3, init=7), backend="eager").state_dict()
    assert "_orig_mod.0.weight" in state
    model.load_state_dict(state)
    assert torch.equal(controller.masters["0.weight"], state["_orig_mod.0.weight"])


# Precision states of other networks


def test_a_precision_state_of_other_layers_is_refused_by_name():
    _, controller = quantised(net(4, 5, 3))
    _, wider = quantised(net(4, 5, 3, 2))
    state = controller.state_dict()
    with pytest.raises(ValueError, match=r"1 layers are missing \(2\.weight\)"):
        wider.load_state_dict(state)
    with pytest.raises(ValueError, match=r"1 layers are unknown \(2\.weight\)"):
        controller.load_state_dict(wider.state_dict())


@pytest.mark.parametrize("sizes", [(4, 5), (4, 5, 3, 2)])
def test_without_strict_layers_go_on_by_name(sizes):
    policy = adapt.AdaPT(lookback=(2, 4), resolution=(8, 20))
    model = net(4, 5, 3)
    optimizer, controller = quantised(model, policy)
    train(model, optimizer, 9)
    other = net(*sizes, init=7)
    other_optimizer, resumed = quantised(other, policy)
    untouched = {name: master.clone() for name, master in resumed.masters.items()}
    resumed.load_state_dict(controller.state_dict(), strict=False)
    assert resumed.step == 9
    for name, precision in resumed.precisions.items():
        if name in controller.masters:
            assert torch.equal(resumed.masters[name], controller.masters[name])
            assert precision == controller.precisions[name]
        else:
            assert torch.equal(resumed.masters[name], untouched[name])
            assert precision == policy.initial
    other.train()
    train(other, other_optimizer, 5)


def test_layers_that_changed_shape_are_refused_even_without_strict():
    _, controller = quantised(net(4, 5, 3))
    _, other = quantised(net(4, 6, 3))
    with pytest.raises(ValueError, match=r"'masters' of 0\.weight"):
        other.load_state_dict(controller.state_dict(), strict=False)


def test_a_state_of_another_policy_is_refused():
    _, controller = quantised(net(4, 5, 3))
    _, other = quantised(net(4, 5, 3), adapt.AdaPT())
    with pytest.raises(ValueError, match="policy Fixed, not by AdaPT"):
        other.load_state_dict(controller.state_dict())


# Versions


def test_a_checkpoint_of_version_1_goes_on_bit_for_bit():
    state = adapt.load(Path(__file__).parent / "checkpoints" / "version_1.pt")
    run = EarlierRun()
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    assert run.controller.step == run.controller.trace.step[-1] == SAVED
    run.done = SAVED
    outcome, expected = run.train(FINISHED).outcome(), state["expected"]
    for part in ("weights", "masters"):
        assert all(torch.equal(outcome[part][name], tensor) for name, tensor in expected[part].items()), part
    for field in ("word_length", "fraction_length", "nonzero", "resolution"):
        assert torch.equal(outcome[field], expected[field]), field
    assert len(expected["word_length"].unique()) > 3, "a run that never switches would prove little"


@pytest.mark.parametrize("version", [0, 3, "1", True, None])
def test_unknown_versions_are_refused(version):
    _, controller = quantised(net(4, 5, 3))
    with pytest.raises(ValueError, match=re.escape(f"version {version!r}, but this package reads versions up to 2")):
        controller.load_state_dict({**controller.state_dict(), "version": version})


# Files


def written(folder):
    run = Run("paper")
    for _ in range(9):
        run.advance()
    path = folder / "checkpoint"
    adapt.save(run.state(), path)
    return path


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = written(tmp_path)
    content = path.read_bytes()
    for length in {0, 1, 4, 100, len(content) // 3, len(content) // 2, len(content) - 22, len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            adapt.load(path)


def test_a_file_with_one_wrong_byte_is_refused_or_reads_the_same(tmp_path):
    path = written(tmp_path)
    content, whole = path.read_bytes(), adapt.load(path)
    with zipfile.ZipFile(path) as archive:
        places = [member.header_offset + 200 for member in archive.infolist() if member.file_size > 200]
    generator = torch.Generator().manual_seed(0)
    places += torch.randint(len(content), (60,), generator=generator).tolist()
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = adapt.load(path)
        except ValueError:
            refused += 1
        else:  # bytes between the parts, such as names and dates in headers, mean nothing
            torch.testing.assert_close(found["model"], whole["model"], rtol=0, atol=0)
            assert fingerprint(found) == fingerprint(whole)
    assert refused > len(places) // 3


class Mischief:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"optimizer": Mischief()}))
    else:
        torch.save({"optimizer": Mischief()}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        adapt.load(path)
    assert not (tmp_path / "hacked").exists()


def test_what_is_in_the_way_is_named_and_no_advice_to_trust_the_file_given(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(
        ValueError, match=r"it holds a torch\.nn\.modules\.linear\.Linear, which only a pickle could .*e$"
    ):
        adapt.load(path)
    with pytest.raises(TypeError, match=r"nothing was saved \(it holds a torch\.nn\..*Linear, .*\): save state_dict"):
        adapt.save({"model": torch.nn.Linear(2, 2)}, path)


def test_packed_parts_are_refused_before_memory_is_taken(tmp_path):
    path = written(tmp_path)
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(ValueError, match="packed"):
        adapt.load(bomb)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "checkpoint"
    adapt.save({"epoch": 1}, path)
    for value in (net(2, 2), lambda: 1):
        with pytest.raises(TypeError, match="nothing was saved"):
            adapt.save({"model": value}, path)
    assert adapt.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: create the folder of checkpoint first"):
        adapt.save({}, tmp_path / "nowhere" / "checkpoint")
    with pytest.raises(FileNotFoundError):
        adapt.load(tmp_path / "nowhere")


# Broken states


def fingerprint(value):
    """The bytes of a tree of plain values."""
    if isinstance(value, dict):
        return {key: fingerprint(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(part) for part in value]
    return (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) if torch.is_tensor(value) else repr(value)


def everything(run):
    """All that a refused load must leave as it is."""
    gradients = [p.grad for p in run.model.parameters()]
    return fingerprint([run.optimizer.state_dict(), dict(run.model.named_parameters()).keys(), run.digest(), gradients])


def leaves(tree, path=()):
    """The path of every node of a tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in items:
        yield from leaves(part, (*path, key))


JUNK = [
    None,
    -1,
    2**70,
    0.5,
    float("nan"),
    "x",
    b"x",
    [],
    {},
    [1, 2],
    {"a": 1},
    [[99, 0]],
    torch.zeros(0),
    torch.zeros(2, 2, dtype=torch.int64),
    torch.tensor(float("nan")),
    torch.eye(3).to_sparse(),
]
BROKEN = {}


def broken_run(setting):
    """A run between two micro-batches, made once, and its state."""
    if setting not in BROKEN:
        run = Run(setting)
        for _ in range(17):
            run.advance()
        BROKEN[setting] = run, run.optimizer.state_dict(), everything(run)
    return BROKEN[setting]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), setting=st.sampled_from(["paper", "algorithm 4", "biases"]))
def test_a_state_with_a_broken_part_is_refused_and_nothing_changes(data, setting):
    run, good, before = broken_run(setting)
    state = copy.deepcopy(good)
    path = data.draw(st.sampled_from([p for p in leaves(state) if p and p[0] == "adapt"]))
    place = state
    for key in path[:-1]:
        place = place[key]
    junk = data.draw(st.sampled_from(["delete", *JUNK]))
    if isinstance(junk, str) and junk == "delete":
        del place[path[-1]]
    else:
        place[path[-1]] = copy.deepcopy(junk)
    try:
        run.optimizer.load_state_dict(state)
    except (ValueError, TypeError):
        assert everything(run) == before, path
    else:
        # What was replaced did not matter, or was as good as what was there. Training must go on from it.
        BROKEN.pop(setting)
        for _ in range(4):
            run.advance()
        for name, precision in run.controller.precisions.items():
            weight = run.model.get_parameter(name)
            assert torch.equal(weight, adapt.quantize(weight, precision)), name


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param({"state": {}, "param_groups": []}, id="no groups"),
        pytest.param({"param_groups": [{"params": [0]}]}, id="no state"),
        pytest.param({"state": {}, "param_groups": [{"params": [0]}]}, id="another network"),
        pytest.param({"state": {}, "param_groups": [3]}, id="nonsense"),
    ],
)
def test_an_optimizers_state_that_torch_refuses_changes_nothing(foreign):
    run = Run("paper")
    for _ in range(5):
        run.advance()
    later = Run("paper")
    for _ in range(12):
        later.advance()
    before = everything(run)
    with pytest.raises((ValueError, KeyError, TypeError)):
        run.optimizer.load_state_dict({**foreign, "adapt": later.controller.state_dict()})
    assert everything(run) == before


def test_a_damaged_trace_is_refused():
    run = Run("paper")
    run.advance()
    state = run.controller.state_dict()
    file = io.BytesIO()
    torch.save({"trace": Mischief()}, file)
    for trace in (b"", b"junk", state["trace"][:-10], file.getvalue()):
        with pytest.raises(ValueError, match=r"precision state is damaged|must hold exactly"):
            run.controller.load_state_dict({**state, "trace": trace})
