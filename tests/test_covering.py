"""The tests' own choice of combinations."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.covering import covering


def product(sizes):
    names = [f"p{i}" for i in range(len(sizes))]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*map(range, sizes))]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
def test_every_set_of_values_is_held(sizes, strength):
    combinations = product(sizes)
    chosen = [combinations[position] for position in covering(combinations, strength)]
    for names in itertools.combinations(combinations[0], min(strength, len(sizes))):
        seen = {tuple(combination[name] for name in names) for combination in chosen}
        assert seen == {tuple(combination[name] for name in names) for combination in combinations}


@pytest.mark.parametrize(
    ("sizes", "strength", "number"), [((2, 2, 2), 2, 4), ((4, 3), 1, 4), ((4, 3), 2, 12), ((3, 3, 3), 2, 9)]
)
def test_there_are_few_of_them(sizes, strength, number):
    assert number <= len(covering(product(sizes), strength)) <= 1.4 * number


def test_the_first_is_kept():
    assert covering(product((2, 3)), 1)[0] == 0
    assert covering([], 2) == []
