"""Biases and norm parameters that are quantised too, each in the word length of the layer that it follows."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adapt.distributed.sharding import extremes
from adapt.numerics import BlockFloat, Precision, pack_formats, unpack_formats
from adapt.run import checkpoint
from adapt.switching.policy import Format
from adapt.weights.masters import Masters


class Biases:
    """Masters of biases, and their formats: their leader's word length, with the fraction length that fits them.

    Behind a leader in block floating point they are in block floating point themselves.

    Args:
        masters: their masters.
        leaders: index of the layer that each follows.
    """

    def __init__(self, masters: Masters, leaders: Sequence[int]) -> None:
        self.masters = masters
        self._leaders = leaders
        self._formats: list[Format] = [None] * len(leaders)

    def use(self, formats: Sequence[Format], changed: Collection[int]) -> None:
        """Fit anew the biases that follow a layer in `changed`, whose formats are among `formats` of all layers."""
        for i, (leader, weight) in enumerate(zip(self._leaders, self.masters.weights, strict=True)):
            if leader in changed:
                form = formats[leader]
                if isinstance(form, Precision):
                    form = BlockFloat(form.word_length).precision(*extremes([weight])[0])
                self._formats[i] = form
        self.masters.use(self._formats)

    def state_dict(self) -> dict[str, Any]:
        """Masters and formats by name, in plain containers."""
        names = self.masters.names
        return {
            "followers": checkpoint.copied(names, self.masters.weights),
            "follower_formats": dict(zip(names, pack_formats(self._formats), strict=True)),
        }

    def check(self, state: Mapping[str, Any], *, strict: bool) -> None:
        """Refuse a state that `load` could not take.

        Raises:
            ValueError: a tensor or format is missing or of another kind.
        """
        unpack_formats(state["follower_formats"].values())
        ours = dict(zip(self.masters.names, self.masters.weights, strict=True))
        wanted = ours if strict else {name: w for name, w in ours.items() if name in state["follower_formats"]}
        checkpoint.check_tensors("followers", state["followers"], wanted)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, as far as its names are ours."""
        formats: Mapping[str, Format] = dict(
            zip(state["follower_formats"], unpack_formats(state["follower_formats"].values()), strict=True)
        )
        for i, name in enumerate(self.masters.names):
            if name in formats:
                self.masters.load(i, state["followers"])
                self._formats[i] = formats[name]
        self.masters.use(self._formats)
