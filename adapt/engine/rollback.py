"""Putting optimizer, modules and parameters back as they were when attaching to them fails."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer

from adapt.layers.optimizers import optimized


@contextlib.contextmanager
def unchanged_on_failure(optimizer: Optimizer, module: nn.Module | None) -> Iterator[None]:
    """Restore hooks, `forward` overrides, the optimizer's settings and version counters if the block raises.

    The block itself restores the parameters' values.

    Args:
        optimizer: the optimizer.
        module: the module that owns its parameters, if it is known.
    """
    modules = [] if module is None else list(module.modules())
    owners = (optimizer, *modules)
    hooks = [table for o in owners for name, table in vars(o).items() if "hooks" in name and isinstance(table, dict)]
    before = [(table, dict(table)) for table in (*hooks, *optimizer.param_groups)]
    own_forward = {m for m in modules if "forward" in vars(m)}
    # The same values are back, so a graph that saved them can still run backward.
    versions = _unsafe_preserve_version_counter(tuple(p for p in optimized(optimizer) if not p.is_inference()))
    try:
        yield
    except BaseException:
        for table, content in before:
            table.clear()
            table.update(content)
        for owner in modules:
            if owner not in own_forward:
                vars(owner).pop("forward", None)
        versions.__exit__()
        raise
