"""QONNX files, executed by qonnx itself."""

import numpy as np
import pytest
import torch

from adapt.numerics import Precision
from adapt.numerics.format import Format
from tests.export.synthetic import Chars, ConvNet, captured, mlp

pytest.importorskip("onnxscript")
pytest.importorskip("qonnx")

from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from adapt.export import to_qonnx, verify
from tests.export.test_onnx import some

PICTURES = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(500, 12, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(1))


def cleaned(path):
    """A QONNX file after qonnx's own clean-up."""
    cleanup_model(ModelWrapper(str(path))).save(str(path.with_name("clean.onnx")))
    return path.with_name("clean.onnx")


@pytest.mark.parametrize("bits", some([3], [2, 4, *range(5, 17)]))
def test_a_convolutional_network_gives_the_same_bits(tmp_path, bits):
    exported = captured(ConvNet(), weights=bits, activations=6)
    to_qonnx(exported, tmp_path / "a.onnx", PICTURES)
    assert verify(exported, PICTURES, tmp_path / "a.onnx").is_equal
    assert verify(exported, PICTURES, cleaned(tmp_path / "a.onnx")).is_equal


@pytest.mark.parametrize("options", [{"channels": True}, {"signed": False}])
def test_channels_and_unsigned_activations_give_the_same_bits(tmp_path, options):
    exported = captured(mlp(), weights=5, activations=7, **options)
    exported.formats["2.input"] = Format(*map(np.array, (6, 2.0**-3, True, -31, 31)))
    exported.formats["2.output"] = Format(*map(np.array, (6, 2.0**-3, True, -20, 25)))
    to_qonnx(exported, tmp_path / "a.onnx", ROWS)
    assert verify(exported, ROWS, cleaned(tmp_path / "a.onnx")).is_equal


def test_one_bit_and_long_words_give_the_same_bits(tmp_path):
    exported = captured(mlp(), weights=4)
    exported.formats["0.output"] = Format(*map(np.array, (1, 0.5, True, -1, 1)))
    exported.formats["2.input"] = Format.of(Precision(20, 15))
    to_qonnx(exported, tmp_path / "a.onnx", ROWS)
    assert verify(exported, ROWS, tmp_path / "a.onnx").is_equal


def test_a_transformer_runs(tmp_path):
    exported = captured(Chars(), weights=5, activations=8)
    to_qonnx(exported, tmp_path / "a.onnx", TEXT)
    assert verify(exported, TEXT, tmp_path / "a.onnx").share > 0.99
