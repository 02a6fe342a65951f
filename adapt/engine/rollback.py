"""Restore the optimizer and modules when attaching to them fails."""

from torch import nn
from torch.optim import Optimizer

from adapt.layers.optimizers import optimized
from adapt.torch_internals import set_version


class Snapshot:
    """Hooks, `forward` overrides, the optimizer's settings and the version counters of parameters and buffers.

    Args:
        optimizer: the optimizer.
        module: the module that owns its parameters, if known.
    """

    def __init__(self, optimizer: Optimizer, module: nn.Module | None) -> None:
        self._modules = [] if module is None else list(module.modules())
        attributes = [item for owner in (optimizer, *self._modules) for item in vars(owner).items()]
        hooks = [table for name, table in attributes if "hooks" in name and isinstance(table, dict)]
        self._tables = [(table, dict(table)) for table in (*hooks, *optimizer.param_groups)]
        self._overriding = {m for m in self._modules if "forward" in vars(m)}
        buffers = (buffer for m in self._modules for buffer in m.buffers(recurse=False))
        tensors = [tensor for tensor in (*optimized(optimizer), *buffers) if not tensor.is_inference()]
        self._versions = [(tensor, tensor._version) for tensor in tensors]

    def restore(self) -> None:
        """Restore them. The tensors' values must be restored already, so that graphs that saved them remain valid."""
        for table, before in self._tables:
            table.clear()
            table.update(before)
        for module in self._modules:
            if module not in self._overriding:
                vars(module).pop("forward", None)
        for tensor, version in self._versions:
            set_version(tensor, version)
