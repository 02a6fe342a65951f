import json

import pytest

from recipes.common import ledger


def test_lines_come_back_in_order_and_in_any_alphabet(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    lines = [{"name": "Δ", "value": 1.5}, {"name": "b", "inner": {"list": [1, None]}}]
    for line in lines:
        ledger.append(path, line)
    assert ledger.read(path) == lines
    assert len(path.read_bytes().splitlines()) == 2


def test_no_file_holds_no_lines(tmp_path):
    assert ledger.read(tmp_path / "none.jsonl") == []


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert ledger.read(path) == [{"a": 1}]


@pytest.mark.parametrize("damage", ['{"a": 1', "[1]", "text"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"a": 1}}\n{damage}\n')
    with pytest.raises(ValueError, match=r"runs\.jsonl is damaged in line 2"):
        ledger.read(path)


def test_a_run_is_found_by_its_identity_alone():
    identity = {"settings": {"seed": 0, "bounds": (1, 2)}, "policy": None}
    lines = [json.loads(json.dumps({**identity, "accuracy": 0.5}))]
    assert ledger.is_finished(lines, identity)
    assert not ledger.is_finished(lines, {**identity, "policy": {"name": "AdaPT"}})
    assert not ledger.is_finished(lines, {**identity, "settings": {"seed": 1, "bounds": (1, 2)}})
    assert not ledger.is_finished([], identity)


def test_digests_tell_identities_apart_whatever_the_order_of_their_keys():
    assert ledger.digest({"a": 1, "b": 2}) == ledger.digest({"b": 2, "a": 1})
    assert ledger.digest({"a": 1}) != ledger.digest({"a": 2})
