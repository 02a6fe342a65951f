"""The three phases, their rates and their pressure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.learned import Phases
from adapt.learned.phases import pressure, rate


def test_every_step_has_its_phase():
    phases = Phases(2, 4, 3)
    found = [phases.at(step) for step in range(phases.total)]
    assert [name for name, *_ in found] == ["pretraining"] * 2 + ["learning"] * 4 + ["finetuning"] * 3
    assert [at for _, at, _ in found] == [0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert phases.at(100) == ("finetuning", 2, 3)
    assert phases.learned == 1
    assert phases.settling == 3


def test_a_phase_may_be_left_out():
    assert Phases(0, 5, 0).at(0) == ("learning", 0, 5)
    assert Phases(0, 5, 0).at(5) == ("finetuning", 0, 1)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_towards_zero(steps, warmup):
    rates = [rate(step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1 for value in rates)
    top = max(range(steps), key=rates.__getitem__)
    assert rates[top] == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_pressure_rises_linearly_over_the_first_half():
    assert [pressure(step, 8) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert pressure(0, 1) == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((1.5, 1, 1), TypeError, "pretraining must be a whole number of optimizer steps, got 1.5"),
        ((1, -1, 1), ValueError, "learning must be at least 0 optimizer steps, got -1"),
        ((0, 0, 0), ValueError, "at least one step"),
    ],
)
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Phases(*arguments)
