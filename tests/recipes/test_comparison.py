import math

import pytest

from recipes.common.comparison import Estimate, difference, estimate, gather, ratio, seeds, text
from recipes.common.markdown import paragraph, table


def test_an_estimate_is_the_mean_and_its_standard_error():
    found = Estimate.of([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.error == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3))
    assert found.text() == "2.33 ± 0.88"
    assert Estimate.of([-0.25]).text("+.2f") == "−0.25"
    assert Estimate.of([-2.0, -1.0]).text("+.1f") == "−1.5 ± 0.5"
    assert Estimate.of([]) is None


def test_what_was_not_run_has_no_estimate():
    assert estimate({}, lambda line: line["x"]) is None
    assert difference({0: {"x": 1.0}}, {1: {"x": 1.0}}, lambda line: line["x"]) is None
    assert text(None) == "–"


def test_differences_pair_equal_seeds():
    found = difference(
        {0: {"x": 1.0}, 1: {"x": 5.0}, 2: {"x": 9.0}}, {1: {"x": 3.0}, 0: {"x": 2.0}}, lambda line: line["x"]
    )
    assert (found.mean, found.error, found.seeds) == (0.5, pytest.approx(1.5), 2)


def test_ratios_pair_equal_seeds():
    found = ratio({0: {"x": 1.0}, 1: {"x": 6.0}, 2: {"x": 9.0}}, {1: {"x": 3.0}, 0: {"x": 2.0}}, lambda line: line["x"])
    assert (found.mean, found.seeds) == (1.25, 2)


def test_tables_are_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_no_file_gives_nothing(tmp_path):
    assert gather(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("numbers", "told"), [([], "0 seeds"), ([1], "1 seed"), ([3, 3], "3 seeds"), ([3, 1], "1 to 3 seeds")]
)
def test_seeds_are_counted_over_methods(numbers, told):
    assert seeds([{seed: {} for seed in range(number)} for number in numbers]) == told


def test_a_paragraph_breaks_between_words_alone():
    text = paragraph(" ".join(["one-cycle"] * 30))
    assert max(map(len, text.splitlines())) <= 120
    assert text.split() == ["one-cycle"] * 30
