"""Re-estimate batch-norm statistics once the formats are frozen, as an even average over the first steps."""

from torch import nn

from adapt.torch_internals import BatchNormNd


class Reestimation:
    """Makes batch normalisation forget the statistics of earlier formats when fine-tuning begins.

    The first pass of fine-tuning replaces the running statistics, the following ones are averaged evenly with it, until
    the usual momentum is restored. So the statistics of every step belong to the frozen formats.

    Args:
        module: the module with the batch normalisations; None if it is not known.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._norms = [
            part
            for part in (() if module is None else module.modules())
            if isinstance(part, BatchNormNd) and part.running_mean is not None
        ]
        self._momenta: list[float | None] | None = None

    def begin(self, *, forget: bool = True) -> None:
        """Average evenly from now on.

        Args:
            forget: start a new average with the next pass; otherwise continue the one that was begun.
        """
        if self._momenta is None:
            self._momenta = [norm.momentum for norm in self._norms]
            for norm in self._norms:
                norm.momentum = None
                if forget and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.zero_()

    def end(self) -> None:
        """Restore the usual momentum."""
        for norm, momentum in zip(self._norms, self._momenta or (), strict=False):
            norm.momentum = momentum
        self._momenta = None

    def follow_pin(self) -> None:
        """Do nothing: statistics do not depend on the view."""

    def remove(self) -> None:
        """Restore the usual momentum, because the learner was detached."""
        self.end()
