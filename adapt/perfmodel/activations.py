"""How many numbers each layer outputs for one sample: the part of a network's footprint that is not weights."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from adapt.perfmodel.dry_run import dry_run, wrapper_prefix
from adapt.perfmodel.inputs import samples_of, tensors_in


def activation_sizes(
    model: nn.Module, *example_inputs: Any, batch_size: int | None = None, **example_keywords: Any
) -> dict[str, int]:
    """Return the elements of each layer's output per sample, keyed by module name, in the order of first use.

    Layers are the modules that own a weight of two or more dimensions, parametrised or not. One that runs several
    times counts with its largest output; one that does not run has no entry. The model is left as it is, as by
    `operations`.

    Args:
        model, example_inputs, example_keywords, batch_size: as in `operations`.

    Raises:
        TypeError, ValueError, RuntimeError: as `operations`.
    """
    samples = samples_of((*example_inputs, *example_keywords.values()), batch_size)
    sizes = dry_run(model, example_inputs, example_keywords, _OutputSizes).sizes
    return {name: round(size / samples) for name, size in sizes.items()}


class _OutputSizes(nullcontext[None]):
    """Record the largest output of every layer, by module name."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}
        prefix = wrapper_prefix(model)
        for name, module in model.named_modules():
            if not isinstance(module, ParametrizationList) and any(weight.ndim >= 2 for weight in _weights(module)):
                self._observe(f"{name}.".removeprefix(prefix).removesuffix("."), module)

    def _observe(self, name: str, module: nn.Module) -> None:
        def measure(module: nn.Module, args: Any, result: Any) -> None:
            # Recurrent layers and attention also return states and scores, after their output.
            output = result[0] if isinstance(result, tuple) else result
            size = sum(tensor.numel() for tensor in tensors_in(output))
            self.sizes[name] = max(size, self.sizes.get(name, 0))

        module.register_forward_hook(measure)


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """The module's own parameters, and those from which its parametrised ones are computed."""
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        for originals in cast(nn.ModuleDict, module.parametrizations).values():
            yield from originals.parameters(recurse=False)
