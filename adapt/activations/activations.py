"""Round a layer's input, its output and the back-propagated error (AdaPT, section 3.1).

The forward pass continues with Q(x); the gradient passes straight through where x lies in [minimum, maximum] and is
zero elsewhere. Training rounds stochastically, evaluation to nearest.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt import rounding
from adapt.activations.clipping import LONGEST_CLIPPED, OCTAVES, chosen_shifts, clipping_errors
from adapt.activations.hooks import ActivationHooks
from adapt.activations.ownership import unshared_counts
from adapt.distributed import ranks
from adapt.kernels.activation import FROZEN, NOISE, RECORD, SAMPLE, SiteTables, activation_kernels
from adapt.layers.hooks import register_first, remove_all
from adapt.layers.naming import module_site, owners
from adapt.layers.products import ACTIVATIONS_STAY, EMBEDDINGS, PRODUCTS, warn_of_others
from adapt.layers.view import Pin
from adapt.numerics import BlockFloat, ChannelPrecision, Format, LayerFormat, Precision
from adapt.rounding import Noise

MODES = ("layer", "range")

CHECK = 8
"""Ranges are judged in so many steps at first, while values change with the ranges of the layers before them, and then
in every so many steps."""

_FIELDS = ("ranges", "peaks", "drawn")
"""The tensors of every state, one number for each site."""

_LATER_FIELDS = ("shifts", "samples")
"""Tensors that a state may lack, which stands for 0: earlier versions saved neither, and samples are rarely there."""

_FRESH_OUTPUT = {nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding}
"""Layers whose forward returns a new tensor that nothing else refers to, so that it can be rounded in place."""


class Activations:
    """Rounds the activations of a module's layers, and optionally the errors, through hooks on the layers.

    Inputs and outputs are rounded for linear layers (including transformers' `Conv1D`) and convolutions, and only the
    outputs for embeddings. Other modules with quantised weights keep float32 activations, and a warning names them:
    recurrent layers, attention, and layers whose weight is computed by weight norm, spectral norm or pruning.

    There are three modes. "layer" uses the layer's own ⟨WL, FL⟩. "range" keeps WL and lets FL follow the observed
    range. A number is a WL for all layers, with FL by range. The running maximum of |x| stays on the device and updates
    the format once per optimizer step; it falls by 1 % in a step that does not reach it.

    A range starts with the fewest integer bits that hold the running maximum. In each of the first eight steps
    and in every eighth step from then on, an even sample of the last pass through each site tells how many of them, up
    to six, are better spent on the fraction: in a word of up to six bits, rounding the common values more finely saves
    more squared error than clipping rare large ones costs (`adapt.activations.clipping`). Ranges of longer words hold
    the maximum, and so do those of errors, because clipping gradients would bias them.

    Before the first step "range" rounds like "layer". In that step these stay float32: errors, activations with one WL
    for all layers, and activations of layers in block floating point, whose scale belongs to each tensor, or with a
    fraction length for every output channel. Such a format says nothing of activations: in every mode they follow their
    range. Errors always follow their range, with the layer's WL or the one for all layers. A layer in float32 keeps
    float32 activations in every mode.

    Noise comes from the stream of (seed, step, site), where a site is named by its weight plus ".input", ".output" or
    ".error". Several passes through a layer in one step (accumulation, shared layers) continue its stream; a pass that
    `torch.utils.checkpoint` repeats draws the same noise as its first pass. In compiled programs, and with the
    checkpointing of other libraries, it draws the noise of the layer's last pass, with a warning if there were several.
    Under `torch.compile` two passes of a layer over the same input may be merged and share their noise.

    Backward keeps one byte per element, and only if a value was outside the range; a float copy would always cost four.

    Args:
        module: the module whose layers to hook.
        layers: the index of each quantised parameter, by the parameter's id.
        mode: "layer", "range", or a word length.
        errors: whether to round the errors too: the gradients with respect to the layers' outputs.
        noise: how training rounds; evaluation rounds to nearest.
        pin: the view that a context asks for: "evaluation" rounds to nearest in every mode, "masters" not at all.
        device: the layers' device.
        old: earlier activations, whose ranges and streams are taken over by name.

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
        for name, owner in owners(module, (*PRODUCTS, *EMBEDDINGS), layers):
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
            formats=torch.zeros(count, 6, dtype=torch.float32, device=device),
            keys=torch.zeros(count, dtype=torch.int64, device=device),
            drawn=torch.zeros(count, dtype=torch.int64, device=device),
            peaks=torch.zeros(count, dtype=torch.float32, device=device),
            samples=torch.zeros(count, SAMPLE, dtype=torch.float32, device=device),
        )
        self._ranges = torch.zeros(count, dtype=torch.float32, device=device)
        self._errors = np.array([name.endswith(".error") for name in self.names])
        self._word = mode if isinstance(mode, int) else None
        self._follows = self._errors | (mode != "layer")
        self._words = torch.zeros(count, dtype=torch.int32, device=device)
        self._following = torch.zeros_like(self._words)
        self._shifts = torch.zeros_like(self._words)
        self._may_clip = False
        self._otherwise = torch.zeros(count, 4, dtype=torch.float32, device=device)
        # Each process draws different noise for its share of the data.
        rank = torch.distributed.get_rank() if ranks.is_distributed() else 0
        self._streams = tuple(f"{name}@{rank}" if rank else name for name in self.names)
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
            handles.append(register_first(owner.register_forward_hook, hooks.after))
        self._remove = weakref.finalize(self, remove_all, handles)

    def remove(self) -> None:
        """Remove the hooks."""
        self._remove()

    def set_formats(self, formats: Sequence[LayerFormat]) -> None:
        """Set the layers' formats; they take effect with the next `update_formats`."""
        chosen = [formats[leader] for leader in self._leaders]
        words = np.array([0 if form is None else self._word or form.word_length for form in chosen], np.int32)
        blocks = np.array([isinstance(form, BlockFloat | ChannelPrecision) for form in chosen])
        rows = np.stack([rounding.grid(form if isinstance(form, Precision) else None) for form in chosen])
        rows[self._errors | (self._word is not None)] = 0
        self._words.copy_(torch.from_numpy(words))
        following = words * (self._follows | blocks)
        self._following.copy_(torch.from_numpy(following))
        short = words <= LONGEST_CLIPPED
        self._may_clip = bool((short & (following > 0) & ~self._errors).any())
        self._shifts *= torch.from_numpy(short).to(self._shifts.device)
        if not self._may_clip:
            self._sites.samples.data.zero_()
        self._otherwise.copy_(torch.from_numpy(rows))
        for hooks in self._hooks:
            hooks.idle = chosen[hooks.output] is None

    @torch.no_grad()
    def update_formats(self, step: int, *, ended: bool) -> None:
        """Round to the formats that `set_formats` set, adapted to the observed ranges, with the random keys of `step`.

        Args:
            step: optimizer steps so far.
            ended: whether an optimizer step has ended; ranges are updated only then.
        """
        judged = ended and self._is_sampled  # The passes of the step that ends left samples.
        self._step = step
        if ended:
            ranks.maximum_(self._sites.peaks)
        if judged:
            self._judge_ranges()
        self._write_tables(ended=ended and not judged)

    def follow_pin(self) -> None:
        """Adjust the rounding to the pinned view."""
        self._write_tables(ended=False)

    @property
    def _is_sampled(self) -> bool:
        """Whether the passes of the present step leave samples: some words are short enough to clip."""
        return self._may_clip and (self._step < CHECK or self._step % CHECK == 0)

    def _judge_ranges(self) -> None:
        """End a step whose passes left samples: update the ranges, and choose by how many octaves formats clip them."""
        self._renew(torch.zeros_like(self._shifts), ended=True)
        errors = clipping_errors(self._sites.samples, self._sites.formats)
        ranks.average_(errors)
        chosen = chosen_shifts(errors, self._shifts)
        self._shifts.copy_(torch.where(self._words <= LONGEST_CLIPPED, chosen, 0))
        self._sites.samples.data.zero_()

    def _renew(self, shifts: Tensor, *, ended: bool) -> None:
        activation_kernels(self._ranges.device).renew(
            self._sites,
            rounding.stream_keys(self._noise.seed, self._step, self._streams),
            self._ranges,
            shifts,
            self._following,
            self._otherwise,
            mode=FROZEN if self._pin.view is not None else NOISE if self._noise.stochastic else RECORD,
            ended=ended,
            sampled=self._is_sampled,
        )

    def _write_tables(self, *, ended: bool) -> None:
        self._renew(self._shifts, ended=ended)
        if self._pin.view == "masters":
            self._sites.formats.data[:, :4] = 0
        kernels = activation_kernels(self._ranges.device)
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
        """The format to which each site rounds now, by the site's name. Reading it waits for the device."""
        scales, words = self._sites.formats[:, 0].tolist(), self._words.tolist()
        return {
            name: Precision(word, int(np.log2(scale))) if scale else None
            for name, word, scale in zip(self.names, words, scales, strict=True)
        }

    @property
    def _state(self) -> dict[str, Tensor]:
        tensors = self._ranges, self._sites.peaks, self._sites.drawn, self._shifts, self._sites.samples
        return dict(zip((*_FIELDS, *_LATER_FIELDS), tensors, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the observed ranges and the positions in the streams, in plain containers and tensors.

        Samples, which are large, are part of it only within a step that has left some.
        """
        tensors = {field: tensor.clone() for field, tensor in self._state.items()}
        if not tensors["samples"].any():
            del tensors["samples"]
        return {"names": list(self.names), **tensors}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Load a state; it takes effect with the next `update_formats`.

        Args:
            state: what `state_dict` returned.
            strict: refuse a state of other sites. Otherwise sites are matched by name.

        Raises:
            ValueError: the state belongs to other sites.
        """
        check_state(state, self.names, strict=strict)
        names = list(state.get("names", ()))
        ours = [i for i, name in enumerate(self.names) if name in names]
        theirs = [names.index(self.names[i]) for i in ours]
        for field, tensor in self._state.items() if ours else ():
            tensor[ours] = state[field][theirs].to(tensor) if field in state else torch.zeros_like(tensor[ours])


def check_state(state: Mapping[str, Any], names: Sequence[str], *, strict: bool) -> None:
    """Check that `Activations.load_state_dict` can load a state.

    Raises:
        ValueError: the state is broken or, with `strict`, belongs to other sites.
    """
    saved = state.get("names", [])
    if strict and list(saved) != list(names):
        raise ValueError(
            f"the precision state rounds activations at {len(saved)} places, but this controller at {len(names)}: "
            "attach with the same activations and quantize_errors, or load with strict=False"
        )
    for field in (*_FIELDS, *_LATER_FIELDS) if saved else ():
        tensor = state.get(field)
        shape = (len(saved), SAMPLE) if field == "samples" else (len(saved),)
        if (field in state or field in _FIELDS) and (not isinstance(tensor, Tensor) or tensor.shape != shape):
            raise ValueError(
                f"the precision state's activations should hold {field!r} as {list(shape)}, got {tensor!r:.80}"
            )
    if saved and "shifts" in state and not bool(((state["shifts"] >= 0) & (state["shifts"] <= OCTAVES)).all()):
        raise ValueError(
            f"the precision state's activations should hold 'shifts' from 0 to {OCTAVES}, got {state['shifts']!r:.80}"
        )
