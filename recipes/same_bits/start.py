"""The network that every run starts from: the published ResNet-20 on CIFAR-10, or one that the recipe trains itself."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recipes.common.classification import ClassifierSettings, Splits, is_natural, recommended, train
from recipes.common.models import resnet

IMAGENET = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
"""ImageNet's mean and deviation of each channel, in pixel values, by which published networks scale their inputs."""


class Start(NamedTuple):
    """A trained network and the scaling of its inputs.

    Attributes:
        name: what result lines call it.
        model: the network.
        mean, deviation: of each channel, in pixel values 0 to 255, float32 [channels].
        natural: whether training crops and mirrors the pictures at random.
    """

    name: str
    model: nn.Module
    mean: Tensor
    deviation: Tensor
    natural: bool


def own(splits: Splits, data_set: str, model: str, epochs: int, folder: Path) -> Start:
    """Return a network after `epochs` of float32 training, which goes on where an earlier call was interrupted.

    Args:
        splits: training and test pictures.
        data_set, model: names in `recipes.common.data.DATA_SETS` and `recipes.common.models.MODELS`.
        epochs: passes over the training pictures.
        folder: where the checkpoint is written after each epoch.
    """
    settings = ClassifierSettings(
        data_set=data_set, model=model, method="float32", epochs=epochs, batch_size=128,
        **recommended(model, "float32"),
    )  # fmt: skip
    trained = train(settings, splits, folder / f"{data_set}-{model}-{epochs}").model
    name = f"{model} on {data_set}, epoch {epochs}"
    return Start(name, trained, *splits[0].statistics(), is_natural(data_set))


def published(path: Path) -> Start:
    """Return `recipes.common.models.resnet` with the weights of a published checkpoint.

    Args:
        path: a file of `{"state_dict": …}` whose keys read `module.conv1.weight`, `module.layer1.0.bn1.bias`, … and
            `module.linear.weight`: three stages of three blocks, with the parameter-free shortcut (option A).

    Raises:
        ValueError: the file holds something else; the message names the keys.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} must hold a dictionary with a 'state_dict', as published ResNet-20 checkpoints do")
    model = resnet()
    state: dict[str, Tensor] = {renamed(key): value for key, value in content["state_dict"].items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Checkpoints of old versions of PyTorch do not count the batches that a normalisation has seen.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} is not a ResNet-20 with option-A shortcuts: it lacks {missing} and adds {unexpected}")
    return Start(path.name, model, *IMAGENET, natural=True)


def renamed(key: str) -> str:
    """Return the name that a published checkpoint's tensor has in `recipes.common.models.resnet`."""
    key = key.removeprefix("module.")
    key = re.sub(r"^layer(\d)\.(\d)\.", lambda m: f"{3 * int(m[1]) + int(m[2])}.", key)
    key = re.sub(r"^(\d+)\.bn", r"\1.norm", key)
    for old, new in (("conv1", "0"), ("bn1", "1"), ("linear", "14")):
        key = re.sub(rf"^{old}\.", f"{new}.", key)
    return key
