"""Several processes train as one does: the same formats at the same step, the same weights."""

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import adapt
from tests.reliability.ranks import ACTIVATIONS, HALF, SETTINGS, STEPS, Processes, Training, copy_in, prune, states

torch.set_num_threads(1)

TOLERANCE = 2e-6
"""Of weights and of relative figures, where the batch is split: the mean over its parts rounds in another order."""


@pytest.fixture(scope="module", autouse=True)
def _one_backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPT_BACKEND", "torch")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def alone(folder):
    """The outcomes of one process on the combined batch."""
    return {setting: Training(setting).train(STEPS).outcome() for setting in SETTINGS}


@pytest.fixture(scope="module")
def two(folder):
    training = Training("paper").train(HALF)
    adapt.save({**states(training), "precision": training.controller.state_dict()}, folder / "whole.pt")
    return Processes(folder, 2)


@pytest.fixture(scope="module")
def four(folder):
    return Processes(folder, 4)


@pytest.fixture(scope="module")
def sharded(two):
    """How a run went on after its sharded checkpoint was saved."""
    return two["save_sharded"]


def assert_equal(found, expected, where=""):
    """Bit for bit, all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_equal(*pair, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{where}: {m}")
    else:
        assert found == expected, where


def assert_close(found, expected):
    """The same decisions at the same steps; numbers within TOLERANCE."""
    assert found["formats"] == expected["formats"]
    for part in ("masters", "momentum", "trace"):
        torch.testing.assert_close(
            {k: v for k, v in found[part].items() if torch.is_tensor(v)} if part != "momentum" else found[part],
            {k: v for k, v in expected[part].items() if torch.is_tensor(v)} if part != "momentum" else expected[part],
            rtol=TOLERANCE,
            atol=TOLERANCE,
            equal_nan=True,
        )
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=TOLERANCE, atol=TOLERANCE)


def assert_ranks_agree(results):
    for result in results[1:]:
        assert_equal(result, results[0])


def test_the_runs_switch(alone):
    """A comparison of formats that never move would prove nothing."""
    for outcome in alone.values():
        changes = [a != b for a, b in zip(outcome["formats"], outcome["formats"][1:], strict=False)]
        assert sum(changes) >= 5


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scenario", ["ddp", pytest.param("fsdp_shares", marks=pytest.mark.long)])
def test_two_processes_train_as_one_on_the_combined_batch(two, alone, scenario, setting):
    assert_ranks_agree([result[setting] for result in two[scenario]])
    assert_close(two[scenario][0][setting], alone[setting])


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS)
def test_four_processes_train_as_one_on_the_combined_batch(four, alone, setting):
    assert_ranks_agree([result[setting] for result in four["ddp"]])
    assert_close(four["ddp"][0][setting], alone[setting])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_sharded_layers_train_bit_for_bit_as_whole_ones(two, four, alone, size, setting):
    """Every process sees the whole batch, so that only the sharding differs: no tolerance."""
    for result in {2: two, 4: four}[size]["fsdp"]:
        assert_equal(result[setting], alone[setting])


def test_weights_that_are_copied_into_sharded_layers_begin_with_their_own_formats(two):
    expected = copy_in(Training("compact")).train(HALF).outcome()
    assert expected["formats"][0] != Training("compact").train(1).formats[0]
    for result in two["fsdp_copied"]:
        assert_equal(result, expected)


def test_one_rank_saves_sharded_layers_alone_after_writes_and_nothing_hangs(two):
    results = two["fsdp_saved_alone"]
    assert_equal(results[0]["saved"], results[0]["expected"])
    expected = prune(copy_in(Training("compact")).train(HALF)).train(STEPS).outcome()
    for result in results:
        assert_equal(result["outcome"], expected)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_activations_are_rounded_alike_everywhere(two, engine):
    """Errors are left out: each process's loss is the mean over its share, so its errors are larger by `shares`."""
    training = Training("paper", more=ACTIVATIONS).train(STEPS)
    first, second = (result[engine] for result in two["activations"])
    assert_equal(first, second)
    assert_close(first, training.outcome())
    alone = {n: (p.word_length, p.fraction_length) for n, p in training.controller.activation_precisions.items()}
    values = [name for name in alone if not name.endswith("error")]
    assert len(values) == 6
    assert {n: first["activations"][n] for n in values} == {n: alone[n] for n in values}


def test_one_rank_saves_alone_under_ddp_and_all_resume_from_it(two):
    for result in two["ddp_state_on_one_rank"]:
        assert_equal(result["resumed"], result["straight"])
    assert_ranks_agree(two["ddp_state_on_one_rank"])


def test_sharded_layers_show_the_view_that_the_mode_asks_for(two):
    for result in two["fsdp_views"]:
        precisions = [adapt.Precision(*form) for form in result["precisions"]]
        nearest = [adapt.quantize(m, p) for m, p in zip(result["masters"], precisions, strict=True)]
        views = result["views"]
        assert_equal(views["evaluation"], nearest)
        assert_equal(views["masters"], result["masters"])
        for name in ("training", "training again", "after masters"):
            assert_equal(views[name], result["training"])
        assert not all(map(torch.equal, nearest, result["training"])), "stochastic rounding should show"
        saved = [value for value in result["saved"].values() if value.ndim == 2]
        assert_equal(saved, nearest)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_pass_in_another_mode_between_forward_and_backward_is_as_harmless_as_that_of_a_copy(two, engine):
    results = two["passes_between"]
    assert_ranks_agree(results)
    found = {name: result for name, result in results[0].items() if name.startswith(f"{engine}, ")}
    refused = found.pop("fsdp, sum", None)
    assert len(found) == {"ddp": 16, "fsdp": 12}[engine]
    for name, result in found.items():
        for parameter, expected in result["expected"].items():
            torch.testing.assert_close(
                result["found"][parameter], expected, rtol=1e-6, atol=1e-7, msg=f"{name}: {parameter}"
            )
    assert engine == "ddp" or "call backward() on the loss of each mode by itself" in refused


def test_figures_of_sharded_layers_are_those_of_whole_ones(two):
    first, second = two["fsdp_views"]
    assert_equal(first, second)
    share = [float(t.count_nonzero() / t.numel()) for t in first["training"]]
    assert first["nonzero"] == pytest.approx(share)
    assert first["numel"] == [t.numel() for t in first["training"]]
    l1 = sum(float(m.abs().sum()) for m in first["masters"])
    words = [form[0] for form in first["precisions"]]
    expected = 1e-4 * l1 + sum(w * s for w, s in zip(words, share, strict=True)) / len(words) / 32
    assert first["penalty"] == pytest.approx(expected, rel=1e-5)


def test_a_sharded_checkpoint_goes_on_as_if_nothing_had_happened(two, sharded):
    for found, expected in zip(two["load_sharded"], sharded, strict=True):
        assert_equal(without_formats(found), without_formats(expected))


@pytest.mark.long
def test_a_sharded_checkpoint_goes_on_on_four_processes(four, sharded):
    for found in four["load_sharded"]:
        assert_equal(without_formats(found), without_formats(sharded[0]))


def test_a_sharded_checkpoint_goes_on_in_one_process(folder, sharded):
    training = Training("paper", init=1)
    state = states(training)
    dcp.load(state, checkpoint_id=folder / "sharded", no_dist=True)
    set_model_state_dict(training.model, state["model"])
    set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"])
    training.done = HALF
    assert_equal(without_formats(training.train(STEPS).outcome()), without_formats(sharded[0]))


def test_a_checkpoint_of_one_process_goes_on_sharded(two, alone):
    for found in two["load_whole"]:
        assert_equal(without_formats(found), without_formats(alone["paper"]))


def without_formats(outcome):
    """The formats are noted from the start or from the middle; the trace holds all of them."""
    return {key: value for key, value in outcome.items() if key != "formats"}


def test_taking_an_optimizers_state_before_its_first_step_is_no_step(folder):
    """torch.distributed.checkpoint makes a step of gradient zero and rate zero to create the optimizer's state."""
    training, untouched = Training("paper"), Training("paper")
    get_optimizer_state_dict(training.model, training.optimizer)
    get_model_state_dict(training.model)
    assert training.controller.step == 0
    assert len(training.controller.trace) == 0
    for found, expected in zip(training.plain.parameters(), untouched.plain.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("zero", "ZeroRedundancyOptimizer"),
        ("fsdp1", "FullyShardedDataParallel"),
        ("fsdp1 with original parameters", "FullyShardedDataParallel"),
        ("columns", "Shard(dim=1)"),
    ],
)
def test_what_cannot_be_supported_is_refused_by_name(two, engine, words):
    for errors in two["refusals"]:
        assert errors[engine].startswith("NotImplementedError")
        assert words in errors[engine]


@pytest.mark.parametrize(("package", "engine"), [("deepspeed.runtime", "DeepSpeed"), ("horovod.torch", "Horovod")])
def test_optimizers_of_other_engines_are_refused_by_name(package, engine):
    kind = type("Wrapped", (torch.optim.SGD,), {"__module__": package})
    net = torch.nn.Linear(2, 2)
    with pytest.raises(NotImplementedError, match=engine):
        adapt.attach(kind(net.parameters(), lr=0.1), net)
