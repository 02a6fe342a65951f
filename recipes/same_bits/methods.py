"""The ways of spending bits that the recipe compares, by name; all round to nearest, and all but aqt weights alone.

| name              | what it is                                                                              |
|-------------------|-----------------------------------------------------------------------------------------|
| float32           | plain SGD                                                                               |
| block:k           | block floating point: k bits in every layer, scale from the layer's largest weight      |
| cyclic:k          | `CyclicPrecision`: from 3 bits to k as a cosine, 8 times                                |
| lsq:k             | LSQ: k bits in every layer, a learned step for every output channel                     |
| lsq-layer:k       | LSQ with a learned step for every layer                                                 |
| lsq-p2:k          | as lsq, with the power of two nearest to the learned step; likewise lsq-layer-p2:k      |
| aqt:k             | AQT: k bits in weights and inputs of layers, 8 in the first and last layer              |
| compact:k         | `AdaPT.compact(bits=k)`; without k as many bits as the loss asks for                    |
| compact-entropy:k | `AdaPT.compact(bits=k, count="entropy")`: k bits of entropy per weight                  |
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

import adapt
from adapt.switching.choices import Count
from adapt.switching.policy import Policy
from recipes.same_bits.settings import Settings

NEVER = 10**9
"""Steps per epoch with which MuPPET never reaches the end of one, and so never switches."""

Controller = adapt.Controller | adapt.learned.Learner


def attach(settings: Settings, optimizer: Optimizer, model: nn.Module, steps: int) -> Controller | None:
    """Attach the controller of a run to its optimizer and return it; None for float32.

    Args:
        steps: optimizer steps of the whole run.

    Raises:
        ValueError: a method's bits are missing, or it does not take an option.
    """
    if settings.method == "float32":
        if settings.bits is not None or settings.options:
            raise ValueError(f"float32 takes neither bits nor options, got {settings.bits!r} and {settings.options}")
        return None
    if settings.method != "compact" and settings.bits is None:
        raise ValueError(f"{settings.method} needs the bits of every layer, such as {settings.method}:4")
    if settings.method == "aqt":
        bits = {"weight_bits": settings.bits, "activation_bits": settings.bits}
        return adapt.learned.attach_aqt(optimizer, model, steps=steps, **{**bits, **settings.options})
    if settings.method in LSQ:
        return LSQ[settings.method](optimizer, model, weight_bits=settings.bits, **settings.options)
    policy = POLICIES[settings.method](settings.bits, steps, settings.options)
    return adapt.attach(optimizer, model, policy, rounding="nearest", seed=settings.seed, execution=settings.execution)


def _block(bits: int, steps: int, options: Mapping[str, Any]) -> Policy[Any]:
    return adapt.MuPPET(steps_per_epoch=NEVER, word_lengths=(bits,), **options)


def _cyclic(bits: int, steps: int, options: Mapping[str, Any]) -> Policy[Any]:
    return adapt.CyclicPrecision(steps, **{"bits": (3, bits), "cycles": 8} | dict(options))


def _compact(bits: float | None, steps: int, options: Mapping[str, Any], count: Count = "words") -> Policy[Any]:
    return adapt.AdaPT.compact(bits=bits, count=count, **options)


POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "block": _block,
    "cyclic": _cyclic,
    "compact": _compact,
    "compact-entropy": partial(_compact, count="entropy"),
}
LSQ = {
    name + suffix: partial(
        adapt.learned.attach_lsq, per_channel=per_channel, power_of_two=power_of_two, quantize_biases=False
    )
    for name, per_channel in (("lsq", True), ("lsq-layer", False))
    for suffix, power_of_two in (("", False), ("-p2", True))
}
METHODS = ("float32", *POLICIES, *LSQ, "aqt")
