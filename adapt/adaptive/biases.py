"""Quantised biases and norm parameters, each with the word length of the layer it follows."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adapt.adaptive.masters import FixedPointMasters
from adapt.distributed.sharding import extremes
from adapt.engine import persistence
from adapt.numerics import BlockFloat, FixedPoint, LayerFormat, pack_formats, unpack_formats


class Biases:
    """Masters of biases and their formats: the word length of their layer, with a fraction length that fits them.

    A bias that follows a layer in block floating point uses block floating point too.

    Args:
        masters: the masters of the biases.
        leaders: index of the layer that each bias follows.
    """

    def __init__(self, masters: FixedPointMasters, leaders: Sequence[int]) -> None:
        self.masters = masters
        self._leaders = leaders
        self._formats: list[LayerFormat] = [None] * len(leaders)

    def set_formats(self, formats: Sequence[LayerFormat], changed: Collection[int]) -> None:
        """Choose new formats for the biases that follow a layer in `changed`; `formats` are those of all layers."""
        self.fit([i for i, leader in enumerate(self._leaders) if leader in changed], formats)

    def fit(self, indices: Collection[int], formats: Sequence[LayerFormat]) -> None:
        """Choose new formats that fit the present values of these biases; `formats` are those of all layers."""
        indices = list(indices)
        found = extremes([self.masters.weights[i] for i in indices]) if indices else []
        for i, ends in zip(indices, found, strict=True):
            form = formats[self._leaders[i]]
            self._formats[i] = BlockFloat(form.word_length).precision(*ends) if isinstance(form, FixedPoint) else form
        self.masters.set_formats(self._formats)

    def state_dict(self) -> dict[str, Any]:
        """Return masters and formats by name, in plain containers."""
        names = self.masters.names
        return {
            "followers": persistence.copied(names, self.masters.weights),
            "follower_formats": dict(zip(names, pack_formats(self._formats), strict=True)),
        }

    def check(self, state: Mapping[str, Any], *, strict: bool) -> None:
        """Check that `load` can load this state.

        Raises:
            ValueError: a tensor or format is missing or of the wrong kind.
        """
        unpack_formats(state["follower_formats"].values())
        ours = dict(zip(self.masters.names, self.masters.weights, strict=True))
        wanted = ours if strict else {name: w for name, w in ours.items() if name in state["follower_formats"]}
        persistence.check_tensors("followers", state["followers"], wanted)

    def load(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, for the names that both have."""
        formats: Mapping[str, LayerFormat] = dict(
            zip(state["follower_formats"], unpack_formats(state["follower_formats"].values()), strict=True)
        )
        for i, name in enumerate(self.masters.names):
            if name in formats:
                self.masters.load(i, state["followers"])
                self._formats[i] = formats[name]
        self.masters.set_formats(self._formats)
