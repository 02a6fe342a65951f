"""The kinds of layers: products with a weight, which are linear layers and convolutions, and embeddings."""

from collections.abc import Container, Iterable
from typing import Any

from torch import nn

from adapt import user_warnings

_LISTED = 5


class _RecognisedByStructure(type):
    def __instancecheck__(cls, module: Any) -> bool:
        if type(module).__name__ != "Conv1D" or not isinstance(module, nn.Module):
            return False
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        return weight is not None and weight.dim() == 2 and bias is not None and bias.shape == weight.shape[1:]


class TransposedLinear(nn.Module, metaclass=_RecognisedByStructure):
    """The `Conv1D` of transformers, a linear layer whose weight is [in, out]; `isinstance` recognises its structure."""


TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED_CONVOLUTIONS, TransposedLinear)
"""Modules whose forward pass multiplies its input by the weight, and whose activations can therefore be rounded."""

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
"""Modules that look up rows of the weight, without a product."""

ACTIVATIONS_STAY = (
    "activations of {} stay float32, because what these modules compute inside cannot be reached: only their weights "
    "are quantised"
)
"""A message for `warn_of_others`."""


def warn_of_others(module: nn.Module, weights: Container[int], reached: Iterable[nn.Module], message: str) -> None:
    """Warn of the modules, by name, that own one of these weights but whose products cannot be reached.

    Args:
        module: the module to search.
        weights: the weights' ids.
        reached: the modules that need no warning.
        message: what happens to the other modules; their names replace {}.
    """
    names: list[str] = []
    known = set(reached)
    for path, owner in module.named_modules():
        if owner not in known and any(id(parameter) in weights for parameter in owner._parameters.values()):
            # A computed weight, such as weight norm's, is named after its layer; a part of attention after attention.
            path = path.partition(".parametrizations")[0]
            if not any(path == name or path.startswith(f"{name}.") for name in names):
                names.append(path or type(module).__name__)
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        user_warnings.warn(message.format(", ".join(names[:_LISTED]) + more))
