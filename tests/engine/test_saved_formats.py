"""`adapt.formats`: the number formats of a run, from the run itself and from whatever it saved."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adapt
from adapt.engine import persistence
from tests.fixtures.write import FOLDER
from tests.learned import networks
from tests.training import CLIMBING, RESTLESS, assembled, train

EVERYTHING = {"quantize_biases": True, "activations": "range"}
POLICIES = {
    "paper": (RESTLESS, EVERYTHING),
    "algorithm 4": (adapt.AdaPT(lookback=(2, 4), push_up="diversity"), EVERYTHING),
    "compact": (replace(adapt.AdaPT.compact(), lookback=(2, 4)), {**EVERYTHING, "rounding": "nearest"}),
    "MuPPET": (CLIMBING, EVERYTHING),
    "fixed": (adapt.Fixed(adapt.Precision(6, 4)), EVERYTHING),
}
LEARNED = {
    "learned widths": networks.learning,
    "LSQ": lambda: networks.given(3, activation_bits=4),
    "one bit": lambda: networks.given(1, activation_bits=2),
}


def policy_run(name, steps=9):
    """A network of two layers after a few steps: model, optimizer, controller."""
    policy, options = POLICIES[name]
    model, optimizer, controller = assembled(policy=policy, **options)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


def learned_run(name, steps=9):
    """A convolutional network after a few steps: model, optimizer, learner."""
    model, optimizer, learner = LEARNED[name]()
    networks.train(model, optimizer, steps)
    return model, optimizer, learner


@pytest.fixture(scope="module", params=[*POLICIES, *LEARNED])
def run(request):
    """A run whose weights may be overwritten."""
    return (policy_run if request.param in POLICIES else learned_run)(request.param)


class TestFormatsAreThoseOfEvaluation:
    @settings(max_examples=10)
    @given(seed=st.integers(0, 2**32), exponent=st.integers(-8, 4), halves=st.booleans())
    def test_weights_and_biases_bit_for_bit(self, run, seed, exponent, halves):
        model, _, controller = run
        generator = torch.Generator().manual_seed(seed)
        values = {n: torch.randn(p.shape, generator=generator) * 2.0**exponent for n, p in model.named_parameters()}
        if halves:  # of a step: where rounding to nearest has to choose
            values = {name: (value * 8).round() / 16 for name, value in values.items()}
        model.load_state_dict(values, strict=False)
        found = adapt.formats(controller)
        rounded = 0
        with controller.evaluation_weights():
            for masters in controller.all_masters:
                for name, master, shown in zip(masters.names, masters.weights, masters.parameters, strict=True):
                    rounded += name in found
                    assert torch.equal(shown, found[name].quantize(master) if name in found else master), name
        assert rounded

    def test_inputs_of_layers(self, run):
        model, _, controller = run
        found, checked = adapt.formats(controller), []

        def look(path):
            def hook(module, args):
                if f"{path}.input" in found:
                    assert torch.equal(args[0], found[f"{path}.input"].quantize(args[0]))
                    checked.append(path)

            return hook

        handles = [part.register_forward_pre_hook(look(path)) for path, part in model.named_modules()]
        model.eval()
        model(networks.pictures(3)[0] if isinstance(model, networks.Convolutional) else torch.randn(5, 6))
        model.train()
        for handle in handles:
            handle.remove()
        assert set(checked) == {name.removesuffix(".input") for name in found if name.endswith(".input")}
        assert checked

    def test_steps_words_and_values_belong_together(self, run):
        _, _, controller = run
        for name, form in adapt.formats(controller).items():
            shape = () if form.axis is None else (form.word_length.size,)
            assert {form.word_length.shape, form.step.shape, form.minimum.shape, form.signed.shape} == {shape}, name


def test_per_tensor_and_per_channel_are_both_seen():
    axes = {form.axis for name in LEARNED for form in adapt.formats(learned_run(name, 1)[2]).values()}
    assert {None, 0, 1} <= axes


def test_names_of_weights_biases_and_activations():
    weights_and_biases = {f"{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    found = adapt.formats(policy_run("paper")[2])
    assert found.keys() == weights_and_biases | {f"{layer}.{kind}" for layer in (0, 2) for kind in ("input", "output")}
    _, _, weights_only = assembled()
    assert adapt.formats(weights_only).keys() == {"0.weight", "2.weight"}


def test_fixed_point_is_what_precisions_says():
    _, _, controller = policy_run("paper")
    for name, precision in controller.precisions.items():
        form = adapt.formats(controller)[name]
        assert (form.word_length, form.fraction_length) == (precision.word_length, precision.fraction_length)


def test_float32_is_not_among_them():
    _, _, controller = policy_run("MuPPET", 60)
    assert set(controller.precisions.values()) == {None}
    assert not adapt.formats(controller).keys() & controller.masters.keys()


class TestSources:
    def test_all_give_the_same(self, run, tmp_path):
        model, optimizer, controller = run
        expected = dict(controller.formats)
        assert expected
        state = optimizer.state_dict()
        nested = {"model": model.state_dict(), "epochs": [{"optimizers": (state,)}], "epoch": 3}
        adapt.save(nested, tmp_path / "ours.pt")
        torch.save(nested, tmp_path / "torchs.pt")
        sources = [controller, optimizer, state, controller.state_dict(), nested]
        for source in [*sources, tmp_path / "ours.pt", str(tmp_path / "torchs.pt")]:
            assert adapt.formats(source) == expected

    def test_a_resumed_run_has_them_too(self, run):
        _, optimizer, controller = run
        expected = dict(controller.formats)
        optimizer.load_state_dict(optimizer.state_dict())
        assert adapt.formats(controller) == expected


@pytest.mark.parametrize("name", ["paper", "MuPPET", "learned widths"])
def test_a_checkpoint_keeps_the_formats_of_its_own_moment(name, tmp_path):
    model, optimizer, controller = (policy_run if name in POLICIES else learned_run)(name, 4)
    best = dict(controller.formats)
    adapt.save(optimizer.state_dict(), tmp_path / "best.pt")
    if name in POLICIES:
        train(model, optimizer, 4, 4, controller)
    else:
        networks.train(model, optimizer, 26, 4)
    assert adapt.formats(tmp_path / "best.pt") == best
    assert adapt.formats(controller) != best


WITHOUT_FORMATS = sorted(path for path in FOLDER.glob("*/*.pt") if path.parent.name in ("6b5b73b", "512b48e"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("dafa9c3/*.pt")), ids=lambda path: path.stem)
def test_checkpoints_of_earlier_versions_that_saved_formats_show_them(path):
    assert adapt.formats(path)


class TestRefusals:
    @pytest.mark.parametrize("path", WITHOUT_FORMATS, ids=lambda path: f"{path.parent.name}-{path.stem}")
    def test_checkpoints_of_versions_that_did_not_save_formats(self, path):
        with pytest.raises(ValueError, match=rf"{path.name} was saved by a version of adapt that did not .* resume"):
            adapt.formats(path)

    def test_what_was_saved_without_a_controller(self, tmp_path):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="optimizer without a controller: attach one"):
            adapt.formats(optimizer)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "plain.pt")
        for source in (tmp_path / "plain.pt", {}, optimizer.state_dict()):
            with pytest.raises(ValueError, match="holds no formats: it was saved without a controller"):
                adapt.formats(source)

    @pytest.mark.parametrize("source", [None, 3, [], torch.ones(2)])
    def test_other_kinds_of_sources(self, source):
        with pytest.raises(TypeError, match="source must be a controller, an optimizer, its state_dict"):
            adapt.formats(source)

    def test_two_runs_that_disagree(self):
        (_, first, _), (_, second, _) = policy_run("fixed"), policy_run("paper")
        with pytest.raises(ValueError, match=r"two formats of .*: pass the state of one optimizer"):
            adapt.formats({"first": first.state_dict(), "second": second.state_dict()})
        assert adapt.formats({"a": first.state_dict(), "b": first.state_dict()}) == adapt.formats(first)

    def test_files_that_are_no_checkpoints(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            adapt.formats(tmp_path / "nowhere.pt")
        (tmp_path / "text.pt").write_text("formats")
        with pytest.raises(ValueError, match=r"text.pt is not a readable checkpoint"):
            adapt.formats(tmp_path / "text.pt")


class Mischief:
    def __reduce__(self):
        return os.system, ("touch hacked",)


class TestHostileContent:
    @pytest.fixture(autouse=True)
    def _nothing_is_executed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        yield
        assert not Path("hacked").exists()

    @pytest.fixture
    def state(self):
        return policy_run("fixed")[1].state_dict()

    def test_a_pickle_in_the_file(self, state):
        torch.save({"optimizer": state, "extra": Mischief()}, "checkpoint.pt")
        with pytest.raises(ValueError, match="only a pickle could restore"):
            adapt.formats("checkpoint.pt")

    def test_a_pickle_in_the_formats(self, state):
        for content in (persistence.to_bytes(Mischief()), pickle.dumps(Mischief(), protocol=2), b"formats"):
            state["adapt"][persistence.FORMATS] = content
            with pytest.raises(ValueError, match="the precision state is damaged"):
                adapt.formats(state)

    @pytest.mark.parametrize(
        "change",
        [
            {"word_length": 0},
            {"word_length": 10**30},
            {"word_length": "eight"},
            {"word_length": [8, 8]},
            {"step": float("nan")},
            {"step": -1.0},
            {"step": 0.1},
            {"signed": 1},
            {"low": -1000},
            {"high": 2.5},
            {"axis": -1},
            {"axis": "0"},
            {"groups": True},
            {"shape": 3},
            {"step": [[[]]]},
            {1: 2},
        ],
        ids=str,
    )
    def test_a_format_that_makes_no_sense(self, state, change):
        packed = persistence.pack_formats(adapt.formats(state))
        packed["0.weight"] |= change
        state["adapt"][persistence.FORMATS] = persistence.to_bytes(packed)
        with pytest.raises(ValueError, match="format"):
            adapt.formats(state)

    @pytest.mark.parametrize("packed", [None, 3, [], {"0.weight": None}, {0: {}}, {"0.weight": {}}], ids=str)
    def test_no_formats_where_they_should_be(self, state, packed):
        with pytest.raises(ValueError, match="format"):
            adapt.formats({"adapt_formats": packed})
        state["adapt"][persistence.FORMATS] = persistence.to_bytes(packed)
        with pytest.raises(ValueError, match="format"):
            adapt.formats(state)

    def test_containers_without_end(self, state):
        endless = [state]
        endless.append(endless)
        assert adapt.formats({"endless": endless}) == adapt.formats(state)
        deep = [state]
        for _ in range(20_000):
            deep = [deep]
        assert adapt.formats({"deep": deep}) == adapt.formats(state)
