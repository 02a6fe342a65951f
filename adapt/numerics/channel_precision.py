"""Fixed point with one word length for a layer, and a fraction length for each of its output channels."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapt.numerics.fixed_point import Precision

LARGEST_SHIFT = 126
"""How many bits apart the fraction lengths of two channels may lie: float32 holds the quotient of their steps."""


@dataclass(frozen=True, order=True)
class ChannelPrecision:
    """The fixed-point formats ⟨WL, FL_c⟩ of a layer's output channels: in hardware, one word and a shift per channel.

    Args:
        word_length: WL of all channels, bits including the sign, 2 to 32.
        fraction_lengths: FL of each channel, −126 to 126 and at most 126 apart.

    Raises:
        TypeError: a length is not an integer, or there is none.
        ValueError: a length is outside its range, or two lie too far apart.
    """

    word_length: int
    fraction_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.fraction_lengths, Sequence) or not len(self.fraction_lengths):
            raise TypeError(
                f"fraction_lengths must be an integer for every output channel, got {self.fraction_lengths!r:.80}"
            )
        word = Precision(self.word_length, 0).word_length
        # Layers may have many thousand channels, whose numbers are integers as a rule.
        lengths = tuple(
            length if type(length) is int else Precision(word, length).fraction_length
            for length in self.fraction_lengths
        )
        for end in (min(lengths), max(lengths)):
            Precision(word, end)
        if max(lengths) - min(lengths) > LARGEST_SHIFT:
            raise ValueError(
                f"fraction_lengths must be at most {LARGEST_SHIFT} bits apart, got {min(lengths)} to {max(lengths)}"
            )
        object.__setattr__(self, "word_length", word)
        object.__setattr__(self, "fraction_lengths", lengths)

    @property
    def fraction_length(self) -> int:
        """The smallest FL: that of the channels with the widest range."""
        return min(self.fraction_lengths)

    @property
    def widest(self) -> Precision:
        """The format of the channels with the widest range."""
        return Precision(self.word_length, self.fraction_length)

    def __str__(self) -> str:
        ends = f"{self.fraction_length} to {max(self.fraction_lengths)}"
        return f"⟨{self.word_length}, {ends}⟩ in {len(self.fraction_lengths)} channels"


FixedPoint = Precision | ChannelPrecision
"""Fixed point, with one fraction length for the layer or one for each channel."""
