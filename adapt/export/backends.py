"""Everything that can run a captured network: modules, the attached model, packed files, integers, functions."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adapt.engine.engine import Engine
from adapt.engine.registry import attached
from adapt.execution.reduced_layer import ReducedLayer
from adapt.export.exported import Exported
from adapt.export.integer import IntegerNetwork
from adapt.export.loading import load
from adapt.export.structure import unwrapped
from adapt.torch_internals import tree_leaves


class Outcome(NamedTuple):
    """What a network computed, on the CPU.

    Attributes:
        outputs: the tensors that it returned.
        layers: what its quantised layers returned, by their paths and in the order of execution; empty if the runtime
            does not show them.
    """

    outputs: list[Tensor]
    layers: Mapping[str, Tensor]


class Attached(NamedTuple):
    """The trained model and its controller, to be run in evaluation."""

    controller: Engine
    module: nn.Module | None


Backend = Callable[[tuple[Any, ...]], Outcome]

OPENERS: dict[str, Callable[[Path, Exported], Any]] = {}
"""Functions that open the files of other runtimes, by suffix such as ".onnx", and return what `backend` takes."""


def backend(against: Any, exported: Exported) -> Backend:
    """Return a function that runs a network.

    Args:
        against: an artefact by its path, a packed file unless its suffix is in `OPENERS`; an `IntegerNetwork`; a
            module; a controller, or an optimizer or callback that has one, for the attached model in evaluation; or a
            function that takes the inputs and returns the outputs.
        exported: the captured network.

    Raises:
        OSError, ValueError: the file cannot be read, or has no architecture.
        TypeError: `against` is none of these.
    """
    if isinstance(against, str | os.PathLike):
        path = Path(against)
        opener = OPENERS.get(path.suffix)
        return backend(opener(path, exported) if opener else load(path, exported.structure).module(), exported)
    if isinstance(against, IntegerNetwork):
        return lambda inputs: Outcome(*against(*inputs))
    if isinstance(against, nn.Module):
        return lambda inputs: _observed(against, exported.layers, inputs)
    if (controller := controller_of(against)) is not None:
        against = Attached(controller, controller._module)
    if isinstance(against, Attached):
        return lambda inputs: _attached(*against, exported.layers, inputs)
    if callable(against):
        return lambda inputs: Outcome(_tensors(against(*inputs)), {})
    raise TypeError(f"against must be a file, a module, a controller or a function of the inputs, got {against!r:.80}")


def controller_of(source: Any) -> Engine | None:
    """Return a controller, or that of an optimizer or a Lightning callback; None of anything else."""
    if isinstance(source, torch.optim.Optimizer):
        return attached(source)
    found = source if isinstance(source, Engine) else getattr(source, "controller", None)
    return found if isinstance(found, Engine) else None


def _attached(controller: Engine, module: nn.Module | None, paths: Collection[str], inputs: tuple[Any, ...]) -> Outcome:
    if module is None:
        raise ValueError("the controller was attached to parameters alone, so there is no model to compare with")
    model = unwrapped(module)
    with controller.evaluation_weights():
        return _observed(model, paths, inputs)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode and computes its products in float32."""
    modes = {part: part.training for part in model.modules()}
    reduced = [f for part in modes if isinstance(f := part.__dict__.get("forward"), ReducedLayer) and f.active]
    with ExitStack() as restoring:
        for part, mode in modes.items():
            restoring.callback(setattr, part, "training", mode)
            part.training = False
        for layer in reduced:
            restoring.callback(setattr, layer, "active", True)
            layer.active = False
        yield


def _observed(model: nn.Module, paths: Collection[str], inputs: tuple[Any, ...]) -> Outcome:
    """Return what a module computes in evaluation mode, and what the modules at these paths return."""
    layers: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                # Copied, because later layers may work in place.
                layers[path] = output.detach().cpu().clone()

        return look

    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    with ExitStack() as watching, torch.no_grad(), _evaluating(model):
        for path, module in model.named_modules():
            if path in paths:
                watching.enter_context(module.register_forward_hook(watch(path)))
        outputs = model(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs))
    return Outcome(_tensors(outputs), layers)


def _tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors in the outputs of a network."""
    return [torch.as_tensor(leaf).detach().cpu() for leaf in tree_leaves(outputs) if leaf is not None]
