"""Let parameters alias their masters while an optimizer updates them, which saves copying back and forth."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.autograd.graph import increment_version


class Aliases:
    """Gives the parameters the masters' memory, and later their own memory back.

    Autograd sees the parameters as usual. An interrupted update leaves some masters updated and others not, just as it
    would leave the parameters of a plain optimizer.

    Args:
        parameters: the parameters.
        weights: the master of each.

    Attributes:
        are_possible: whether all parameters can change their memory; a subclass of Tensor may hold more than memory.
    """

    def __init__(self, parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self._parameters, self._weights = parameters, weights
        self._own: dict[int, Tensor] = {}
        self.are_possible = all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters)

    def __len__(self) -> int:
        """Return how many parameters are aliases now."""
        return len(self._own)

    def begin(self) -> None:
        """Make the parameters aliases of the masters, until `end`."""
        for i, (parameter, weight) in enumerate(zip(self._parameters, self._weights, strict=True)):
            self._own.setdefault(i, parameter.data)
            parameter.data = weight
        increment_version(self._parameters)

    def end(self, indices: Iterable[int], *, updated: bool = False) -> None:
        """Give these parameters their own memory again.

        Args:
            indices: the parameters' indices.
            updated: also copy W ← p for parameters that were not aliases, because the update wrote their own memory.
        """
        for i in indices:
            memory = self._own.pop(i, None)
            if memory is not None:
                self._parameters[i].data = memory
            elif updated:
                self._weights[i].copy_(self._parameters[i])
