"""Parameters that are their masters while an optimizer updates them, where copies would go forth and back."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.autograd.graph import increment_version


class Lending:
    """Lends masters to their parameters and takes them back. Autograd sees the parameters as it always does.

    An update that is cut short leaves half of the masters updated, as it would leave the parameters of a plain
    optimizer.

    Args:
        parameters: the borrowers.
        weights: the master of each.

    Attributes:
        is_possible: whether all parameters can change their memory; a tensor's subclass may be more than its memory.
    """

    def __init__(self, parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._parameters, self._weights = parameters, weights
        self._own: dict[int, Tensor] = {}
        self.is_possible = all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters)

    def __len__(self) -> int:
        """How many masters are lent."""
        return len(self._own)

    def lend(self) -> None:
        """Let the parameters be the masters, until `take_back`."""
        for i, (parameter, weight) in enumerate(zip(self._parameters, self._weights, strict=True)):
            self._own.setdefault(i, parameter.data)
            parameter.data = weight
        increment_version(self._parameters)

    def take_back(self, indices: Iterable[int], *, updated: bool = False) -> None:
        """Give the parameters their own memory again; W ← p where one that was `updated` had it already."""
        for i in indices:
            memory = self._own.pop(i, None)
            if memory is not None:
                self._parameters[i].data = memory
            elif updated:
                self._weights[i].copy_(self._parameters[i])
