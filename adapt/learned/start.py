"""What a run begins with: masters, formats, and the first steps and ranges."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapt import notices
from adapt.distributed import ranks
from adapt.distributed.sharding import is_sharded
from adapt.learned.activations import Met, Sites
from adapt.learned.budget import LONGEST
from adapt.learned.calibration import gaussian_range
from adapt.learned.formats import Formats
from adapt.learned.lsq import initial_step
from adapt.learned.masters import LearnedMasters, channels_of
from adapt.learned.plan import FixedWidths, Plan

HEADROOM = 2
"""Bits above the budget's average at which all formats begin."""


def prepare(
    plan: Plan, layers: Mapping[str, Tensor], module: nn.Module
) -> tuple[LearnedMasters, Formats, Sites | None]:
    """The masters of the layers, formats without steps and ranges yet, and where activations are rounded, if at all.

    Args:
        plan: what the user chose.
        layers: weights and quantised biases by name; their values now are the masters.
        module: what owns them.

    Raises:
        NotImplementedError: a weight lies on several processes.
        ValueError: no layer whose activations could be quantised.
    """
    for name, weight in layers.items():
        if is_sharded(weight):
            raise NotImplementedError(
                f"{name} lies on several processes, but learned formats need whole channels: "
                "use DistributedDataParallel"
            )
    owners: dict[int, nn.Module] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), part)
    channels = [channels_of(w, owners.get(id(w)), per_channel=plan.per_channel) for w in layers.values()]
    counts = [c.count for c in channels]
    sites = Sites(module, {id(w): n for n, w in layers.items()}) if plan.with_activations else None
    names = () if sites is None else sites.names
    numel = np.repeat([w.numel() // c for w, c in zip(layers.values(), counts, strict=True)], counts)
    formats = Formats(
        [*layers, *names],
        [*counts, *[1] * len(names)],
        np.concatenate([numel, np.zeros(len(names))]).astype(np.int64),
        np.ones(len(numel) + len(names), np.bool_),
        weights=len(numel),
        floor=plan.floor,
        device=next(iter(layers.values())).device,
    )
    return LearnedMasters(layers, channels, formats), formats, sites


def first_bits(plan: Plan, formats: Formats, averages: Sequence[float]) -> NDArray[np.int64]:
    """⌊average of the budget⌋ + 2, 16 at most, for all weights, and so for all activations; LSQ's are the plan's.

    Args:
        averages: the budgets in bits, of weights and of activations; infinite where there is none.
    """
    if isinstance(plan, FixedWidths):
        bits = [plan.weight_bits, plan.activation_bits or 1]
    else:
        bits = [
            formats.floor if np.isinf(a) else min(max(int(a + 1e-9), formats.floor) + HEADROOM, LONGEST)
            for a in averages
        ]
    return np.where(formats.is_weight, *bits).astype(np.int64)


@torch.no_grad()
def begin_weights(plan: Plan, formats: Formats, layers: LearnedMasters, bits: NDArray[np.int64]) -> None:
    """Weights by Gaussian calibration, by their maximum where a channel is one number; LSQ by its mean magnitude."""
    step, maximum = torch.ones_like(formats.step), torch.ones_like(formats.maximum)
    for i, name in enumerate(layers.names):
        rows, place = layers.rows(i), formats.places[name]
        if isinstance(plan, FixedWidths):
            step[place] = initial_step(rows.abs().mean(1), plan.weight_bits, signed=True)
        elif rows.shape[1] > 1:
            maximum[place] = gaussian_range(rows.mean(1), rows.std(1, correction=0))
        elif rows.numel():
            maximum[place] = rows.abs().amax(1)
    _take(plan, formats, step, maximum, bits, formats.is_weight)


@torch.no_grad()
def begin_activations(plan: Plan, formats: Formats, sites: Sequence[str], met: Sequence[Met]) -> None:
    """Sizes, signs and ranges (LSQ: steps) of the activations that were met; `begin_widths` must follow.

    Args:
        sites: the activations' names.
        met: what each met.

    Raises:
        ValueError: none met anything, or one nothing finite.
    """
    missed = [name for name, one in zip(sites, met, strict=True) if not one.elements]
    if len(missed) == len(sites):
        raise ValueError(
            "the calibration batches met no quantised layer's input: pass batches as the module's forward takes them, "
            "or leave the activations in float32"
        )
    if missed:
        notices.warn(
            f"the calibration batches did not reach {', '.join(missed)}: these activations stay as they are",
        )
    unknown = [name for name, one in zip(sites, met, strict=True) if one.elements and not one.percentiles]
    if unknown:
        raise ValueError(
            f"the calibration batches brought no finite value to {', '.join(unknown[:3])}: leave out batches with NaN"
        )
    # What each process met may have other shapes, but all must count alike.
    elements = torch.tensor([one.elements for one in met], dtype=torch.float64, device=formats.device)
    ranks.maximum_(elements)
    for name, one, most in zip(sites, met, elements.tolist(), strict=True):
        i = formats.places[name].start
        if one.elements:
            formats.numel[i] = max(round(most), 1)
            formats.signed[i] = ranks.average(float(one.negative)) > 0
            formats.maximum[i] = ranks.average(float(np.mean(one.percentiles)))
            if isinstance(plan, FixedWidths):
                mean = torch.tensor(ranks.average(float(np.mean(one.means))))
                formats.step[i] = initial_step(mean, plan.activation_bits or 1, signed=bool(formats.signed[i]))
    formats.find_idle()


@torch.no_grad()
def begin_widths(plan: Plan, formats: Formats, bits: NDArray[np.int64]) -> None:
    """Activations at their first widths."""
    _take(plan, formats, formats.step, formats.maximum, bits, ~formats.is_weight)


def _take(
    plan: Plan, formats: Formats, step: Tensor, maximum: Tensor, bits: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> None:
    """Begin with these steps (LSQ) or ranges (otherwise) where `chosen` says so."""
    if isinstance(plan, FixedWidths):
        step = torch.where(torch.from_numpy(chosen).to(step.device), step, formats.step)
        formats.set_lsq(step, plan.weight_bits, plan.activation_bits or 1)
    else:
        formats.set_widths(bits, chosen, maximum)
