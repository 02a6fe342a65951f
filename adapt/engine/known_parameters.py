"""The parameters of an optimizer by name, and whether some have joined since the last check."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from adapt.layers.naming import plain_names
from adapt.layers.optimizers import optimized


class KnownParameters:
    """Names the parameters of an optimizer, including those that join later, and detects when some have joined.

    Args:
        optimizer: the optimizer.
        module: provides names for parameters that join; parameters outside it are numbered.
        parameters: the parameters that already have a name, not necessarily all in the optimizer.

    Attributes:
        by_name: every named parameter.
    """

    def __init__(self, optimizer: Optimizer, module: nn.Module | None, parameters: Mapping[str, Tensor]) -> None:
        self._optimizer, self._module = optimizer, module
        self.by_name = dict(parameters)
        self.remember()

    def remember(self) -> None:
        """Remember which parameters there are now, and which of them are frozen."""
        self._identities_then = self._identities()
        self._frozen = [p for p in optimized(self._optimizer) if not p.requires_grad]

    @property
    def changed(self) -> bool:
        """Whether parameters have joined the optimizer, or were unfrozen, since `remember`."""
        return self._identities() != self._identities_then or any(p.requires_grad for p in self._frozen)

    @property
    def present(self) -> dict[str, Tensor]:
        """The parameters of the optimizer that have a name."""
        inside = {id(p) for p in optimized(self._optimizer)}
        return {name: p for name, p in self.by_name.items() if id(p) in inside}

    def name_all(self) -> None:
        """Give a name to every parameter of the optimizer."""
        names = {id(p): name for name, p in self.by_name.items()}
        if self._module is not None:
            found = dict(self._module.named_parameters())
            plain = plain_names(found)
            names |= {id(p): plain[name] for name, p in found.items()}
        for parameter in optimized(self._optimizer):
            name = names.setdefault(id(parameter), f"parameter_{len(names)}")
            # A module may have been replaced by one with the same name while the optimizer holds parameters of both.
            while self.by_name.get(name, parameter) is not parameter:
                name += "'"
            self.by_name[name] = parameter

    def _identities(self) -> list[int]:
        """Return the parameters' ids, which cannot be reused: `by_name` keeps every parameter alive."""
        return [id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]]
