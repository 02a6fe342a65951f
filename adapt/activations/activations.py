"""Rounding what flows through a layer: its input, its output and the error that comes back (AdaPT, section 3.1).

The forward pass goes on with Q(x); the gradient goes straight through where x lies in [minimum, maximum] and is zero
elsewhere. Training rounds stochastically, evaluation to nearest.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt import rounding
from adapt.activations.hooks import ActivationHooks
from adapt.activations.ownership import unshared_counts
from adapt.distributed import ranks
from adapt.kernels.activation import FROZEN, NOISE, RECORD, SiteTables, activation_kernels
from adapt.layers.hooks import remove_all
from adapt.layers.naming import module_site, owners
from adapt.layers.products import ACTIVATIONS_STAY, PRODUCTS, warn_of_others
from adapt.layers.view import Pin
from adapt.numerics import BlockFloat, Format, LayerFormat, Precision
from adapt.rounding import Noise

MODES = ("layer", "range")

_WITH_OUTPUT_ALONE = (nn.Embedding, nn.EmbeddingBag)
_FRESH_OUTPUT = {nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding}
"""Layers whose own forward returns a new tensor that nothing else holds, so that it can be rounded in place."""


class Activations:
    """Rounds the activations of a module's layers, and the errors on request, by hooks on the layers.

    Layers are linear layers (transformers' `Conv1D` too) and convolutions, with input and output, and embeddings, with
    the output alone. Other modules that own quantised weights, such as recurrent layers, attention, and layers whose
    weight is computed by weight norm, spectral norm or pruning, keep float32 activations; a warning names them.

    There are three modes. "layer" rounds in the layer's own ⟨WL, FL⟩. "range" keeps WL and lets FL follow the observed
    range: it leaves the fewest integer bits that hold the running maximum of |x|. A number is a WL for all layers, with
    FL by range. The running maximum stays on the device and moves the format once in an optimizer step; it falls by 1 %
    in a step that does not reach it.

    Before the first step "range" rounds as "layer" does. In that step errors, activations in a WL for all layers, and
    those of layers in block floating point, whose scale belongs to each tensor, stay float32. Errors always follow
    their range, in the layer's WL or in that for all layers. A layer in float32 keeps float32 activations in every
    mode.

    Noise comes from the stream of (seed, step, name of the site), where a site's name is its weight's name and
    ".input", ".output" or ".error". Several passes through a layer in one step (accumulation, shared layers) continue
    its stream; a pass that `torch.utils.checkpoint` repeats draws what its first pass drew. In compiled programs, and
    with the checkpointing of other libraries, it draws what the layer's last pass drew, with a warning if there were
    several. Under `torch.compile` two passes of a layer over the same input may become one and share their noise.

    Backward keeps one byte per element, and only if a value was outside the range; a float copy would always cost four.

    Args:
        module: the module whose layers to hook.
        layers: the index of each quantised parameter, by the parameter's id.
        mode: "layer", "range", or a word length.
        errors: whether to round the errors too: the gradients with regard to the layers' outputs.
        noise: how training rounds; evaluation rounds to nearest.
        pin: the view that a context asks for: "evaluation" rounds to nearest in every mode, "masters" not at all.
        device: where the layers are.
        old: activations whose ranges and streams to take over, by the sites' names.

    Raises:
        ValueError: no layer of the module can round its activations.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[int, int],
        *,
        mode: str | int,
        errors: bool,
        noise: Noise,
        pin: Pin,
        device: torch.device,
        old: "Activations | None" = None,
    ) -> None:
        self._noise, self._pin = noise, pin
        self.names: list[str] = []
        self._leaders: list[int] = []
        found = []
        for name, owner in owners(module, (*PRODUCTS, *_WITH_OUTPUT_ALONE), layers):
            leader = layers[id(owner.weight)]
            sites = []
            for kind in ("input", "output", "error"):
                wanted = errors if kind == "error" else kind == "output" or isinstance(owner, PRODUCTS)
                sites.append(len(self.names) if wanted else -1)
                if wanted:
                    self.names.append(f"{name}.{kind}")
                    self._leaders.append(leader)
            found.append((owner, sites))
        if not found:
            raise ValueError(
                "activations were asked for, but params has no linear layer, convolution or embedding that is "
                "quantised: leave activations=None"
            )
        count = len(self.names)
        self._sites = SiteTables(
            formats=torch.zeros(count, 5, dtype=torch.float32, device=device),
            keys=torch.zeros(count, dtype=torch.int64, device=device),
            drawn=torch.zeros(count, dtype=torch.int64, device=device),
            peaks=torch.zeros(count, dtype=torch.float32, device=device),
        )
        self._ranges = torch.zeros(count, dtype=torch.float32, device=device)
        self._errors = np.array([name.endswith(".error") for name in self.names])
        self._word = mode if isinstance(mode, int) else None
        self._follows = self._errors | (mode != "layer")
        self._words = torch.zeros(count, dtype=torch.int32, device=device)
        self._following = torch.zeros_like(self._words)
        self._otherwise = torch.zeros(count, 4, dtype=torch.float32, device=device)
        self._streams = tuple(_of_rank(self.names))
        self._step = 0
        if old is None:
            warn_of_others(module, layers, (owner for owner, _ in found), ACTIVATIONS_STAY)
        else:
            self.load_state_dict(old.state_dict(), strict=False)

        # The first call runs a backward pass, so it must not happen within another one.
        unshared_counts()
        kernels = activation_kernels(device)
        self._hooks = [
            ActivationHooks(self._sites, kernels, type(owner) in _FRESH_OUTPUT, *sites) for owner, sites in found
        ]
        handles = []
        for (owner, _), hooks in zip(found, self._hooks, strict=True):
            if isinstance(owner, PRODUCTS):
                handles.append(owner.register_forward_pre_hook(hooks.before, with_kwargs=True))
            # Before any other hook, so that all others see, and may keep, the values that the network continues with.
            handles.append(owner.register_forward_hook(hooks.after, prepend=True))
        self._remove = weakref.finalize(self, remove_all, handles)

    def remove(self) -> None:
        """Remove the hooks."""
        self._remove()

    def use(self, formats: Sequence[LayerFormat]) -> None:
        """Note the layers' formats; rounding uses them from the next `renew` on."""
        chosen = [formats[leader] for leader in self._leaders]
        words = np.array([0 if form is None else self._word or form.word_length for form in chosen], np.int32)
        blocks = np.array([isinstance(form, BlockFloat) for form in chosen])
        rows = np.stack([rounding.grid(form if isinstance(form, Precision) else None) for form in chosen])
        rows[self._errors | (self._word is not None)] = 0
        self._words.copy_(torch.from_numpy(words))
        self._following.copy_(torch.from_numpy(words * (self._follows | blocks)))
        self._otherwise.copy_(torch.from_numpy(rows))
        for hooks in self._hooks:
            hooks.idle = chosen[hooks.output] is None

    @torch.no_grad()
    def renew(self, step: int, *, ended: bool) -> None:
        """Round in the noted formats, adapted to the observed ranges, and draw with the random keys of `step`.

        Args:
            step: optimizer steps so far.
            ended: whether an optimizer step has ended, so that ranges move once.
        """
        if ended:
            ranks.maximum_(self._sites.peaks)
        self._step = step
        self._write_tables(ended=ended)

    def follow_pin(self) -> None:
        """Round as the pinned view asks."""
        self._write_tables(ended=False)

    def _write_tables(self, *, ended: bool) -> None:
        kernels = activation_kernels(self._ranges.device)
        kernels.renew(
            self._sites,
            rounding.stream_keys(self._noise.seed, self._step, self._streams),
            self._ranges,
            self._following,
            self._otherwise,
            mode=FROZEN if self._pin.view is not None else NOISE if self._noise.stochastic else RECORD,
            ended=ended,
        )
        if self._pin.view == "masters":
            self._sites.formats.data[:, :4] = 0
        for hooks in self._hooks:
            hooks.kernels = kernels

    @property
    def formats(self) -> dict[str, Format]:
        """The format of each rounded input and output by the path of its module. Reading it waits for the device."""
        return {
            module_site(name): Format.of(precision)
            for name, precision in self.precisions.items()
            if precision is not None and not name.endswith(".error")
        }

    @property
    def precisions(self) -> dict[str, Precision | None]:
        """The format in which each site rounds now, by the site's name. Reading it waits for the device."""
        scales, words = self._sites.formats[:, 0].tolist(), self._words.tolist()
        return {
            name: Precision(word, int(np.log2(scale))) if scale else None
            for name, word, scale in zip(self.names, words, scales, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the observed ranges and the positions in the streams, in plain containers and tensors."""
        return {
            "names": list(self.names),
            "ranges": self._ranges.clone(),
            "peaks": self._sites.peaks.clone(),
            "drawn": self._sites.drawn.clone(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Continue from a state, from the next `renew` on.

        Args:
            state: of `state_dict`.
            strict: refuse a state of other sites. Otherwise sites are matched by name.

        Raises:
            ValueError: the state is of other sites.
        """
        check_state(state, self.names, strict=strict)
        names = list(state.get("names", ()))
        ours = [i for i, name in enumerate(self.names) if name in names]
        theirs = [names.index(self.names[i]) for i in ours]
        for field, tensor in (
            ("ranges", self._ranges),
            ("peaks", self._sites.peaks),
            ("drawn", self._sites.drawn),
        ):
            if ours:
                tensor[ours] = state[field][theirs].to(tensor)


def check_state(state: Mapping[str, Any], names: Sequence[str], *, strict: bool) -> None:
    """Refuse a state that `Activations.load_state_dict` could not load.

    Raises:
        ValueError: the state is broken or, with `strict`, of other sites.
    """
    saved = state.get("names", [])
    if strict and list(saved) != list(names):
        raise ValueError(
            f"the precision state rounds activations at {len(saved)} places, but this controller at {len(names)}: "
            "attach with the same activations and quantize_errors, or load with strict=False"
        )
    for field in ("ranges", "peaks", "drawn") if saved else ():
        tensor = state.get(field)
        if not isinstance(tensor, Tensor) or tensor.shape != (len(saved),):
            raise ValueError(
                f"the precision state's activations should hold {field!r} as [{len(saved)}], got {tensor!r:.80}"
            )


def _of_rank(names: Sequence[str]) -> list[str]:
    """Return the sites' names in the random stream: each process draws noise of its own for its share of the data."""
    rank = torch.distributed.get_rank() if ranks.are_several() else 0
    return [f"{name}@{rank}" for name in names] if rank else list(names)
