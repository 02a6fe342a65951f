"""Policies as plain data and back, and the lists that configuration tools give in place of tuples."""

import copy
import json
import pickle
from collections import UserList
from dataclasses import dataclass, fields, replace
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.numerics import BlockFloat, ChannelPrecision, Format
from adapt.switching import from_dict, to_dict
from adapt.switching.adapt import Overrides
from adapt.switching.configuration import POLICIES

precisions = st.builds(adapt.Precision, st.integers(2, 32), st.integers(-126, 126))
blocks = st.builds(BlockFloat, st.integers(2, 32))
channels = st.builds(ChannelPrecision, st.integers(2, 32), st.lists(st.integers(-60, 60), min_size=1).map(tuple))
formats = st.none() | precisions | blocks | channels
bounds = st.tuples(st.integers(1, 50), st.integers(50, 10_000))
shares = st.floats(0, 1)
flags = st.booleans()
policies = st.one_of(
    st.builds(
        adapt.AdaPT, st.none() | precisions, st.integers(0, 30), bounds, bounds, shares, shares, flags, flags,
        st.sampled_from(["suggestion", "diversity"]),
    ),
    st.builds(adapt.AdaPT.compact, bits=st.floats(2, 16), lookback=bounds, channels=flags),
    st.builds(adapt.AdaPT.compact, bits=st.floats(0.1, 16), count=st.just("entropy")),
    st.builds(adapt.Fixed, precisions | st.dictionaries(st.text(), formats), flags, flags),
    st.builds(adapt.CyclicPrecision, st.integers(64, 10_000), st.tuples(st.integers(2, 4), st.integers(4, 31))),
    st.builds(adapt.MuPPET, st.none() | st.integers(1, 1000), st.just((4, 7, 31)), st.integers(2, 9)),
)  # fmt: skip


@given(policies)
def test_json_and_yaml_give_the_same_policy_back(policy):
    described = to_dict(policy)
    assert from_dict(described) == policy
    assert from_dict(json.loads(json.dumps(described, allow_nan=False))) == policy
    assert from_dict(yaml.safe_load(yaml.safe_dump(described))) == policy
    assert described["name"] == type(policy).__name__
    assert set(described) == {"name", *(field.name for field in fields(policy))}


@given(policies)
def test_copies_and_pickles_are_equal(policy):
    assert copy.deepcopy(policy) == pickle.loads(pickle.dumps(policy)) == policy


def test_a_table_of_learned_formats_comes_back_as_what_layers_train_in():
    table = {"a": Format.of(adapt.Precision(6, 3)), "b": None}
    policy = from_dict(to_dict(adapt.Fixed(table)))
    assert policy == adapt.Fixed({"a": adapt.Precision(6, 3), "b": None})


def test_what_is_left_out_has_its_default():
    assert from_dict({"name": "AdaPT", "lookback": [5, 10]}) == adapt.AdaPT(lookback=(5, 10))


def test_all_policies_of_the_package_can_be_described():
    assert {name for name in dir(adapt) if hasattr(getattr(adapt, name), "advance")} == set(POLICIES)


@pytest.mark.parametrize(
    ("described", "kind", "message"),
    [
        ("AdaPT", TypeError, "described by named values, such as .*, got 'AdaPT'"),
        ({}, ValueError, "there is no policy None in adapt .*: it has AdaPT, CyclicPrecision, Fixed, MuPPET"),
        ({"name": "Adapt"}, ValueError, "there is no policy 'Adapt' in adapt"),
        ({"name": ["AdaPT"]}, ValueError, "there is no policy"),
        ({"name": "Fixed"}, ValueError, "Fixed needs a value for precision"),
        ({"name": "AdaPT", "bit": 4}, ValueError, "AdaPT has no hyperparameter bit: it has initial, buffer_bits"),
        ({"name": "AdaPT", "initial": {"word_length": 4}}, ValueError, "initial needs word_length and fraction_l"),
        ({"name": "AdaPT", "lookback": [9, 3]}, ValueError, r"lookback must be .*, got \[9, 3\]"),
        ({"name": "AdaPT", "lookback": {"word_length": 4, "fraction_length": 2}}, TypeError, "lookback must be two"),
    ],
)
def test_what_describes_no_policy_is_refused(described, kind, message):
    with pytest.raises(kind, match=message):
        from_dict(described)


def test_a_policy_of_ones_own_is_described():
    @dataclass(frozen=True)
    class Mine:
        pace: int = 3
        where: object = len

    assert to_dict(Mine()) == {"name": "Mine", "pace": 3, "where": "builtins.len"}
    with pytest.raises(ValueError, match="there is no policy 'Mine'"):
        from_dict(to_dict(Mine()))


@pytest.mark.parametrize("sequence", [list, UserList], ids=["a list", "a list of a configuration tool"])
def test_lists_stand_for_tuples(sequence):
    pair = sequence([5, 10])
    assert adapt.AdaPT(lookback=pair, resolution=pair) == adapt.AdaPT(lookback=(5, 10), resolution=(5, 10))
    assert adapt.CyclicPrecision(100, pair) == adapt.CyclicPrecision(100, (5, 10))
    words, threshold = sequence([4, 6]), sequence([1.0, 2.0, 0.5])
    policy = adapt.MuPPET(word_lengths=words, threshold=threshold)
    assert policy == adapt.MuPPET(word_lengths=(4, 6), threshold=(1.0, 2.0, 0.5))
    assert hash(policy) is not None


def test_compact_names_all_hyperparameters():
    assert get_type_hints(Overrides) == get_type_hints(adapt.AdaPT)
    assert replace(adapt.AdaPT.compact(), bits=4) == adapt.AdaPT.compact(bits=4)


def test_vars_of_a_format_are_its_lengths():
    assert vars(adapt.Precision(8, 4)) == {"word_length": 8, "fraction_length": 4}
