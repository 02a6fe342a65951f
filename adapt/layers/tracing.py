"""Refuse `torch.jit.trace`, which would record the rounding of one forward pass as constants.

Drawing the graph of a network is allowed, because nothing computes with a drawing; it shows no rounding.
"""

import sys

from adapt import torch_internals

_DRAWING = ("torch.utils.tensorboard", "tensorboardX")


def is_drawn() -> bool:
    """Return whether `torch.jit.trace` records the forward pass only for TensorBoard's drawing.

    Raises:
        RuntimeError: the pass is traced for another purpose.
    """
    if not torch_internals.tracing_state():
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").startswith(_DRAWING):
            return True
        frame = frame.f_back
    raise RuntimeError(
        "a module with an attached controller cannot be traced, as torch.jit.trace and torch.onnx.export(dynamo=False) "
        "do: call detach() on the controller first, or use adapt.export"
    )


def require_plain() -> None:
    """Refuse to round an activation that is transformed or recorded, because rounding is no operation of torch here.

    Raises:
        NotImplementedError: a transform of `torch.func` is active, or `make_fx` records the pass.
    """
    if torch_internals.is_transforming():
        raise NotImplementedError(
            "transforms of torch.func and make_fx cannot trace the rounding of activations: apply them to a model of "
            "which only the weights are quantised, or after detach()"
        )
