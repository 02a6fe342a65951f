"""Activation checkpointing: a pass that backward repeats must draw the same noise as its first pass.

Several checkpointed passes through one layer may wait for backward, which repeats them in another order. So each
checkpointed region of `torch.utils.checkpoint` remembers where in the random stream its passes began.
"""

import sys
from collections.abc import Hashable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from adapt import torch_internals

_FIRST_REENTRANT = torch_checkpoint.CheckpointFunction.forward.__code__
_REPEATED_REENTRANT = torch_checkpoint.CheckpointFunction.backward.__code__
_FIRST = torch_internals.checkpoint_code
_REPEATED = "unpack_hook"


def is_repeated() -> bool:
    """Return whether this forward pass runs within backward, and so repeats a pass that checkpointing discarded."""
    return torch_internals.backward_pass() != -1


def start_in_stream(owner: Hashable, site: int, drawn: Tensor) -> Tensor | None:
    """Return where in the site's stream a repeated pass must begin; None for a first pass, or if unknown.

    The regions around a first pass, or around one that is repeated only to be discarded again, record its position.

    Args:
        owner: distinguishes sites with the same index.
        site: the site's index.
        drawn: number of elements of its stream that each site has used, int64 [sites].
    """
    # Checkpointing either disables gradients in a pass that it may discard, or hooks the tensors that autograd saves.
    if not is_repeated() and torch.is_grad_enabled() and not torch_internals.may_have_hooks():
        return None
    start, forgetful = None, []
    for region, repeats in _regions():
        if repeats:
            start = region.next((owner, site))
            break
        forgetful.append(region)
    if start is None and is_repeated():
        return None
    for region in forgetful:
        region.starts.setdefault((owner, site), []).append(drawn[site].clone() if start is None else start)
    return start


class _Region:
    """The positions in their sites' streams at which the passes of one checkpointed region began, in order."""

    def __init__(self) -> None:
        self.starts: dict[Hashable, list[Tensor]] = {}
        self._repeated: dict[Hashable, int] = {}
        self._backward = -1

    def next(self, site: Hashable) -> Tensor | None:
        """Return where the next repeated pass of a site begins; None if the region has not seen it."""
        if self._backward != (task := torch_internals.backward_pass()):
            # With retain_graph=True a region may be repeated several times.
            self._backward, self._repeated = task, {}
        position = self._repeated.get(site, 0)
        self._repeated[site] = position + 1
        starts = self.starts.get(site, [])
        return starts[position] if position < len(starts) else None


def _regions() -> Iterator[tuple[_Region, bool]]:
    """Yield the checkpointed regions in which the caller runs, innermost first, and whether each is being repeated.

    torch has no public interface for this, so they are found on the call stack, through the object that torch keeps for
    each region from its first pass until its last repetition.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _FIRST_REENTRANT:
            yield _region_of(frame.f_locals["ctx"]), False
        elif code is _REPEATED_REENTRANT:
            yield _region_of(frame.f_locals["ctx"]), True
        elif code is _FIRST:
            if (generator := frame.f_locals.get("gen")) is not None:
                yield _region_of(generator.gi_frame.f_locals["new_frame"]), False
        elif code.co_name == _REPEATED and frame.f_globals is vars(torch_checkpoint):
            yield _region_of(frame.f_locals["frame"]), True
        frame = frame.f_back


def _region_of(kept: Any) -> _Region:
    region: _Region = vars(kept).setdefault("_adapt_region", _Region())
    return region
