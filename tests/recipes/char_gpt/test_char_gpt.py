import json
import math

import numpy as np
import pytest
import torch

import adapt
from recipes.char_gpt.__main__ import main
from recipes.char_gpt.training import GPTSettings, bits_per_character, train
from recipes.common import ledger
from recipes.common.gpt import CharGPT
from recipes.common.text import Text
from tests.covering import picked
from tests.recipes.small_runs import interrupt, timeless

CONTENT = "".join(f"{i % 7} times {i % 3} is {(i % 7) * (i % 3)}.\n" for i in range(150))
SMALL = {"epochs": 2, "steps_per_epoch": 30, "batch_size": 4, "context": 16, "layers": 1, "width": 16}


@pytest.fixture
def command(tmp_path):
    (tmp_path / "text").write_text(CONTENT)

    def run(*arguments):
        fixed = ["--data", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--threads", "1", "--device", "cpu"]
        small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        main([*fixed, *small, *arguments])

    return run


def lines(tmp_path):
    return ledger.read(tmp_path / "out" / "char_gpt.jsonl")


def test_the_network_looks_back_only():
    torch.manual_seed(0)
    model = CharGPT(9, context=12, layers=2, width=16, heads=4)
    text = torch.randint(9, (2, 12))
    changed = text.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 9
    difference = (model(text) - model(changed)).abs().amax((0, 2))
    assert torch.all(difference[:7] == 0)
    assert torch.all(difference[7:] > 0)


def test_bits_per_character_of_a_guess_at_random_are_those_of_the_alphabet():
    text = Text.of(CONTENT)
    model = CharGPT(len(text.alphabet), context=16, layers=1, width=16, heads=4)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    scores = bits_per_character(model, text, 16)
    assert scores == {"bits_per_character": pytest.approx(math.log2(len(text.alphabet)), rel=1e-5)}


@pytest.mark.parametrize("method", picked(["float32", "adapt", "compact", "muppet", "fixed8"], "adapt", "muppet"))
def test_every_method_learns(method):
    text = Text.of(CONTENT)
    run = train(GPTSettings(text=text.digest, method=method, **{**SMALL, "epochs": 4}), text, None, progress=False)
    assert run.history[-1]["bits_per_character"] < 0.6 * math.log2(len(text.alphabet))
    if method != "float32":
        assert run.trace.layers == (
            "characters.weight", "positions.weight", "blocks.0.attend.weight", "blocks.0.gather.weight",
            "blocks.0.widen.weight", "blocks.0.narrow.weight", "head.weight",
        )  # fmt: skip
        for name, precision in run.controller.precisions.items():
            if method != "muppet":
                steps = run.model.get_parameter(name).detach().double() / precision.step
                assert torch.equal(steps, steps.round())


def test_runs_leave_lines_and_the_same_command_skips_them(command, tmp_path, capsys):
    command("--methods", "float32", "adapt", "--seeds", "0", "1")
    found = lines(tmp_path)
    assert [(line["settings"]["method"], line["settings"]["seed"]) for line in found] == [
        ("float32", 0), ("adapt", 0), ("float32", 1), ("adapt", 1),
    ]  # fmt: skip
    for line in found:
        assert line["bits_per_character"] == line["history"][-1]["bits_per_character"]
        assert line["layers"]["characters.weight"]["operations"] == 0
        assert str(tmp_path) not in json.dumps(line)
    trace = adapt.Trace.load(tmp_path / "out" / found[1]["trace"])
    assert trace.step[-1] == 60
    capsys.readouterr()
    command("--methods", "float32", "adapt", "--seeds", "0", "1")
    assert capsys.readouterr().out.count("already finished") == 4
    assert lines(tmp_path) == found
    assert not list((tmp_path / "out" / "runs").iterdir())


def test_another_text_is_another_run(command, tmp_path):
    command("--methods", "float32", "--seeds", "0")
    (tmp_path / "text").write_text(CONTENT + "more")
    command("--methods", "float32", "--seeds", "0")
    assert len(lines(tmp_path)) == 2


def test_a_run_that_was_cut_goes_on_and_ends_the_same(command, tmp_path, monkeypatch):
    arguments = ("--methods", "adapt", "--seeds", "0", "--epochs", "3")
    command(*arguments)
    (expected,) = lines(tmp_path)
    full = adapt.Trace.load(tmp_path / "out" / expected["trace"])
    (tmp_path / "out").rename(tmp_path / "uncut")
    interrupt(monkeypatch, lambda: command(*arguments), epoch=2)
    assert lines(tmp_path) == []
    command(*arguments)
    (line,) = lines(tmp_path)
    assert timeless(line) == timeless(expected)
    trace = adapt.Trace.load(tmp_path / "out" / line["trace"])
    assert np.array_equal(trace.nonzero, full.nonzero)


def test_the_command_of_a_line_makes_the_same_line(command, tmp_path):
    command("--methods", "adapt", "--seeds", "2")
    (first,) = lines(tmp_path)
    words = first["provenance"]["command"].split()
    main([*words[3:], "--data", str(tmp_path / "text"), "--out", str(tmp_path / "again")])
    (second,) = ledger.read(tmp_path / "again" / "char_gpt.jsonl")
    assert timeless(second) == timeless(first)


def test_the_report_compares_with_float32(command, tmp_path, capsys):
    command("--methods", "float32", "adapt", "--seeds", "0", "1")
    capsys.readouterr()
    command("report")
    out = capsys.readouterr().out
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in out.splitlines() if row.startswith("| ")}
    ours = [line["bits_per_character"] for line in lines(tmp_path) if line["settings"]["method"] == "adapt"]
    float32 = [line["bits_per_character"] for line in lines(tmp_path) if line["settings"]["method"] == "float32"]
    assert rows["adapt"][1].startswith(f"{sum(ours) / 2:.3f} ± ")
    assert rows["adapt"][2].startswith(f"{(sum(ours) - sum(float32)) / 2:+.3f} ± ".replace("-", "−"))
    assert rows["float32"][2] == "–"
    assert (tmp_path / "out" / "char_gpt.md").read_text() in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "muppet9"], "method must be one of float32, adapt"),
        (["--width", "18"], "width must be a multiple of the 4 heads, got 18"),
        (["--context", "0"], "context must be above 0, got 0"),
        (["--context", "100000"], "context must be below the .* characters"),
        (["--seeds", "-1"], "seed must not be negative"),
        (["--lr", "1e30", "--methods", "float32"], r"not a number any more: lr = 1e\+30 is too high"),
        (["--data", "nowhere", "--no-download"], "nowhere is neither a text nor a folder"),
        (["report"], "holds no results yet: train first"),
    ],
)
def test_what_cannot_be_ends_in_one_sentence(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)
    assert lines(tmp_path) == []
