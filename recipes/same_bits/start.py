"""The network that every run starts from: the published ResNet-20, or one that the recipe trains itself."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.common.models import resnet20

MEAN = torch.tensor([0.485, 0.456, 0.406]) * 255
DEVIATION = torch.tensor([0.229, 0.224, 0.225]) * 255
"""Mean and deviation of each channel, in pixel values 0 to 255, by which the published network's inputs are scaled."""


def published(path: Path) -> nn.Module:
    """Return `recipes.common.models.resnet20` with the weights of a published checkpoint.

    Args:
        path: a file of `{"state_dict": …}` whose keys read `module.conv1.weight`, `module.layer1.0.bn1.bias`, … and
            `module.linear.weight`: three stages of three blocks, with the parameter-free shortcut (option A).

    Raises:
        ValueError: the file holds something else; the message names the keys.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} must hold a dictionary with a 'state_dict', as published ResNet-20 checkpoints do")
    model = resnet20()
    state: dict[str, Tensor] = {renamed(key): value for key, value in content["state_dict"].items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Checkpoints of old versions of PyTorch do not count the batches that a normalisation has seen.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} is no ResNet-20 with option-A shortcuts: it lacks {missing} and adds {unexpected}")
    return model


def renamed(key: str) -> str:
    """Return the name in `recipes.common.models.resnet20` of a published checkpoint's tensor."""
    key = key.removeprefix("module.")
    key = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"{3 * int(m[1]) + int(m[2])}.", key)
    key = re.sub(r"^(\d+)\.bn", r"\1.norm", key)
    for old, new in (("conv1", "0"), ("bn1", "1"), ("linear", "14")):
        key = re.sub(rf"^{old}\.", f"{new}.", key)
    return key
