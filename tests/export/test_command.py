"""`adapt export` and `adapt show`."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import adapt
from adapt.cli import main
from adapt.export import capture, load
from tests.export.networks import Residual, Run, adaptive, model_of, with_widths
from tests.processes import python


def residual():
    """What --model names."""
    return model_of(Residual)


def dense():
    """A network that hls4ml takes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


def nothing():
    """What --model should not name."""
    return 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run and what it saved."""
    run = adaptive(Residual, activations=8, quantize_biases=True)
    run.folder = tmp_path_factory.mktemp("run")
    adapt.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, run.folder / "last.pt")
    capture(run.controller).save(run.folder / "net.safetensors")
    run.controller.trace.save(run.folder / "trace.npz")
    model = dense()
    optimizer = adapt.ASGD(model, lr=0.05, policy=adapt.Fixed(adapt.Precision(6, 6)), activations=8)
    Run(model, optimizer, optimizer.controller, torch.randn(10, 12)).train()
    adapt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, run.folder / "dense.pt")
    np.save(run.folder / "inputs.npy", run.inputs.numpy())
    return run


def command(*words):
    return main([str(word) for word in words])


def test_a_checkpoint_becomes_a_packed_file_that_is_proven_equal(run, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    model = f"{__name__}:residual"
    options = ("--model", model, "-o", out)
    assert command("export", run.folder / "last.pt", *options, "--inputs", run.folder / "inputs.npy") == 0
    printed = capsys.readouterr().out
    size = out.stat().st_size
    assert printed.startswith(f"{out}: {size:,} bytes, ")
    assert "times smaller than the 2,500 of float32" in printed
    assert "all of 50 outputs are equal" in printed
    with torch.no_grad():
        assert torch.equal(load(out, residual()).module()(run.inputs), run.evaluate())
    assert command("export", out, *options[:2], "-o", tmp_path / "again", "--shape", "4,3,8,8") == 0
    assert "all of 20 outputs are equal" in capsys.readouterr().out
    assert command("export", run.folder / "last.pt", *options) == 0
    assert "equal when read again" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["onnx", "integer", "qonnx", pytest.param("hls4ml", marks=pytest.mark.long)])
def test_other_targets_are_written_and_proven_equal(run, tmp_path, capsys, target):
    pytest.importorskip("onnxscript")
    form = ("--form", "integer") if target == "integer" else ()
    target = "onnx" if form else target
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    out = tmp_path / ("project" if target == "hls4ml" else "net.onnx")
    source, model = ("dense.pt", "dense") if target == "hls4ml" else ("last.pt", "residual")
    shape = "20,12" if target == "hls4ml" else "20,3,8,8"
    words = ("--model", f"{__name__}:{model}", "--to", target, "-o", out, "--shape", shape, *form)
    assert command("export", run.folder / source, *words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: ")
    assert "of float32" in printed
    assert "all of 100 outputs are equal" in printed


def test_formats_for_other_tools(run, tmp_path, capsys):
    for source in ("last.pt", "net.safetensors"):
        assert command("export", run.folder / source, "--to", "json", "-o", tmp_path / "f.json") == 0
        content = json.loads((tmp_path / "f.json").read_text())
        assert (content["format"], content["version"]) == ("adapt.formats", 1)
        assert content["formats"].keys() == run.controller.formats.keys()
        assert content["formats"]["conv1.weight"] == {
            "word_length": 6,
            "integer_length": 0,
            "fraction_length": 6,
            "step": 2.0**-6,
            "signed": True,
            "minimum": -0.5,
            "maximum": 0.5 - 2.0**-6,
            "axis": None,
        }


def test_formats_with_channels_for_other_tools(tmp_path):
    learner = with_widths(Residual)
    adapt.save({"optimizer": learner.optimizer.state_dict()}, tmp_path / "learned.pt")
    assert command("export", tmp_path / "learned.pt", "--to", "json", "-o", tmp_path / "f.json") == 0
    form = json.loads((tmp_path / "f.json").read_text())["formats"]["conv1.weight"]
    assert form["axis"] == 0
    assert len(form["word_length"]) == len(form["step"]) == 8
    assert form["fraction_length"] is form["integer_length"] is None


def test_show(run, capsys):
    assert command("show", run.folder / "net.safetensors") == 0
    printed = capsys.readouterr().out
    assert "conv1.weight  8×3×3×3  ⟨6, 6⟩" in printed
    assert "conv2.input" in printed
    assert f"{(run.folder / 'net.safetensors').stat().st_size:,} bytes: " in printed
    assert "policy" in printed
    assert command("show", run.folder / "last.pt") == 0
    assert "conv1.weight  ⟨6, 6⟩" in capsys.readouterr().out
    for path in (run.folder / "trace.npz", run.folder):
        assert command("show", path) == 0
        assert "word length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "last.pt", "-o", "x"], "--model is needed"),
        (["export", "last.pt", "--model", "json", "-o", "x"], "must be MODULE:FUNCTION"),
        (["export", "last.pt", "--model", "json:nothing", "-o", "x"], "json has no function nothing"),
        (["export", "last.pt", "--model", "no_such_module:f", "-o", "x"], "No module named"),
        (["export", "last.pt", "--model", f"{__name__}:nothing", "-o", "x"], "made a int"),
        (["export", "last.pt", "--model", f"{__name__}:residual", "-o", "no/x"], "folder of x"),
        (["export", "last.pt", "--model", f"{__name__}:residual", "-o", "x", "--shape", "a"], "whole numbers"),
        (["export", "last.pt", "--model", f"{__name__}:residual", "-o", "x", "--to", "onnx"], "--inputs or --shape"),
        (["export", "trace.npz", "--model", f"{__name__}:residual", "-o", "x"], "trace.npz"),
        (["export", "nowhere", "--model", f"{__name__}:residual", "-o", "x"], "nowhere: No such file"),
        (["show", "inputs.npy"], "no trace, checkpoint, table of formats or packed file"),
        (["show", "nowhere"], "nowhere: No such file"),
    ],
)
def test_errors_are_one_line(run, monkeypatch, capsys, words, message):
    monkeypatch.chdir(run.folder)
    assert command(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"adapt {words[0]}: ")
    assert message in error
    assert error.count("\n") == 1


def test_models_of_the_present_folder_are_found(run, tmp_path):
    (tmp_path / "mine.py").write_text("from tests.export.test_command import residual\n")
    words = ["export", run.folder / "last.pt", "--model", "mine:residual", "-o", "net"]
    root = adapt.__path__[0].removesuffix("/adapt")
    program = f"import sys; sys.path = [{root!r}] + [p for p in sys.path if p]; from adapt.cli import main; main()"
    done = python("-c", program, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "net").exists()
