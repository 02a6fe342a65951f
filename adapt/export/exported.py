"""`Exported`, a trained network as integer words, formats and what stays in floating point."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from adapt.export import packed
from adapt.export.rounding import Rounding, add_rounding, keep_unfused
from adapt.layers.naming import joined
from adapt.numerics.format import Format


@dataclass(frozen=True, eq=False)
class Exported:
    """A captured network: every quantised tensor as integers, and everything else that the network needs.

    It refers to no controller, optimizer or training code, and can be copied and pickled.

    Attributes:
        words: the integer words of every quantised parameter by its name, in the smallest of int8, int16 and int32
            that holds them; on the CPU, in the shape of the parameter.
        formats: the format of every tensor in `words` by its name, and of every rounded activation by
            "<module>.input" or "<module>.output".
        tensors: everything else in the module's state_dict: parameters in floating point, and buffers; on the CPU.
        aliases: other names by which the module knows a tensor of `words` or `tensors`, such as those of tied weights,
            each with the name under which it is stored.
        structure: the module itself in evaluation mode: plain, without hooks, and without rounding of activations. Its
            parameters hold the words' values. None where a packed file was loaded without a module.
        origin: what made it, as text by name: the version of adapt, the policy.
    """

    words: Mapping[str, Tensor]
    formats: Mapping[str, Format]
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    structure: nn.Module | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> dict[str, Format]:
        """The formats of the rounded activations, by "<module>.input" or "<module>.output"."""
        return {name: form for name, form in self.formats.items() if name not in self.words}

    @property
    def layers(self) -> list[str]:
        """The paths of the modules with a quantised parameter or a rounded activation, in the module's order."""
        paths = {name.rpartition(".")[0] for name in (*self.words, *self.sites)}
        if self.structure is None:
            return sorted(paths)
        return [path for path, _ in self.structure.named_modules() if path in paths]

    @property
    def float32_bytes(self) -> int:
        """The bytes that the network's state_dict takes with its words in float32."""
        words = sum(4 * tensor.numel() for tensor in self.words.values())
        return words + sum(tensor.nbytes for tensor in self.tensors.values())

    def name_of(self, path: str, parameter: str) -> str:
        """Return the name under which the parameter of the module at this path is stored."""
        name = joined(path, parameter)
        return self.aliases.get(name, name)

    def values(self, name: str) -> Tensor:
        """Return a quantised parameter's values, word·step, as float32 on the CPU."""
        values: Tensor = self.formats[name].values(self.words[name])
        return values

    def module(self, *, rounding: Callable[[Format], nn.Module] = Rounding) -> nn.Module:
        """Return a network that computes what the attached one does in evaluation, bit for bit.

        A new module on each call, in evaluation mode and on the CPU: a copy of the trained one whose quantised
        parameters are word·step, and whose activations are rounded by small modules "input_rounding" and
        "output_rounding" inside the layers. The names in its state_dict are those of the trained module. It can be
        moved, pickled, deep-copied, and exported by `torch.export`.

        Args:
            rounding: returns the module that rounds activations to a format.

        Raises:
            ValueError: a packed file was loaded without a module, so the architecture is unknown.
        """
        if self.structure is None:
            raise ValueError(
                "the packed file holds words and formats, but no architecture: load it with module=, a new instance of "
                "the trained network's class"
            )
        module = copy.deepcopy(self.structure)
        for path, ends in self._ends().items():
            add_rounding(module.get_submodule(path), **{end: rounding(form) for end, form in ends.items()})
        keep_unfused(module)
        return module.eval()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a packed file: see `adapt.export.packed`. `adapt.export.load` reads it.

        Raises:
            ModuleNotFoundError: safetensors or zstandard are missing: pip install 'adapt-precision[export]'.
            OSError: the folder does not exist or cannot be written.
        """
        packed.write(packed.Contents(self.words, self.formats, self.tensors, self.aliases, self.origin), path)

    def _ends(self) -> dict[str, dict[str, Format]]:
        """The formats of the rounded activations, by the layer's path and "input" or "output"."""
        layers: dict[str, dict[str, Format]] = {}
        for name, form in self.sites.items():
            path, _, end = name.rpartition(".")
            layers.setdefault(path, {})[end] = form
        return layers
