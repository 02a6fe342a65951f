"""The stochastic quantiser compared with a copy."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

import adapt
from adapt import rounding
from adapt.kernels import Rounding
from benchmarks import peers
from benchmarks.bench import Bench, many_calls, runnable
from benchmarks.networks import RESNET
from benchmarks.table import Row
from benchmarks.timing import ratio

PROJECTIONS = ((32, 16, 1, 1), (32,), (32,), (64, 32, 1, 1), (64,), (64,))
"""Shapes of the two shortcuts (convolution and normalisation) that a ResNet-20 has in option B but not in option A."""


def quantiser(bench: Bench) -> Iterator[Row]:
    """The stochastic quantiser on one large tensor, and on the many small ones of a ResNet-20."""
    source = torch.randn(bench.sizes.elements, device=bench.device)
    target, one = torch.empty_like(source), _Pass([source])
    own: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source), "AdaPT": one}
    if bench.device.type == "cpu":
        own |= {
            "clone": source.clone,
            "public": lambda: adapt.quantize(source, adapt.Precision(8, 6), rounding="stochastic"),
        }
    variants, missing = runnable(own | peers.quantisers(source))
    times = many_calls(variants, bench)
    yield Row(
        "quantiser",
        f"stochastic quantiser, time / `copy_`, {_amount(bench.sizes.elements)} float32",
        ratio(times, "AdaPT", "copy"),
        target=2.5,
        peers={name: ratio(times, name, "copy") for name in variants if name not in own} | missing,
        note="AdaPT writes into an existing tensor, as in training; the others allocate theirs",
    )
    if "clone" in times:
        yield Row("quantize", "the same through `adapt.quantize`, time / `clone`", ratio(times, "public", "clone"))

    model = RESNET.build(bench.device)
    weights = [parameter.detach() for parameter in model.parameters()]
    weights += [torch.randn(shape, device=bench.device) for shape in PROJECTIONS]
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    target = torch.empty_like(flat)
    own = {"copy": lambda: target.copy_(flat), "AdaPT": _Pass(weights)}
    loops = [peers.quantisers(weight) for weight in weights]
    variants, missing = runnable(own | {name: _loop([loop[name] for loop in loops]) for name in loops[0]})
    times = many_calls(variants, bench)
    yield Row(
        "many",
        f"the {len(weights)} parameters of a ResNet-20, time / one flat copy",
        ratio(times, "AdaPT", "copy"),
        target=6,
        peers={name: ratio(times, name, "copy") for name in variants if name not in own} | missing,
    )


class _Pass:
    """The fused stochastic pass from some tensors into others of the same sizes."""

    def __init__(self, sources: list[Tensor]) -> None:
        self._sources, self._outputs = sources, [torch.empty_like(source) for source in sources]
        names = [str(i) for i in range(len(sources))]
        self._rounding = Rounding(
            np.stack([rounding.grid(adapt.Precision(8, 6))] * len(sources)),
            rounding.stream_keys(0, 0, names),
            np.zeros(len(sources), np.int64),
            stochastic=True,
        )
        self._kernels = rounding.backend(sources[0].device)

    def __call__(self) -> None:
        self._kernels.quantize_(self._sources, self._outputs, self._rounding)


def _loop(calls: list[Callable[[], object] | str]) -> Callable[[], object] | str:
    """One call that makes all calls, or the reason why they are not available."""
    if isinstance(calls[0], str):
        return calls[0]

    def run() -> None:
        for call in calls:
            call()  # type: ignore[operator]

    return run


def _amount(elements: int) -> str:
    return f"{elements / 1e6:g}M" if elements >= 1e6 else str(elements)
