"""Networks that the command line names."""

import importlib
import os
import sys

from torch import nn


def make_model(place: str, argument: str) -> nn.Module:
    """Return the network that a function without arguments makes, named as MODULE:FUNCTION.

    Args:
        place: such as mypackage.models:resnet20; this imports and runs it.
        argument: how the user names this argument, for the messages.

    Raises:
        ValueError, ImportError, TypeError: there is no such function, or it makes something else.
    """
    name, _, function = place.partition(":")
    if not name or not function:
        raise ValueError(f"{argument} must be MODULE:FUNCTION, got {place!r}")
    # As `python -m` does: what lies in the present folder can be imported.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")
    make = getattr(importlib.import_module(name), function, None)
    if not callable(make):
        raise ValueError(f"{argument} {place}: {name} has no function {function}")
    model = make()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{argument} {place} made a {type(model).__name__}, not a torch.nn.Module")
    return model
