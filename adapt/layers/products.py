"""The layers that are a product with a weight: linear layers and convolutions."""

from torch import nn

PRODUCTS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Modules whose forward pass multiplies its input by the weight, and whose activations can therefore be rounded."""
