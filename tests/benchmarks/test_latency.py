import json
from pathlib import Path

import pytest

from adapt.profiling.calibration import KINDS
from benchmarks import latency
from benchmarks.__main__ import RESULTS
from benchmarks.latency import LAYERS, Prediction, as_section, hawq, summary, write_into

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_at_least_twenty_layers_of_every_kind_of_product():
    assert len(LAYERS) >= 20
    assert {workload.kind for workload in LAYERS.values()} == set(KINDS)
    assert all(workload.layer().kind == workload.kind for workload in LAYERS.values())


def test_errors_are_relative_to_the_measurement():
    rows = [Prediction("a", "linear", 8, 110, 50, 100), Prediction("b", "linear", 8, 70, 400, 100)]
    assert summary(rows) == {"median": pytest.approx(0.2), "worst": pytest.approx(0.3)}
    assert summary(rows, "roofline")["worst"] == pytest.approx(3)


def test_hawq_v3s_bit_operations():
    assert round(hawq()["bit_operations"]) in (53, 54)
    assert hawq()["bounded"] > 4.44


def test_a_small_run_writes_its_results_and_its_tables(tmp_path, monkeypatch):
    some = {"first": LAYERS["ResNet-20, third stage"], "second": LAYERS["ResNet-50, classifier"]}
    monkeypatch.setattr(latency, "LAYERS", some)
    monkeypatch.setattr(latency, "KINDS", ("convolution", "linear"))
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    page.write_text(f"before\n{latency.MARKS[0]}\nold\n{latency.MARKS[1]}\nafter\n")
    latency.main(["--layers", "5", "--rounds", "1", "--out", str(out), "--page", str(page)])
    results = json.loads(out.read_text())
    assert {row["layer"] for row in results["layers"]} == set(some)
    written = page.read_text()
    assert as_section(results) in written
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written


def test_the_documentation_shows_the_committed_results(tmp_path):
    (results,) = RESULTS.glob("latency-*.json")
    results = json.loads(results.read_text(encoding="utf-8"))
    assert results["errors"]["median"] <= 0.15
    copy = tmp_path / "benchmarks.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_into(copy, as_section(results))
    assert copy.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
