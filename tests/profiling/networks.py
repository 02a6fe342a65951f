"""Networks that the tests of the command name."""

from torch import nn


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 5))


def text():
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))


def risky():
    """A network whose layer's name must be escaped."""
    network = nn.Sequential()
    network.add_module("<b>&", nn.Linear(3, 2))
    return network
