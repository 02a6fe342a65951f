"""Every call in the README's table of artefacts runs behind its snippet, and gives the bits that the table promises."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import torch

from adapt.export import verify
from tests.test_docs import ROOT, snippets

README = ROOT / "README.md"
CALLS = re.findall(
    r"`((?:adapt\.export|exported)\.\w+\(exported?.*?\)|exported\.save\(.*?\))`", README.read_text("utf-8")
)
NEEDS = {"to_onnx": ("onnx", "onnxscript", "onnxruntime"), "to_qonnx": ("qonnx",), "to_hls4ml": ("hls4ml",)}


@pytest.fixture
def after_the_snippet(tmp_path, monkeypatch):
    """The names that the snippet of the export leaves behind."""
    monkeypatch.chdir(tmp_path)
    (program,) = (text for text in snippets(README) if "adapt.export.capture" in text)
    Path("snippet.py").write_text(program, encoding="utf-8")
    return runpy.run_path("snippet.py")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_each_artefact_takes_the_call_that_the_table_shows(after_the_snippet, call):
    for name in (name for function, names in NEEDS.items() if function in call for name in names):
        pytest.importorskip(name)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(call, after_the_snippet)
    path, exported, inputs = re.search(r'"(.*?)"', call)[1], after_the_snippet["exported"], after_the_snippet["inputs"]
    assert Path(path).exists()
    if "to_hls4ml" not in call:
        assert verify(exported, inputs, path).differing == 0


def test_the_table_shows_every_artefact():
    assert {re.search(r"\.(\w+)\(", call)[1] for call in CALLS} == {"save", *NEEDS}


def test_the_loaded_network_gives_the_trained_bits(after_the_snippet):
    with torch.no_grad():
        expected = after_the_snippet["exported"].module()(after_the_snippet["inputs"])
        assert torch.equal(after_the_snippet["network"](after_the_snippet["inputs"]), expected)
