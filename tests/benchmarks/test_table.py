import json

import pytest

from benchmarks.table import Row, as_json, as_markdown
from benchmarks.timing import Ratio


@pytest.mark.parametrize(
    ("value", "target", "reached"),
    [
        (Ratio(1.0, 1.0, 1.0), 1.0, True),
        (Ratio(1.1, 0.9, 1.2), 1.0, False),
        (Ratio(1.1, 0.9, 1.2), None, None),
        ("not installed", 1.0, None),
    ],
)
def test_the_median_decides_on_the_target(value, target, reached):
    assert Row("key", "what", value, target=target).reached is reached


def test_a_row_shows_median_quartiles_target_and_peers():
    row = Row("key", "what", Ratio(1.05, 1.01, 12.5), target=1.1, peers={"A": Ratio(20.0, 19.0, 21.0), "B": "absent"})
    assert as_markdown([row]).splitlines()[-1] == "| what | 1.050 × (1.010–12.5) | ≤ 1.1 × | yes | A 20.0 ×; B absent |"


def test_notes_stand_below_the_table():
    lines = as_markdown([Row("key", "what", "absent", note="why")]).splitlines()
    assert lines[2:] == ["| what | absent | – | – | – |", "", "key: why"]


def test_the_json_holds_every_number():
    rows = [Row("key", "what", Ratio(1.0, 0.5, 2.0), target=3.0, peers={"A": Ratio(4.0, 4.0, 4.0), "B": "absent"})]
    written = json.loads(json.dumps(as_json({"processor": "P"}, "wall clock", rows)))
    assert written["machine"] == {"processor": "P"}
    assert written["clock"] == "wall clock"
    (row,) = written["rows"]
    assert row["value"] == {"value": 1.0, "lower": 0.5, "upper": 2.0}
    assert row["peers"]["A"]["value"] == 4.0
    assert row["peers"]["B"] == "absent"
    assert row["reached"] is True
