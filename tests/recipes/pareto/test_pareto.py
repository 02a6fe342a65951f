"""The Pareto study: its costs against figures by hand, its runs, and what the report says of them."""

import json

import pytest

from recipes.common import ledger
from recipes.common.remaining import heading, time_left
from recipes.pareto.__main__ import main
from recipes.pareto.report import write
from recipes.pareto.runs import LEDGER, PRECISIONS, ParetoSettings, costs, network
from recipes.pareto.study import gather
from tests.recipes.small_runs import interrupt, timeless, write_cifar


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a few pictures; its results lie in tmp_path / "out"."""
    write_cifar("cifar10", tmp_path / "data", monkeypatch)

    def run(*arguments):
        main([
            *arguments, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download",
            "--threads", "1",
            "--device", "cpu", "--epochs", "2", "--batch-size", "32", "--subset", "0", "--multipliers", "0.25",
        ])  # fmt: skip

    return run


def line(precision, multiplier, accuracy, seed=0):
    """A made-up result."""
    settings = ParetoSettings(method=precision, multiplier=multiplier, seed=seed)
    return {
        **settings.identity(10), "accuracy": accuracy, **costs(settings), "train_loss": 0.5, "test_loss": 0.75,
        "seconds": 1.0,
    }  # fmt: skip


def test_networks_have_the_papers_depth_and_the_filters_of_the_multiplier():
    model = network(ParetoSettings(method="4", multiplier=1.0, blocks=3))
    assert sum(p.numel() for p in model.parameters()) == 269_722
    wide = network(ParetoSettings(method="4", multiplier=1.5))
    assert [m.out_channels for m in wide.modules() if hasattr(m, "out_channels")] == [24, 24, 24, 48, 48, 96, 96]


def test_costs_are_those_of_hand():
    # A ResNet-8 of 4, 8 and 16 filters on 32×32 pictures, layer by layer.
    operations = [
        3 * 4 * 9 * 1024, 4 * 4 * 9 * 1024, 4 * 4 * 9 * 1024, 4 * 8 * 9 * 256, 8 * 8 * 9 * 256,
        8 * 16 * 9 * 64, 16 * 16 * 9 * 64, 16 * 10,
    ]  # fmt: skip
    weights = [3 * 4 * 9, 4 * 4 * 9, 4 * 4 * 9, 4 * 8 * 9, 8 * 8 * 9, 8 * 16 * 9, 16 * 16 * 9, 160]
    inner, ends = sum(operations[1:-1]), operations[0] + operations[-1]
    found = costs(ParetoSettings(method="4-8", multiplier=0.25))
    assert found["operations"] == inner + ends
    assert found["linear"] == 4 * inner + 8 * ends
    assert found["quadratic"] == inner + 4 * ends
    assert found["memory"] == 4 * sum(weights[1:-1]) + 8 * (weights[0] + weights[-1])
    assert costs(ParetoSettings(method="bfloat16", multiplier=0.25))["quadratic"] == 16 * (inner + ends)


def test_every_run_leaves_a_line_and_is_not_repeated(command, tmp_path, capsys):
    command()
    lines = ledger.read(tmp_path / "out" / LEDGER)
    assert [one["settings"]["method"] for one in lines] == list(PRECISIONS)
    assert all(0 <= one["accuracy"] <= 1 for one in lines)
    assert "2 of 4: ResNet-8 × 0.25 at 8 bits, seed 0; 1 min left" in capsys.readouterr().out
    command()
    assert len(ledger.read(tmp_path / "out" / LEDGER)) == 4
    assert "4 of 4: ResNet-8 × 0.25 at 4 bits, seed 0: already finished" in capsys.readouterr().out
    command("report")
    assert "## ResNet-8, 2 epochs of all pictures" in (tmp_path / "out" / "pareto.md").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on_from_its_last_whole_epoch(command, tmp_path, monkeypatch):
    command("--precisions", "4-8")
    path = tmp_path / "out" / LEDGER
    whole = timeless(ledger.read(path)[0])
    path.unlink()
    interrupt(monkeypatch, lambda: command("--precisions", "4-8"), epoch=2)
    command("--precisions", "4-8")
    assert timeless(ledger.read(path)[0]) == whole


def test_the_report_names_who_beats_whom(tmp_path):
    made = [
        line("bfloat16", 1.0, 0.70), line("bfloat16", 0.5, 0.60), line("8", 1.0, 0.72), line("4-8", 1.0, 0.71),
        line("4-8", 0.5, 0.65), line("4-8", 0.5, 0.67, seed=1), line("4", 1.0, 0.62),
    ]  # fmt: skip
    for one in made:
        ledger.append(tmp_path / LEDGER, one)
    (study,) = gather(tmp_path / LEDGER)
    assert [n.name for n in study.networks[:2]] == ["bfloat16 × 0.5", "bfloat16 × 1"]
    text = write(tmp_path)
    assert "| linear cost | bfloat16 | – | 1 of 2 | 2 of 2 | 1 of 2 |" in text
    assert "| quadratic cost | bfloat16 | – | 2 of 2 | 2 of 2 | 1 of 2 |" in text
    assert "| weight memory | 4 bits | 0 of 1 | 0 of 1 | 1 of 1 | – |" in text
    assert "| 4 bits with 8-bit ends × 0.5 | 66.00 ± 1.00 |" in text
    assert "| 0.500 | 0.750 | 0.250 | 1 |" in text
    assert "+2.00 at 0.50 of the cost" in text  # bfloat16 × 1 by 8 bits × 1, at half the linear cost
    assert (tmp_path / "figures" / "pareto.png").stat().st_size > 10_000


def test_without_results_the_report_says_so(command, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="holds no results yet"):
        command("report")


def test_the_time_left_follows_the_pace_of_what_is_done():
    assert time_left([(10.0, 20.0), (30.0, 20.0)], [100.0, 100.0]) == 200.0
    assert heading(2, 5, "title", 3700.0) == "2 of 5: title; 1 h 02 min left"
    assert "unknown" in heading(1, 5, "title", time_left([], [1.0]))


def test_lines_are_plain_json():
    assert json.loads(json.dumps(line("4", 1.0, 0.5)))["settings"]["multiplier"] == 1.0
