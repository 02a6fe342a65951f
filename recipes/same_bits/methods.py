"""The ways of spending bits that the recipe compares, by name; all round to nearest.

| name               | what it is                                                                              |
|--------------------|-----------------------------------------------------------------------------------------|
| float32            | plain SGD                                                                               |
| block:k            | block floating point: k bits in every layer, scale from the layer's largest weight      |
| uniform:k          | k bits in every layer, the scale of least squared error, chosen anew as compact does    |
| cyclic:k           | `CyclicPrecision`: from 3 bits to k as a cosine, 8 times                                |
| adapt              | `AdaPT()`, the rules as printed                                                         |
| compact:k          | `AdaPT.compact(bits=k)`; without k as many bits as the loss asks for                    |
| compact-channels:k | `AdaPT.compact(bits=k, channels=True)`: a fraction length for every output channel      |
| compact-entropy:k  | `AdaPT.compact(bits=k, count="entropy")`: k bits of entropy per weight                  |
| lsq:k              | LSQ: k bits in every layer, a learned step for every output channel                     |
| lsq-layer:k        | LSQ with a learned step for every layer                                                 |
| lsq-p2:k           | as lsq, with the power of two nearest to the learned step; likewise lsq-layer-p2:k      |
| learned:k          | learned widths: k bits on average; the option `phases`, [0.1, 0.8, 0.1], are the shares |
|                    | of the steps before, in and after learning                                              |
| aqt:k              | AQT: k bits in weights and inputs of layers, 8 in the first and last layer              |

Activations are float32, except under aqt and where the option `activations` gives their bits: of the layers' inputs
under lsq and learned, with learned steps, and of inputs and outputs under the policies, in the range that is observed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import adapt
from adapt.learned import Budget, Phases
from adapt.switching.choices import Count
from adapt.switching.policy import Policy
from recipes.common.methods import block
from recipes.same_bits.settings import Settings

Controller = adapt.Controller | adapt.learned.Learner


def attach(
    settings: Settings, optimizer: Optimizer, model: nn.Module, steps: int, calibration: Sequence[Tensor] = ()
) -> Controller | None:
    """Attach the controller of a run to its optimizer and return it; None for float32.

    Args:
        steps: optimizer steps of the whole run.
        calibration: inputs from which learned steps of activations begin.

    Raises:
        ValueError: a method's bits are missing, or it does not take an option.
    """
    method, bits, options = settings.method, settings.bits, dict(settings.options)
    if method == "float32":
        if bits is not None or options:
            raise ValueError(f"float32 takes neither bits nor options, got {bits!r} and {options}")
        return None
    if bits is None and method not in ("adapt", "compact", "compact-channels"):
        raise ValueError(f"{method} needs the bits of every layer, such as {method}:4")
    activations = options.pop("activations", None)
    if method == "aqt":
        widths = {"weight_bits": bits, "activation_bits": activations or bits}
        return adapt.learned.attach_aqt(optimizer, model, steps=steps, **{**widths, **options})
    if method in LSQ:
        return LSQ[method](optimizer, model, calibration, weight_bits=bits, activation_bits=activations, **options)
    if method == "learned":
        first, _, last = (round(share * steps) for share in options.pop("phases", (0.1, 0.8, 0.1)))
        return adapt.learned.attach(
            optimizer,
            model,
            calibration,
            weight_budget=Budget(bits=bits),
            activation_budget=None if activations is None else Budget(bits=activations),
            phases=Phases(first, steps - first - last, last),
            **{"schedule": False, "quantize_biases": False, **options},
        )
    return adapt.attach(
        optimizer,
        model,
        POLICIES[method](bits, steps, options),
        rounding="nearest",
        layer_bits={"*": int(bits)} if method == "uniform" and bits is not None else None,
        seed=settings.seed,
        activations=activations,
        execution=settings.execution,
    )


def _block(bits: int, steps: int, options: Mapping[str, Any]) -> Policy[Any]:
    return block(bits, **options)


def _cyclic(bits: int, steps: int, options: Mapping[str, Any]) -> Policy[Any]:
    return adapt.CyclicPrecision(steps, **{"bits": (3, bits), "cycles": 8} | dict(options))


def _printed(bits: None, steps: int, options: Mapping[str, Any]) -> Policy[Any]:
    if bits is not None:
        raise ValueError(f"adapt chooses its bits by itself, got {bits!r}")
    return adapt.AdaPT(**options)


def _compact(
    bits: float | None, steps: int, options: Mapping[str, Any], count: Count = "words", channels: bool = False
) -> Policy[Any]:
    return adapt.AdaPT.compact(bits=bits, count=count, **{"channels": channels, **options})


POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "block": _block,
    "uniform": _compact,
    "cyclic": _cyclic,
    "adapt": _printed,
    "compact": _compact,
    "compact-channels": partial(_compact, channels=True),
    "compact-entropy": partial(_compact, count="entropy"),
}
LSQ = {
    name + suffix: partial(
        adapt.learned.attach_lsq, per_channel=per_channel, power_of_two=power_of_two, quantize_biases=False
    )
    for name, per_channel in (("lsq", True), ("lsq-layer", False))
    for suffix, power_of_two in (("", False), ("-p2", True))
}
METHODS = ("float32", *POLICIES, *LSQ, "learned", "aqt")
