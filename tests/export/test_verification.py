"""The proof tells equal from unequal, by how much and where, and says where it could not have been otherwise."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adapt
from adapt.export import IntegerNetwork, capture, verify
from adapt.export.bounds import accumulator_bounds
from adapt.export.dyadic import Dyadic
from adapt.export.integer_operations import OPERATIONS
from tests.export.networks import Residual, Tied, Transposed, TransposedWeights, adaptive, with_lsq, with_widths


def test_the_packed_file_the_attached_model_and_integers_agree(tmp_path):
    run = adaptive(Residual, activations=8, quantize_biases=True)
    exported = capture(run.controller)
    exported.save(tmp_path / "net.safetensors")
    for against in (run.controller, run.optimizer, tmp_path / "net.safetensors", IntegerNetwork(exported)):
        found = verify(exported, [run.inputs, run.inputs + 1], against)
        assert (found.outputs, found.differing, found.largest, found.first) == (100, 0, 0.0, "")
        assert found.is_equal
        assert found.share == 1.0
        assert found.unit == "steps"
        assert str(found).startswith("all of 100 outputs are equal\nthe sums of 3 of 3 layers are exact in any order")


@pytest.mark.covering(2)
@pytest.mark.parametrize("options", [{"activations": 8}, {"activations": 5, "quantize_biases": True}])
@pytest.mark.parametrize("kind", [Residual, Transposed, TransposedWeights])
@pytest.mark.parametrize("word_length", [2, 4, 8])
def test_integers_compute_what_float32_computes(kind, options, word_length):
    run = adaptive(kind, adapt.Fixed(adapt.Precision(word_length, word_length)), **options)
    exported = capture(run.controller)
    found = verify(exported, run.inputs, IntegerNetwork(exported))
    assert found.is_equal, found


class Everything(nn.Module):
    """Operations that the integer reference knows and the other networks lack."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(3, 4, 3, bias=False)
        self.conv = nn.Conv2d(4, 4, (3, 1), padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        y = self.line(x.flatten(2)[:, :, :18]).unflatten(2, (4, 4))
        y = F.relu6(3 * self.norm(self.conv(y))) + F.pad(F.avg_pool2d(y, 2), (1, 1, 1, 1))
        y = F.hardtanh(y, -0.75, 2.5).transpose(2, 3) + 0.3
        a, b = F.max_pool2d(y, 3, 1, padding=1)[:, :, ::2, ::2], F.adaptive_avg_pool2d(y, (2, 2))
        return (
            self.head(torch.stack([a, b], 1).flatten(1))
            if self.training
            else self.head(torch.cat([a, b], 1).flatten(1))
        )


def test_integers_compute_other_operations_too():
    run = adaptive(Everything, activations=6, quantize_biases=True)
    exported = capture(run.controller, inputs=run.inputs)
    found = verify(exported, run.inputs, IntegerNetwork(exported))
    assert found.is_equal, found


def test_sums_are_refused_for_what_they_need_and_not_for_what_other_inputs_would():
    linear, weight = OPERATIONS["linear"], torch.tensor([[1.0, 8191.0]])
    x = torch.tensor([[4096.0, 1.0], [1.0, 2.0]])
    assert torch.equal(linear(Dyadic.of(x), Dyadic.of(weight)).float(), F.linear(x, weight))
    with pytest.raises(ValueError, match="24 bits"):
        linear(Dyadic.of(x.flip(1)), Dyadic.of(weight))


def test_what_has_no_integer_reference_is_refused_by_name():
    run = adaptive(Tied, activations=8)
    with pytest.raises(NotImplementedError, match=r"in .* has no integer reference"):
        IntegerNetwork(capture(run.controller))(run.inputs)
    run = adaptive(Residual, adapt.Fixed(adapt.Precision(20, 18)), activations=20)
    with pytest.raises(ValueError, match="conv1: its sums may need more than 24 bits"):
        IntegerNetwork(capture(run.controller))(run.inputs)
    with pytest.raises(ValueError, match=r"conv1\.weight has .*power_of_two=True"):
        IntegerNetwork(capture(with_lsq(Residual).controller))
    with pytest.raises(ValueError, match="infinite"):
        IntegerNetwork(capture(adaptive(Residual, activations=8).controller))(run.inputs * torch.inf)


def test_a_difference_is_counted_measured_and_found():
    run = adaptive(Residual, activations=8)
    exported = capture(run.controller)
    step = float(exported.formats["head.output"].step)

    other = exported.module()
    other.head.bias.data[0] += 3 * step
    found = verify(exported, run.inputs, other)
    assert found.first == "head"
    assert (found.outputs, found.differing) == (50, 10)
    assert found.unit == "steps"
    assert found.largest == 3
    assert found.share == 0.8
    assert "10 of 50 outputs differ, by up to 3 steps, first in head" in str(found)

    other = exported.module()
    other.conv2.weight.data[:] *= 2
    assert verify(exported, run.inputs, other).first == "conv2"


def test_outputs_without_a_format_differ_by_units_in_the_last_place():
    run = adaptive(Residual)
    exported = capture(run.controller)
    module = exported.module()
    found = verify(exported, run.inputs, lambda x: torch.nextafter(module(x), torch.tensor(torch.inf)))
    assert (found.differing, found.largest, found.unit) == (50, 1, "ulp")
    assert found.first == "an unknown layer"


def test_other_shapes_and_things_are_refused():
    run = adaptive(Residual)
    exported = capture(run.controller)
    with pytest.raises(ValueError, match=r"shapes \[\[10, 5\]\]"):
        verify(exported, run.inputs, lambda x: x)
    with pytest.raises(TypeError, match="against must be"):
        verify(exported, run.inputs, 7)
    with pytest.raises(FileNotFoundError):
        verify(exported, run.inputs, "nothing.safetensors")


# Bounds


def test_bounds_are_those_of_the_formula():
    run = adaptive(Residual, activations=8, quantize_biases=True)
    exported = capture(run.controller)
    bounds = accumulator_bounds(exported)
    assert list(bounds) == ["conv1", "conv2", "head"]
    for path, bound in bounds.items():
        weight, inputs = exported.formats[f"{path}.weight"], exported.formats[f"{path}.input"]
        sums = 128 * exported.words[f"{path}.weight"].long().abs().flatten(1).sum(1)
        if path != "conv1":
            unit = float(weight.step * inputs.step)
            bias = exported.values(f"{path}.bias").double().abs() / unit
            assert torch.equal(bias, bias.round()), "the grid of these biases is no finer than that of the products"
            sums = sums + bias
        assert bound.holds
        assert bound.bits == pytest.approx(math.log2(sums.max()))


def test_transposed_convolutions_are_summed_by_their_output_channels():
    exported = capture(adaptive(Transposed, activations=7, quantize_biases=True).controller)
    for path in ("up", "depthwise"):
        layer = exported.structure.get_submodule(path)
        magnitude = layer.weight.detach().abs() / float(exported.formats[f"{path}.weight"].step)
        ones = torch.full((1, layer.in_channels, 5, 5), 64.0)
        largest = F.conv_transpose2d(ones, magnitude, None, 1, groups=layer.groups).max()
        assert 2 ** accumulator_bounds(exported)[path].bits >= largest


def test_weights_that_lie_the_other_way_are_summed_by_their_output_channels():
    exported = capture(adaptive(TransposedWeights, activations=7, quantize_biases=True).controller)
    form, inputs = exported.formats["hidden.weight"], exported.formats["hidden.input"]
    sums = 64 * exported.words["hidden.weight"].long().abs().sum(0)
    sums = sums + exported.values("hidden.bias").abs() / float(form.step * inputs.step)
    assert accumulator_bounds(exported)["hidden"].bits == pytest.approx(math.log2(sums.max()))


def test_what_bounds_do_not_cover_has_a_reason():
    def reasons(run):
        return {bound.reason for bound in accumulator_bounds(capture(run.controller)).values() if not bound.holds}

    assert reasons(adaptive(Residual)) == {"its inputs are not rounded"}
    assert reasons(with_widths(Residual)) == {"its steps are no powers of two, so that products are rounded"}
    long = reasons(adaptive(Residual, adapt.Fixed(adapt.Precision(16, 14)), activations=16, quantize_biases=True))
    assert all("its sums can need" in reason for reason in long)
    assert all("lies on a finer grid" in reason for reason in reasons(adaptive(Residual, activations=8)))
