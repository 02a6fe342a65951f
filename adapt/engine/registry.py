"""The attached engines: at most one for each optimizer, and no parameter in two of them."""

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.engine.engine import Engine
from adapt.engine.rollback import Snapshot
from adapt.layers.optimizers import optimized

Kind = TypeVar("Kind", bound=Engine)

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def engines() -> list[Engine]:
    """Return all attached engines."""
    return [engine for engine in list(_engines) if engine.is_attached]


def attached(optimizer: Optimizer) -> Engine | None:
    """Return the engine attached to the optimizer, if any."""
    return next((engine for engine in engines() if engine.optimizer is optimizer), None)


def register(
    optimizer: Optimizer, module: nn.Module | None, make: Callable[[], Kind], begin: Callable[[Kind], Any] | None = None
) -> Kind:
    """Make an engine, attach it, and remember it for as long as it lives. A failure leaves everything as it was.

    Args:
        optimizer, module: what the engine is attached to.
        make: returns the engine.
        begin: called with the attached engine; if it fails, the engine is detached again.
    """
    before, engine = Snapshot(optimizer, module), None
    try:
        engine = make()
        engine.attach()
        if begin is not None:
            begin(engine)
    except BaseException:
        if engine is not None:
            engine.release("masters")
        before.restore()
        raise
    _engines.add(engine)
    return engine


def check_free(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Check that nothing is attached to this optimizer or to its parameters.

    Raises:
        ValueError: the optimizer has a controller, or another optimizer's controller keeps one of the parameters.
    """
    if attached(optimizer) is not None:
        raise ValueError("optimizer has a controller already: call the controller's detach() before attaching again")
    mine = {id(parameter) for parameter in optimized(optimizer)}
    taken = [name for name, parameter in parameters.items() if id(parameter) in mine & _managed()]
    if taken:
        # An optimizer and its controller refer to each other, so one that was just dropped may still be there.
        gc.collect()
    for name in taken:
        if id(parameters[name]) in _managed():
            raise ValueError(f"params holds {name}, which another optimizer's controller manages: detach() it first")


def _managed() -> set[int]:
    """Return the ids of all parameters of which an attached engine keeps masters."""
    return {id(p) for engine in engines() for masters in engine.all_masters for p in masters.parameters}
