import json

import pytest

import adapt
from recipes.common import methods
from recipes.common.classification import ClassifierSettings, recommended
from recipes.common.methods import METHODS, buffer_bits, description, signature


def policy(name, bits=4):
    return METHODS[name].policy(bits, 7)


def test_every_method_can_be_run_with_its_own_rates():
    for name in METHODS:
        for model in ("resnet20", "alexnet", "lenet5"):
            settings = ClassifierSettings(
                data_set="cifar10", model=model, method=name, epochs=1, batch_size=128, **recommended(model, name)
            )
            assert settings.lr > 0


def test_ablations_differ_from_adapt_in_what_their_name_says():
    base = description(policy("adapt", 8))
    assert base == description(adapt.AdaPT(buffer_bits=8))
    for name, changes in {
        "adapt-algorithm4": {"push_up": "diversity"},
        "adapt-unnormalized": {"normalize_gradients": False},
        "adapt-unpenalized": {},
        "adapt-nearest": {},
        "adapt-tolerance-0": {"kl_tolerance": 0.0},
        "adapt-tolerance-0.1": {"kl_tolerance": 0.1},
        "adapt-tolerance-1": {"kl_tolerance": 1.0},
    }.items():
        assert description(policy(name, 8)) == base | changes, name
        assert METHODS[name].rounding == ("nearest" if name == "adapt-nearest" else "stochastic")
    rates = {name: METHODS[name].rates("resnet20") for name in METHODS}
    assert rates["adapt-unpenalized"] == rates["adapt"] | {"l1": 0.0, "l2": 0.0}
    assert rates["adapt-unnormalized"] == rates["float32"] | {"l1": rates["adapt"]["l1"]}


def test_muppet_learns_how_long_an_epoch_is():
    assert description(policy("muppet")) == description(adapt.MuPPET(steps_per_epoch=7))


def test_compact_is_the_preset_rounded_as_it_is_evaluated():
    assert policy("compact") == policy("compact", 8) == adapt.AdaPT.compact()
    assert METHODS["compact"].rounding == "nearest"


def test_methods_that_normalise_have_rates_of_their_own():
    for name in METHODS:
        chosen = policy(name)
        normalizes = chosen is not None and chosen.normalize_gradients
        assert (METHODS[name].rates("resnet20")["lr"] == METHODS["adapt"].rates("resnet20")["lr"]) == normalizes, name


def test_buffer_bits_are_the_papers():
    assert [buffer_bits("resnet20", "cifar10"), buffer_bits("alexnet", "cifar10")] == [8, 4]
    assert [buffer_bits("resnet20", "cifar100"), buffer_bits("alexnet", "cifar100")] == [8, 8]


def test_a_description_names_every_hyperparameter_in_json():
    assert description(None) is None
    described = description(policy("fixed8"))
    assert described["name"] == "Fixed"
    assert described["precision"] == {"word_length": 8, "fraction_length": 6}
    for name in METHODS:
        described = description(policy(name))
        assert json.loads(json.dumps(described)) == described


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of float32, .* got 'adapt9'"):
        methods.method("adapt9")


def test_a_signature_names_what_differs_from_the_defaults():
    assert signature(None) is None
    assert signature(adapt.AdaPT()) == {"name": "AdaPT"}
    assert signature(adapt.AdaPT(lookback=(5, 9))) == {"name": "AdaPT", "lookback": [5, 9]}
    assert signature(policy("fixed8")) == {"name": "Fixed", "precision": {"word_length": 8, "fraction_length": 6}}
    signatures = [json.dumps(signature(policy(name))) for name in METHODS if not name.startswith("fixed")]
    # float32 apart, these three differ in rounding and rates alone.
    assert len(set(signatures)) == len(signatures) - len({"adapt-unpenalized", "adapt-nearest"})
