"""hls4ml projects: types that hold every value, and the same bits in the C simulation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.numerics.format import Format
from tests.export.networks import Separable
from tests.export.synthetic import captured, mlp

pytest.importorskip("onnxscript")
pytest.importorskip("qonnx")
pytest.importorskip("hls4ml")

from adapt.export import hls4ml, hls4ml_types, verify
from adapt.export.onnx_graph import Graph

ROWS = torch.randn(5000, 12, generator=torch.Generator().manual_seed(1))
PICTURES = torch.randn(1000, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Convolution, batch norm, a residual block with a projection, max pooling and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.head = nn.Linear(6 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)) + self.shortcut(x))
        return self.head(F.max_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((7.75, 2), "fixed<6,4>"),
        ((8.0, 2), "fixed<7,5>"),
        ((0.25, 3), "fixed<3,0>"),
        ((0.125, 5), "fixed<4,-1>"),
        ((24.0, -3), "fixed<3,6>"),
        ((0.0, 3), "fixed<1,-2>"),
    ],
)
def test_the_type_of_a_range_is_the_shortest_that_holds_it(values, name):
    assert str(hls4ml_types.Range(*values)) == name


def test_types_hold_the_largest_sums():
    exported = captured(mlp(), weights=5, activations=8)
    types = hls4ml_types.precisions(Graph(hls4ml.simplified(exported, ROWS[:1]).model))
    assert types["global_in"] == {"result": "fixed<8,3,RND_CONV,SAT>"}
    largest = 4.0 * exported.values("0.weight").abs().sum(1).max()
    width, integer = map(int, types["MatMul_0"]["accum"].removeprefix("fixed<").removesuffix(">").split(","))
    assert 2.0 ** (integer - 2) <= largest < 2.0 ** (integer - 1)
    assert width - integer == 5 + 5


def test_what_has_no_type_is_refused_by_name(tmp_path):
    exported = captured(mlp(), weights=4)
    exported.formats["2.input"] = Format(*map(np.array, (8, 0.375, True, -128, 127)))
    with pytest.raises(ValueError, match=r"2\.input has 8 bits, step 0.375"):
        hls4ml.to_hls4ml(exported, tmp_path, ROWS)
    exported.formats["2.input"] = Format(*map(np.array, (1, 0.5, True, -1, 1)))
    with pytest.raises(ValueError, match=r"2\.input has one signed bit"):
        hls4ml.to_hls4ml(exported, tmp_path, ROWS)
    exported = captured(nn.Sequential(nn.Linear(12, 4), nn.GELU()), weights=4)
    with pytest.raises(ValueError, match="no exact types"):
        hls4ml.to_hls4ml(exported, tmp_path, ROWS)


def test_convolutions_that_hls4ml_reads_otherwise_are_refused_by_name(tmp_path):
    def refused(layer, message):
        exported = captured(nn.Sequential(layer), weights=4)
        with pytest.raises(ValueError, match=message + r".*, or export it to QONNX or ONNX"):
            hls4ml.to_hls4ml(exported, tmp_path / "project", PICTURES)

    refused(nn.Conv2d(4, 4, 3, groups=2), "0 has 2 groups")
    refused(nn.Conv2d(4, 8, 3, groups=4), "0 has 4 groups")
    refused(nn.Conv2d(4, 4, 3, dilation=2), r"0 has dilation \(2, 2\)")
    refused(nn.Conv3d(4, 4, 3), "0 has three dimensions")
    refused(nn.ConvTranspose2d(4, 4, 3), "0 is a transposed convolution")


def test_pooling_of_sequences_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pools sequences"):
        hls4ml.to_hls4ml(captured(Separable(), weights=5), tmp_path / "project", torch.zeros(1, 3, 16))


@pytest.mark.long
def test_the_c_simulation_of_convolutions_of_sequences_gives_the_same_bits(tmp_path):
    layers = (nn.Conv1d(3, 3, 3, padding=1, groups=3), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 6, 2, stride=2))
    exported = captured(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)), weights=5)
    sequences = torch.randn(1000, 3, 16, generator=torch.Generator().manual_seed(1))
    project = hls4ml.to_hls4ml(exported, tmp_path / "project", sequences)
    assert verify(exported, sequences, hls4ml.simulation(project, exported)).is_equal


@pytest.mark.long
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 17))
def test_the_c_simulation_of_a_dense_network_gives_the_same_bits(tmp_path, bits, signed):
    exported = captured(mlp(), weights=bits, activations=max(18 - bits, 4), signed=signed)
    project = hls4ml.to_hls4ml(exported, tmp_path / "project", ROWS)
    assert verify(exported, ROWS, hls4ml.simulation(project, exported)).is_equal


@pytest.mark.long
@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_the_c_simulation_of_a_residual_network_gives_the_same_bits(tmp_path, bits):
    exported = captured(Residual(), weights=bits, activations=6 if bits > 8 else 8)
    project = hls4ml.to_hls4ml(exported, tmp_path / "project", PICTURES)
    assert verify(exported, PICTURES, hls4ml.simulation(project, exported)).is_equal
