import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapt.cli import main
from adapt.report import save_pictures, summary, table, totals
from adapt.report.runs import find_trace
from adapt.trace import Column, Trace
from adapt.trace.widths import Widths
from tests.processes import python

ROOT = Path(__file__).parents[1]


def example() -> Trace:
    """Three rows, two layers of 30 and 10 weights; word lengths rise in the first and fall in the second."""
    trace = Trace(["conv.weight", "fc.weight"], [3000, 1000])
    trace.append(
        [1, 2, 3],
        word_length=[[8, 8], [8, 6], [16, 4]],
        fraction_length=[[4, 4], [4, 5], [13, 5]],
        nonzero=[[1.0, 1.0], [0.5, 1.0], [0.5, 0.25]],
    )
    return trace


class TestTable:
    def test_a_line_holds_start_mean_final_and_switches(self):
        lines = [line.split() for line in table(example()).splitlines()]
        assert ["conv.weight", "3,000", "8", "10.7", "16", "4", "7.0", "13", "100.0%", "66.7%", "50.0%", "1"] in lines
        assert ["fc.weight", "1,000", "8", "6.0", "4", "4", "4.7", "5", "100.0%", "75.0%", "25.0%", "2"] in lines

    def test_columns_stand_below_each_other(self):
        trace = example()
        trace.add_layers(["a.much.longer.name.weight", "b"], [123_456_789, 1])
        trace.append(9, word_length=[2, 32, 9, 10], fraction_length=[-100, 100, 0, 0], nonzero=[0, 1, 0.5, 0.01])
        lines = table(trace).splitlines()
        end = lines.index("")
        body = lines[3:end]
        assert len({len(line) for line in body}) == 1
        assert lines[2] == "-" * len(body[0])
        for head in ("start", "mean", "final"):
            ends = [place + len(head) for place in range(len(lines[1])) if lines[1].startswith(head, place)]
            assert len(ends) == 3
            for line in body:
                assert all(line[place - 1] != " " and line[place : place + 1] == " " for place in ends)
        assert lines[0].endswith("switches")
        assert lines[1].index("start") == lines[0].index("word length")

    def test_the_policys_own_columns_stand_behind_the_others(self):
        own = {
            "phase": Column(np.int8, 0, 9, float32=0, default=0),
            "largest_norm_of_a_gradient": Column(np.float64, 0, np.inf, float32=0, default=0),
        }
        trace = Trace(["a", "b"], [30, 10], own)
        values = {"word_length": 8, "fraction_length": 4, "nonzero": 1.0, "phase": [[1, 2], [2, 4]]}
        trace.append([1, 2], **values, largest_norm_of_a_gradient=[[0.5, 1e-9], [1.5, np.inf]])
        head, subhead, rule, first, second, *_ = table(trace).splitlines()
        assert first.split()[-7:] == ["1", "1.5", "2", "0.5", "1", "1.5", "0"]
        assert second.split()[-7:] == ["2", "3.0", "4", "1e-09", "inf", "inf", "0"]
        assert re.search(r"non-zero +phase +largest norm of a gradient +switches$", head)
        assert subhead.index("start", head.index("phase") - 3) <= head.index("phase") + 3
        assert len(first) == len(second) == len(rule) == len(head)

    def test_totals_are_weighted_by_size(self):
        figures = totals(example())
        assert figures["run_mean_word_length"] == pytest.approx((8 + 7.5 + 13) / 3)
        assert figures["mean_word_length"] == 13
        assert figures["run_nonzero"] == pytest.approx((1 + 0.625 + 0.4375) / 3)
        assert figures["nonzero"] == pytest.approx(0.4375)
        assert figures["size_ratio"] == pytest.approx((3 * 16 * 0.5 + 4 * 0.25) / (4 * 32))
        saved = [(3 * 8 + 8) / 4, (3 * 4 + 6) / 4, (3 * 8 + 1) / 4]
        assert figures["memory_ratio"] == pytest.approx(np.mean([(bits + 32) / 32 for bits in saved]))
        text = table(example())
        assert "word length      9.5 bits on average, 13.0 at the end" in text
        assert "packed size      6,500 bytes, 0.406 of float32, at the end" in text
        assert f"modelled size    {25 / 128:.3f}" in text

    @pytest.mark.parametrize("function", [table, totals, lambda trace: save_pictures(trace, "nowhere")])
    def test_a_trace_without_rows_is_refused(self, function):
        with pytest.raises(ValueError, match="no rows"):
            function(Trace(["a"], [1]))
        assert not Path("nowhere").exists()


class TestSummary:
    def test_figures_of_a_layer(self):
        first, second = summary(example(), {"conv.weight": 10, "fc.weight": 20})
        assert (first["word_length_first"], first["word_length_last"], first["bytes"]) == (8, 16, 6000)
        assert (second["moves"], second["raised"], second["lowered"], second["last_move"]) == (2, 0, 2, 3)
        assert first["float32_bytes"] == 12000
        assert first["modelled_speedup"] == pytest.approx(32 / (16 * 0.5))
        assert first["modelled_share"] == pytest.approx(10 * 8 / (10 * 8 + 20 * 1))
        assert second["divergence"] is None

    def test_why_layers_moved(self):
        trace = Trace(["a", "b"], [10, 10])
        word, cost = [[8, 8], [9, 8], [7, 8]], [[np.nan, np.nan], [0.2, 0.1], [-0.4, 0.1]]
        trace.append(
            [1, 2, 3],
            word_length=word,
            fraction_length=4,
            nonzero=1.0,
            strategy=[[1, 1], [1, 1], [3, 3]],
            rounding_cost=cost,
        )
        first, second = summary(trace)
        assert (first["strategy"], first["rounding_cost"]) == ("max", pytest.approx(-0.1))
        assert (second["strategy"], second["rounding_cost"]) == (None, None)
        assert "push-up strategy min 67%, mean 0%, max 33% of the rows" in table(trace)
        assert "strategy" not in table(example())

    def test_without_multiply_adds_the_share_of_the_cost_is_not_known(self):
        assert [row["modelled_share"] for row in summary(example())] == [None, None]

    def test_learned_widths_are_not_rounded(self):
        widths = Widths(["conv.weight"], [2], [1500, 1500])
        widths.append(1, [3, 4])
        first, _ = summary(example(), widths=widths)
        assert first["word_length_last"] == 3.5
        assert first["bytes"] == np.ceil(3000 * 3.5 / 8)


class TestFormats:
    @pytest.fixture
    def runs(self, tmp_path) -> list[str]:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            example().save(tmp_path / name / "trace.npz")
        (tmp_path / "first" / "metrics.csv").write_text("step,loss,adapt/nonzero\n0,2.5,1\n9,0.5,1\n")
        described = {"run": {"policy": "<b>|"}, "operations": {"conv.weight": 3, "fc.weight": 1}}
        (tmp_path / "first" / "run.json").write_text(json.dumps(described))
        return [str(tmp_path / "first"), str(tmp_path / "second")]

    def test_all_hold_the_same_numbers(self, runs, capsys):
        assert main(["report", *runs, "--format", "json"]) == 0
        first, second = json.loads(capsys.readouterr().out)["runs"]
        assert main(["report", *runs, "--format", "csv"]) == 0
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        expected = [{"run": run["run"], **row} for run in (first, second) for row in run["layers"]]
        assert lines == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
        assert first["metrics"] == {"loss": 0.5}  # the last one
        assert second["totals"]["modelled_inference_speedup"] is None
        assert first["totals"]["modelled_inference_speedup"] > 1

    def test_markdown_escapes_what_comes_from_files(self, runs, capsys):
        assert main(["report", *runs, "--format", "md"]) == 0
        output = capsys.readouterr().out
        assert "- policy: &lt;b&gt;\\|" in output
        assert output.count("| conv.weight |") == 2

    def test_damaged_companions_are_left_out(self, runs, capsys):
        for name in ("run.json", "metrics.csv", "widths.npz", "last.ckpt"):
            Path(runs[0], name).write_bytes(b"\xff\x00{")
        assert main(["report", runs[0], "--format", "json"]) == 0
        (run,) = json.loads(capsys.readouterr().out)["runs"]
        assert (run["made"], run["metrics"], run["formats"]) == ({}, {}, {})

    def test_several_tables(self, runs, capsys):
        assert main(["report", *runs]) == 0
        assert capsys.readouterr().out.count(table(example())) == 2


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path) -> Path:
        example().save(tmp_path / "trace.npz")
        return tmp_path

    @pytest.mark.parametrize("name", ["", "trace.npz"])
    def test_prints_the_table_of_a_file_or_a_folder(self, run, name, capsys):
        assert main(["report", str(run / name)]) == 0
        output = capsys.readouterr()
        assert output.out == table(example()) + "\n"
        assert output.err == ""

    def test_draws_pictures(self, run, capsys):
        pytest.importorskip("matplotlib")
        folder = run / "new" / "pictures"
        assert main(["report", str(run), "--pictures", str(folder)]) == 0
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["timeline.png", "word_length_heatmap.png"]
        assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)
        assert str(folder / "timeline.png") in capsys.readouterr().out

    def fails(self, capsys, *arguments: str | Path) -> str:
        assert main(["report", *map(str, arguments)]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("adapt report: ")
        assert output.err.count("\n") == 1
        return output.err

    def test_a_missing_file(self, tmp_path, capsys):
        assert "none.npz: No such file" in self.fails(capsys, tmp_path / "none.npz")

    def test_a_folder_without_a_trace(self, tmp_path, capsys):
        assert "there is no .npz file in it" in self.fails(capsys, tmp_path)

    def test_a_folder_with_several(self, run, capsys):
        example().save(run / "other.npz")
        assert find_trace(run) == run / "trace.npz"
        (run / "trace.npz").rename(run / "third.npz")
        assert "2 .npz files (other.npz, third.npz): name the one" in self.fails(capsys, run)

    def test_the_only_file_may_have_any_name(self, run):
        (run / "trace.npz").rename(run / "seed-3.npz")
        assert find_trace(run) == run / "seed-3.npz"

    def test_a_broken_file(self, run, capsys):
        (run / "trace.npz").write_bytes((run / "trace.npz").read_bytes()[:-50])
        assert "trace.npz is not a readable trace" in self.fails(capsys, run)

    def test_an_empty_trace(self, run, capsys):
        Trace(["a"], [1]).save(run / "trace.npz")
        assert "trace.npz: the trace has no rows" in self.fails(capsys, run)

    def test_pictures_into_a_file(self, run, capsys):
        pytest.importorskip("matplotlib")
        assert main(["report", str(run), "--pictures", str(run / "trace.npz")]) == 1
        assert "trace.npz is a file: name a folder for the pictures" in capsys.readouterr().err

    @pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
    def test_a_reader_that_has_seen_enough(self, run):
        command = f"{sys.executable} -m adapt report {run} | true"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
        result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
        assert result.stderr == ""

    @pytest.mark.parametrize("arguments", [[], ["report"], ["draw", "x"], ["report", "x", "--nonsense"]])
    def test_wrong_use(self, arguments, capsys):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: adapt" in capsys.readouterr().err

    @pytest.mark.parametrize("exists", [True, False])
    def test_as_a_module(self, run, exists):
        result = python("-m", "adapt", "report", run if exists else run / "none")
        assert result.returncode == (0 if exists else 1)
        assert result.stdout == (table(example()) + "\n" if exists else "")

    def test_the_table_needs_no_pictures(self, run):
        code = f"""
import sys
from adapt.cli import main
assert main(["report", {str(run)!r}]) == 0
assert not {{"matplotlib", "tensorboard", "lightning"}} & set(sys.modules)
"""
        result = python("-c", code)
        assert result.returncode == 0, result.stderr
