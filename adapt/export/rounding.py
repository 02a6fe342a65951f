"""Explicit rounding of what flows through a layer: small modules inside the layer, and hooks that call them."""

from typing import Any

import torch
from torch import Tensor, nn

from adapt.numerics.fixed_point import largest_held
from adapt.numerics.format import Format

INPUT, OUTPUT = "input_rounding", "output_rounding"
"""The names of the rounding modules within a layer."""

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Rounding(nn.Module):
    """Rounds a tensor to the nearest value of a format, half to even, and saturates at the ends of its range.

    Written in plain torch operations, so that it exports, compiles, copies and moves; it holds no tensors. Tensors of
    other types than float32 and the half types pass unchanged, as they do in training.

    Args:
        form: the format, one for the whole tensor.

    Raises:
        NotImplementedError: the format has channels.
    """

    def __init__(self, form: Format) -> None:
        super().__init__()
        if form.axis is not None:
            raise NotImplementedError(f"activations by channel cannot be rounded here, got {form}")
        self.form = form
        self.step = float(form.step)
        self.is_sign = bool(form.signed) and int(form.word_length) == 1
        self.low, self.high = _ends(form)

    def forward(self, x: Any) -> Any:
        """Q(x), of the type and shape of x."""
        if not isinstance(x, Tensor) or x.dtype not in _TYPES:
            return x
        return (self.words(x) * self.step).to(x.dtype)

    def words(self, x: Tensor) -> Tensor:
        """Return the words of x as whole float32 numbers."""
        if self.is_sign:
            # The levels ±½ of twice the step.
            half = (x.float() * _reciprocal(2 * self.step)).clamp(-0.5, 0.5)
            return 2 * torch.round(half - 0.5) + 1
        return torch.round(x.float() * _reciprocal(self.step)).clamp(self.low, self.high)

    def extra_repr(self) -> str:
        return str(self.form)


def add_rounding(layer: nn.Module, *, input: nn.Module | None = None, output: nn.Module | None = None) -> None:
    """Let a layer round its input and its output from now on by these modules, which become its children.

    The layer keeps its class, its attributes and the names in its state_dict. Hooks, unlike a wrapper, also keep
    torch's fused inference kernels from passing the layer by.
    """
    if input is not None:
        layer.add_module(INPUT, input)
        layer.register_forward_pre_hook(_round_input, with_kwargs=True)
    if output is not None:
        layer.add_module(OUTPUT, output)
        # Before any other hook, so that all others see what the network goes on with.
        layer.register_forward_hook(_round_output, prepend=True)


def _round_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rounding = layer.get_submodule(INPUT)
    if args:
        return (rounding(args[0]), *args[1:]), kwargs
    return args, {name: rounding(value) if name == "input" else value for name, value in kwargs.items()}


def _round_output(layer: nn.Module, args: Any, output: Any) -> Any:
    return layer.get_submodule(OUTPUT)(output)


def _reciprocal(step: float) -> float:
    """1/step as float32 arithmetic has it."""
    return float(torch.tensor(step, dtype=torch.float32).reciprocal())


def _ends(form: Format) -> tuple[float, float]:
    """The smallest and the largest word, cut to what float32 holds."""
    low, high, fraction = int(form.low), int(form.high), form.fraction_length
    if fraction is None:
        return float(low), float(high)
    return float(-largest_held(-low, int(fraction))), float(largest_held(high, int(fraction)))
