"""Taking a trained network out of its training: words, formats, and a plain copy of the module."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.engine.engine import Engine
from adapt.export.backends import Attached, controller_of
from adapt.export.bits import smallest_type
from adapt.export.checkpoints import load_into
from adapt.export.exported import Exported
from adapt.export.structure import plain_copy, require_layers, unwrapped
from adapt.export.verification import verify
from adapt.numerics.format import Format


def capture(source: Any, module: nn.Module | None = None, *, inputs: Any = None) -> Exported:
    """Take a trained network out of its training, as integer words and formats.

    What is captured is what evaluation sees: masters rounded to nearest, activations rounded where the run rounds
    them. The words' values are compared with the weights that the attached model shows in evaluation, and with
    `inputs` the captured network's outputs with the attached model's; a bit that differs raises.

    Layers that `execution` runs in bfloat16 or float16 are captured in float32, which is what their words and formats
    mean; their outputs are compared with those of the attached model in float32.

    Args:
        source: a `Controller` or `Learner`, an optimizer that has one, or a Lightning callback, during or after its
            fit; or the path of a checkpoint, whose weights and formats are those that were validated when it was saved.
        module: the trained module; the one that was given to `attach` if None. With a checkpoint a module of the same
            network with any weights, which stays as it is.
        inputs: what to compare outputs on: a tensor, a tuple of forward's positional arguments, or a list of them.

    Returns:
        The captured network. It shares no memory with the trained one.

    Raises:
        TypeError: the source is of another kind.
        ValueError: there is no module, or the checkpoint holds no weights of it or no formats; or inputs are given, but
            there is no attached model to run on them.
        RuntimeError: the captured network differs from the attached one; or the controller was detached, and the
            weights are not those that `detach()` left, rounded to nearest.
        NotImplementedError: weights are spread over processes.
        OSError: the checkpoint cannot be opened.
    """
    if isinstance(source, str | os.PathLike):
        if module is None:
            raise ValueError("a checkpoint holds no architecture: pass an instance of the trained network as module=")
        if inputs is not None:
            raise ValueError("a checkpoint has no attached model to compare outputs with: leave inputs out")
        structure = plain_copy(unwrapped(module))
        return _exported(structure, load_into(structure, source), {"checkpoint": Path(source).name})
    controller = controller_of(source)
    if controller is None:
        raise TypeError(
            "source must be a controller, an optimizer that has one, a Lightning callback or a checkpoint's path, got "
            f"{source!r:.80}"
        )
    if module is None and (module := controller._module) is None:
        raise ValueError("the controller was attached to parameters alone: pass the trained module as module=")
    model = unwrapped(module)
    if not controller.is_attached:
        return _left(controller, model, inputs)
    with controller.evaluation_weights():
        exported = _present(controller, model)
    if inputs is not None:
        found = verify(exported, inputs, Attached(controller, model))
        if not found.is_equal:
            raise RuntimeError(f"the captured network differs from the attached one: {found}")
    return exported


def _left(controller: Engine, model: nn.Module, inputs: Any) -> Exported:
    """Capture what `detach` has left: weights rounded to nearest, as after `fit`."""
    if inputs is not None:
        raise ValueError(
            "the controller was detached and no longer rounds anything, so there are no outputs to compare with: leave "
            "inputs out, or capture before detach()"
        )
    try:
        return _present(controller, model)
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}. The controller was detached, and the weights have changed since or are the masters: capture "
            "before detach(), or what detach() leaves"
        ) from error


def _present(controller: Engine, model: nn.Module) -> Exported:
    """Capture what the parameters hold now, which must lie on the controller's formats."""
    # A module may hold the optimizer that trains it.
    structure = plain_copy(model, without=(controller, controller.optimizer))
    decided_by = getattr(controller, "plan", None) or getattr(controller, "policy", None)
    return _exported(structure, controller.formats, {"policy": repr(decided_by)})


def _exported(structure: nn.Module, formats: dict[str, Format], origin: dict[str, str]) -> Exported:
    """Capture a plain module whose quantised parameters lie on the grids of their formats.

    Raises:
        RuntimeError: one does not.
    """
    words: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    known: dict[Any, str] = {}
    for name, value in structure.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise NotImplementedError(f"{name} of the module's state_dict is {type(value).__name__}, not a tensor")
        first = known.setdefault(id(value), name)
        if first != name:
            aliases[name] = first
        elif name in formats:
            form, shown = formats[name], value.detach()
            words[name] = form.integers(shown).to(smallest_type(form)).contiguous()
            if not torch.equal(form.values(words[name]), shown):
                raise RuntimeError(f"{name} does not lie on the grid of its format {form}, which evaluation rounds to")
        else:
            tensors[name] = value.detach().clone()
    require_layers(structure, [name for name in formats if name not in words])
    return Exported(words, formats, tensors, aliases, structure, origin)
