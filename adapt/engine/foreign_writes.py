"""Weights that other code writes into the parameters: they become masters, and formats are fitted to new ones."""

from collections.abc import Collection, Iterable, Sequence

import torch

from adapt import user_warnings
from adapt.engine.run import Run
from adapt.engine.views import Views
from adapt.weights.comparison import are_replaced


class ForeignWrites:
    """Takes what other code wrote into a run's parameters as masters.

    Formats are fitted to weights that are new: loaded into the module, or replaced before the first step in any other
    way. Layers whose formats came with the optimizer's state keep them.

    Args:
        run: whose parameters to follow.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._restored: set[str] = set()
        self._unfit: dict[str, None] = {}

    @property
    def follow_state(self) -> bool:
        """Whether a state was loaded since the last step."""
        return bool(self._restored)

    @property
    def may_refit(self) -> bool:
        """Whether new weights would get other formats: before the first step, or since a state was loaded."""
        return bool(self._restored) or not self._run.step

    def begin_step(self) -> None:
        """Forget that a state was loaded, because a step follows it."""
        self._restored = set()

    def keep_formats(self, names: Iterable[str]) -> None:
        """Until the next step, keep the formats of these layers, which came with a state, whatever is loaded."""
        self._restored, self._unfit = set(names), {}

    # A forward pass may find writes in inference mode, but the tensors created here are written in training.
    @torch.inference_mode(False)
    @torch.no_grad()
    def take(self, views: Views, loaded: Sequence[Collection[int]] = ()) -> None:
        """Take what was written since the last call.

        Args:
            views: restores what the parameters show after formats were fitted.
            loaded: for each of the run's `all_masters`, the indices of the parameters that were just loaded.
        """
        all_masters = self._run.all_masters
        new = [set(indices) for indices in loaded or [()] * len(all_masters)]
        written = [masters.written() for masters in all_masters]
        for masters, indices, found in zip(all_masters, new, written, strict=True):
            if self._restored:
                # A view of the same masters, which a checkpoint holds, must not become masters.
                same = {i for i in found if masters.is_view(i)}
                for i in same:
                    masters.show_again(i)
                found -= same
            if self.may_refit:
                indices |= {i for i in found if are_replaced(masters.parameters[i].detach(), masters.expected(i))}
            indices -= {i for i, name in enumerate(masters.names) if name in self._restored}
        # All of them, because fitting formats overwrites every parameter.
        for masters, found in zip(all_masters, written, strict=True):
            masters.take_writes(found)
        if any(new):
            shown = views.shown
            self._unfit |= dict.fromkeys(self._run.refit(new))
            views.show(shown)
        elif any(written) and not self._restored:
            self._unfit |= dict.fromkeys(self._run.misfits(written[0]))

    def warn_if_unfit(self) -> None:
        """Warn of loaded weights that keep formats of earlier ones. Not on loading: their own state may follow."""
        if self._unfit:
            names, self._unfit = list(self._unfit), {}
            more = ", …" if len(names) > 4 else ""
            user_warnings.warn(
                f"weights were loaded or written after attaching, but the formats of {', '.join(names[:4])}{more} "
                "still fit the earlier weights: load the weights first, then attach"
            )
