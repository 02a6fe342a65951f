"""Formats of a controller, until `controller.formats` gives them for every kind. To be removed then."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.controller import Controller
from adapt.learned.learner import Learner
from adapt.numerics.format import Format


def formats_of(controller: Controller) -> Mapping[str, Format]:
    """Formats of weights and biases by name, of activations by "<module>.input" and "<module>.output"."""
    found: dict[str, Format] = {}
    if isinstance(controller, Learner):
        return _learned(controller)
    for bank in controller.banks:
        found |= {n: Format.of(p) for n, p in zip(bank.names, bank.grids.precisions, strict=True) if p is not None}
    for site, precision in controller.activation_precisions.items():
        if precision is not None and not site.endswith(".error"):
            found[_site(site)] = Format.of(precision)
    return found


def _site(name: str) -> str:
    weight, _, end = name.rpartition(".")
    return weight.removesuffix("weight") + end


def _learned(learner: Learner) -> dict[str, Format]:
    formats, layers = learner._run.formats, learner._run.layers
    rows = formats.rows.cpu().double().numpy()
    channels = dict(zip(layers.names, layers.channels, strict=True))
    found = {}
    for name, place in formats.places.items():
        if not formats.numel[place].any():
            continue
        _, step, low, high, offset = rows[place].T
        sign = offset == 0.5
        kind: Any = channels.get(name)
        groups, axis = 1, None
        if kind is not None and kind.count > 1:
            groups = kind.split
            axis = 1 if groups > 1 else next(i for i, size in enumerate(kind.formats) if size > 1)
        arrays = (
            formats.bits[place],
            np.where(sign, step / 2, step),
            formats.signed[place].cpu().numpy(),
            np.where(sign, -1, np.rint(low)),
            np.where(sign, 1, np.rint(high)),
        )
        arrays = arrays if axis is not None else tuple(a[0] for a in arrays)
        found[name if kind is not None else _site(name)] = Format(*arrays, axis=axis, groups=groups)
    return found
