"""The keyword options of learned formats, for editors and type checkers; `adapt.learned.options` checks them."""

from typing import Literal, TypedDict

from adapt.layers import choice
from adapt.layers.layer_bits import LayerBits

Scaling = Literal["ste", "pbgs", "ewgs", "acos", "tanh", "invtanh"]


class ScalingOptions(TypedDict, total=False):
    """Options of how gradients pass through rounding."""

    weight_scaling: Scaling
    activation_scaling: Scaling
    delta: float


class LayerOptions(TypedDict, total=False):
    """Options of which parameters are quantised."""

    quantize_biases: bool
    layers: choice.Choice
    layer_bits: LayerBits | None


class WidthOptions(ScalingOptions, LayerOptions, total=False):
    """Keyword options of `adapt.learned.attach` and `adapt.lightning.LearnedBitwidth`.

    `adapt.learned.attach` documents them; `LearnedWidths` has the defaults.
    """

    activation_size: Literal["sum", "max"]
    floor: Literal[1, 2]
    beta: float | None
    update_every: int
    width_rate: float | None
    warmup: float


class AttachOptions(WidthOptions, total=False):
    """`WidthOptions`, and the option that Lightning's callback sets itself."""

    schedule: bool


class StepOptions(ScalingOptions, LayerOptions, total=False):
    """Keyword options of `adapt.lightning.LSQ`; `FixedWidths` has the defaults."""

    per_channel: bool
    power_of_two: bool
    momentum: float


class LsqOptions(StepOptions, total=False):
    """Keyword options of `adapt.learned.attach_lsq`; `FixedWidths` has the defaults."""

    activation_bits: int | None
    steps: int | None
    warmup: float


class AqtOptions(TypedDict, total=False):
    """Keyword options of `adapt.learned.attach_aqt` and `adapt.lightning.AQT`; `MaximumRanges` has the defaults."""

    weight_bits: int
    activation_bits: int | None
    first_bits: int
    last_bits: int
    activations_from: float
    decay: float
    layers: choice.Choice
    layer_bits: LayerBits | None
