"""How many numbers flow into and out of each layer for one sample: the memory that a network needs besides weights."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from adapt.perfmodel.dry_run import dry_run, wrapper_prefix
from adapt.perfmodel.inputs import samples_of, tensors_in


@dataclass(frozen=True)
class LayerActivations:
    """The kind of a module that owns weights, and the elements of its input and output per sample."""

    kind: str
    inputs: int
    outputs: int


def activation_sizes(
    model: nn.Module, *example_inputs: Any, batch_size: int | None = None, **example_keywords: Any
) -> dict[str, int]:
    """Return the elements of each layer's output per sample, keyed by module name, in the order of first use.

    Layers are the modules that own a weight of two or more dimensions, parametrised or not. For a layer that runs
    several times, the largest output counts; a layer that does not run has no entry. Like `operations`, this does not
    change the model.

    Args:
        model, example_inputs, example_keywords, batch_size: as in `operations`.

    Raises:
        TypeError, ValueError, RuntimeError: as in `operations`.
    """
    found = layer_activations(model, *example_inputs, batch_size=batch_size, **example_keywords)
    return {name: layer.outputs for name, layer in found.items()}


def layer_activations(
    model: nn.Module, *example_inputs: Any, batch_size: int | None = None, **example_keywords: Any
) -> dict[str, LayerActivations]:
    """Return the kind, input and output of each layer, keyed and ordered as in `activation_sizes`.

    The kind is "convolution", "pointwise" (1×1 without a stride), "depthwise", "lookup" (an embedding) or "linear",
    which stands for all other products, including those of recurrent layers and attention.
    """
    samples = samples_of((*example_inputs, *example_keywords.values()), batch_size)
    found = dry_run(model, example_inputs, example_keywords, _Sizes)
    return {
        name: LayerActivations(found.kinds[name], round(inputs / samples), round(outputs / samples))
        for name, (inputs, outputs) in found.sizes.items()
    }


class _Sizes(nullcontext[None]):
    """Records the kind and the largest input and output of every layer by module name."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.sizes: dict[str, tuple[int, int]] = {}
        self.kinds: dict[str, str] = {}
        prefix = wrapper_prefix(model)
        for name, module in model.named_modules():
            if not isinstance(module, ParametrizationList) and any(weight.ndim >= 2 for weight in _weights(module)):
                self._observe(f"{name}.".removeprefix(prefix).removesuffix("."), module)

    def _observe(self, name: str, module: nn.Module) -> None:
        def measure(module: nn.Module, args: Any, keywords: Any, result: Any) -> None:
            # Recurrent layers and attention also return states and scores, after their output.
            output = result[0] if isinstance(result, tuple) else result
            # Attention is given the same tensor as query, key and value; it is read once.
            taken = {id(tensor): tensor.numel() for tensor in tensors_in([args, keywords])}
            sizes = sum(taken.values()), sum(tensor.numel() for tensor in tensors_in(output))
            before = self.sizes.get(name, (0, 0))
            self.sizes[name] = max(sizes[0], before[0]), max(sizes[1], before[1])

        self.kinds[name] = _kind(module)
        module.register_forward_hook(measure, with_kwargs=True)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "lookup"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups == module.in_channels > 1:
            return "depthwise"
        # A 1×1 kernel with a stride is not a product of two matrices in memory: processors run it as a convolution.
        return "pointwise" if {*module.kernel_size, *module.stride} == {1} else "convolution"
    return "linear"


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the module's own parameters, and those from which its parametrised weights are computed."""
    yield from module.parameters(recurse=False)
    if is_parametrized(module):
        for originals in cast(nn.ModuleDict, module.parametrizations).values():
            yield from originals.parameters(recurse=False)
