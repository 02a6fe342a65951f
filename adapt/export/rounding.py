"""Explicit rounding of what flows through a layer: small modules inside the layer, and a forward that calls them."""

from functools import cache
from typing import Any

from torch import Tensor, nn

from adapt.numerics.format import Format
from adapt.numerics.nearest import TYPES, NearestRounding

INPUT, OUTPUT = "input_rounding", "output_rounding"
"""The names of the rounding modules within a layer."""


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
        self._round = NearestRounding(form)

    def forward(self, x: Any) -> Any:
        """Q(x), of the type and shape of x."""
        return self._round(x) if isinstance(x, Tensor) and x.dtype in TYPES else x

    def extra_repr(self) -> str:
        return str(self.form)


class Rounded:
    """A forward that rounds a layer's input and output; `add_rounding` puts it before the layer's own class.

    This is a class and not a pair of hooks, because torch.compile reuses the program of one module for another of the
    same class whatever their hooks are, and because torch.fx does not look inside torch's own layers.
    """

    _modules: dict[str, nn.Module | None]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Q(layer(Q(input))), as far as there are formats."""
        rounds_input, rounds_output = self._modules.get(INPUT), self._modules.get(OUTPUT)
        if rounds_input is not None and args:
            args = (rounds_input(args[0]), *args[1:])
        elif rounds_input is not None and "input" in kwargs:
            kwargs = {**kwargs, "input": rounds_input(kwargs["input"])}
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        return output if rounds_output is None else rounds_output(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (type(self).__mro__[2],), self.__dict__


def add_rounding(layer: nn.Module, *, input: nn.Module | None = None, output: nn.Module | None = None) -> None:
    """Let a layer round its input and its output from now on by these modules, which become its children.

    The layer keeps its attributes and the names in its state_dict, and stays an instance of its class.

    Raises:
        NotImplementedError: the layer's forward was replaced.
    """
    if "forward" in layer.__dict__:
        raise NotImplementedError(
            f"the forward of a {type(layer).__name__} was replaced, so nothing can round around it"
        )
    for name, module in ((INPUT, input), (OUTPUT, output)):
        if module is not None:
            layer.add_module(name, module)
    layer.__class__ = _rounded(type(layer))  # type: ignore[arg-type]  # classes can be hashed


def keep_unfused(module: nn.Module) -> None:
    """Disable torch's fused inference of transformer layers, which bypasses inner layers and sums in another order.

    In the attached model the controller's hooks disable it.
    """
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.register_forward_pre_hook(_nothing)


def _nothing(module: nn.Module, args: Any) -> None:
    """Does nothing; torch takes the fused path only where there are no hooks."""


@cache
def _rounded(kind: Any) -> type[nn.Module]:
    return type(f"Rounded{kind.__name__}", (Rounded, kind), {"__module__": __name__})


def _empty(kind: type[nn.Module]) -> nn.Module:
    """A layer to be filled by unpickling."""
    made = _rounded(kind)  # type: ignore[arg-type]
    return made.__new__(made)
