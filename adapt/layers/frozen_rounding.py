"""Round a layer's input and output to fixed formats after training.

The hooks hold nothing but a format, so they are copied and pickled with the module and run on every device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapt import torch_internals
from adapt.layers.hooks import register_first, with_input
from adapt.layers.naming import module_site, owners
from adapt.numerics import Format
from adapt.numerics.nearest import TYPES, NearestRounding


class FrozenRounding:
    """Rounds to nearest in one format for the whole tensor; the gradient passes straight through.

    Args:
        site: the activation's name: the path of its module plus ".input" or ".output".
        form: its format.
    """

    def __init__(self, site: str, form: Format) -> None:
        self.site, self.form = site, form
        self._round = NearestRounding(form)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A module that an earlier version pickled holds the numbers of the rounding itself.
        self.__init__(state["site"], state["form"])  # type: ignore[misc]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Round the module's input."""
        return with_input(args, kwargs, self.apply)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Round the module's output."""
        return self.apply(output)

    def apply(self, x: Any) -> Any:
        """Return `form.quantize(x)` bit for bit for a tensor of up to 32 bits; return anything else unchanged."""
        if not isinstance(x, Tensor) or x.dtype not in TYPES:
            return x
        rounded = self._round(x.detach())
        if torch.onnx.is_in_onnx_export():
            return rounded
        if torch_internals.tracing_state():
            # A traced program cannot contain the function below, but may be trained too. Subtracting zero changes no
            # bit; x minus itself is NaN where x is infinite.
            return rounded - (x.detach() - x).nan_to_num(0.0)
        return _StraightThrough.apply(x, rounded) if x.requires_grad else rounded  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def keep(module: nn.Module, formats: Mapping[str, Format]) -> None:
    """Round the inputs and outputs of a module's layers to these formats from now on.

    Args:
        module: the module.
        formats: the formats by the path of a layer plus ".input" or ".output"; other names are ignored.
    """
    weights = {id(parameter) for parameter in module.parameters()}
    for name, owner in owners(module, (nn.Module,), weights):
        for kind in ("input", "output"):
            site = module_site(f"{name}.{kind}")
            if site not in formats:
                continue
            rounding = FrozenRounding(site, formats[site])
            if kind == "input":
                owner.register_forward_pre_hook(rounding.before, with_kwargs=True)
            else:
                # Before any other hook, so that all others see the values with which the network continues.
                register_first(owner.register_forward_hook, rounding.after)


def remove(module: nn.Module) -> dict[str, Format]:
    """Remove the hooks that `keep` registered on a module, and return their formats, so that `keep` can undo this."""
    found: dict[str, Format] = {}
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for key, hook in list(hooks.items()):
                rounding = getattr(hook, "__self__", None)
                if isinstance(rounding, FrozenRounding):
                    found[rounding.site] = rounding.form
                    del hooks[key]
                    if hooks is part._forward_pre_hooks:
                        part._forward_pre_hooks_with_kwargs.pop(key, None)
    return found
