"""Counts of well-known networks, beside those that were printed and those that follow by hand from their tables."""

import pytest
import torch
from torch import nn

from adapt.perfmodel import activation_sizes, memory_footprint, network_cost, operations, weight_memory
from recipes.common.gpt import CharGPT
from recipes.common.models import resnet
from tests.perfmodel.published import efficientnet_b0, resnet18, resnet50

PICTURE, SMALL_PICTURE = torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 32, 32)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def weights(model):
    """Weights of convolutions and dense layers, which AQT counts: no biases and no normalisation."""
    return weight_memory([weight.numel() for weight in model.parameters() if weight.ndim >= 2], 1)


@pytest.mark.parametrize(
    ("make", "picture", "count", "multiply_adds", "largest"),
    [
        # LSQ trade-off, table 2: 270k / 16k. He et al. 4.2 without the shortcut's parameters.
        (resnet, SMALL_PICTURE, 269_722, 40_551_040, 16 * 32 * 32),
        # Table 2: 11.7M / 0.8M.
        (resnet18, PICTURE, 11_689_512, 1_814_073_344, 64 * 112 * 112),
        # Table 2: 5.3M / 1.2M. The largest activation lies in the second stage, before its stride: 6·16 channels.
        (efficientnet_b0, PICTURE, 5_288_548, None, 96 * 112 * 112),
        (resnet50, PICTURE, 25_557_032, 4_089_184_256, 64 * 112 * 112),
    ],
    ids=["ResNet-20", "ResNet-18", "EfficientNet-B0", "ResNet-50"],
)
def test_networks_for_pictures(make, picture, count, multiply_adds, largest):
    model = make()
    assert parameters(model) == count
    assert max(activation_sizes(model, picture).values()) == largest
    found = sum(operations(model, picture).values())
    # Tan and Le 2019, table 2, prints 0.39B for EfficientNet-B0.
    assert found == multiply_adds if multiply_adds is not None else round(found / 1e9, 2) == 0.39


def test_resnet20_by_hand():
    """He et al. 2015, 4.2: 3×3 convolutions of 16, 32 and 64 channels on 32², 16² and 8² pixels, 6 in each stage."""
    first, last = 27 * 16 * 32**2, 64 * 10
    stages = 6 * 144 * 16 * 32**2 + (144 + 5 * 288) * 32 * 16**2 + (288 + 5 * 576) * 64 * 8**2
    assert sum(operations(resnet(), SMALL_PICTURE).values()) == first + stages + last


@pytest.mark.parametrize(("multiplier", "count", "printed"), [(1.0, 25_502_912, 25.5), (2.0, 97_896_832, 97.8)])
def test_the_weights_of_a_resnet50_by_filter_multiplier(multiplier, count, printed):
    """AQT, section 5.3, prints 25.5M and 97.8M: the weights, cut off after the digit; with biases and normalisation
    they are 25.6M and 98.0M."""
    found = weights(resnet50(multiplier))
    assert found == count
    assert found // 1e5 / 10 == printed
    # By hand: all weights grow with the square, but those of the first convolution and the last layer.
    ends = 7 * 7 * 3 * 64 + 2048 * 1000
    assert found == multiplier**2 * (25_502_912 - ends) + multiplier * ends


def test_costs_in_proportion_to_the_baseline():
    """AQT, section 4: 4 bits cost a quarter of bfloat16 in the linear model and a sixteenth in the quadratic one."""
    counts = operations(resnet50(), PICTURE)
    for model, ratio in (("linear", 1 / 4), ("quadratic", 1 / 16)):
        assert network_cost(counts, 4, model=model) == ratio * network_cost(counts, 16, model=model)


def test_the_footprint_of_efficientnet_b0():
    """LSQ trade-off, section 4.2: "memory requirements of 26 MB to infer on a single 224×224 image"."""
    model = efficientnet_b0()
    largest = max(activation_sizes(model, PICTURE).values())
    bits = memory_footprint(parameters(model), largest, 32, 32)
    assert bits == 32 * (5_288_548 + 1_204_224)
    assert round(bits / 8e6) == 26


def test_a_gpt_block():
    """12·d² weights, of which each meets every token once, 9·d biases and 4·d in normalisation; 4·d·tokens at most."""
    width, tokens = 48, 20
    model = CharGPT(65, context=tokens, layers=1, width=width, heads=4)
    block: nn.Module = model.blocks[0]
    assert parameters(block) == 12 * width**2 + 13 * width
    text = torch.zeros(3, tokens, dtype=torch.long)
    counts = {name: count for name, count in operations(model, text).items() if name.startswith("blocks.")}
    assert sum(counts.values()) == 12 * width**2 * tokens
    assert max(activation_sizes(model, text).values()) == max(4 * width, 65) * tokens
