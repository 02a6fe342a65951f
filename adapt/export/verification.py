"""Compare a captured network with another runtime, output by output, and say where equality is guaranteed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapt.export.backends import Outcome, backend
from adapt.export.bounds import Bound, accumulator_bounds
from adapt.export.exported import Exported


@dataclass(frozen=True)
class Verification:
    """The result of comparing a captured network with another runtime.

    Attributes:
        outputs: how many numbers the network returned, over all inputs.
        differing: how many of them differ.
        largest: by how much, at most, in `unit`.
        unit: "steps" of the output's format, or "ulp", units in the last place, where it has none.
        first: the path of the first layer whose results differ, "" if none do; a description if it is unknown.
        bounds: for each layer whether its sums are the same in every order of summation, and why not.
    """

    outputs: int
    differing: int
    largest: float
    unit: str
    first: str
    bounds: Mapping[str, Bound]

    @property
    def share(self) -> float:
        """The share of equal outputs, 0 to 1."""
        return 1 - self.differing / self.outputs if self.outputs else 1.0

    @property
    def is_equal(self) -> bool:
        """Whether all outputs are equal."""
        return self.differing == 0

    def __str__(self) -> str:
        if self.is_equal:
            found = f"all of {self.outputs:,} outputs are equal"
        else:
            found = (
                f"{self.differing:,} of {self.outputs:,} outputs differ, by up to {self.largest:g} {self.unit}, first "
                f"in {self.first}"
            )
        held = [bound for bound in self.bounds.values() if bound.holds]
        lines = [found, f"the sums of {len(held)} of {len(self.bounds)} layers are exact in any order"]
        lines += [f"  not of {b.layer or 'the network'}: {b.reason}" for b in self.bounds.values() if not b.holds]
        return "\n".join(lines)


def verify(exported: Exported, inputs: Any, against: Any) -> Verification:
    """Run a captured network, as its `module()`, and another runtime on the same inputs, and compare every output.

    Args:
        exported: the captured network, with its architecture.
        inputs: a batch, which is a tensor or a tuple of forward's positional arguments; or a list or another iterable
            of batches.
        against: what to compare with: the path of a packed file or of another runtime's, an
            `adapt.export.IntegerNetwork`, a module, the controller of the attached model, or a function of the inputs.

    Raises:
        OSError, ValueError, TypeError: `against` cannot be run, or returns outputs of other shapes.
    """
    ours, theirs = backend(exported.module(), exported), backend(against, exported)
    differing = count = 0
    largest, unit, first = 0.0, "ulp", ""
    for batch in _batches(inputs):
        a, b = ours(batch), theirs(batch)
        if [x.shape for x in a.outputs] != [x.shape for x in b.outputs]:
            shapes = [[list(x.shape) for x in outcome.outputs] for outcome in (a, b)]
            raise ValueError(
                f"the network returns outputs of shapes {shapes[0]}, but what it is compared with {shapes[1]}"
            )
        steps = [_step(x, a.layers, exported) for x in a.outputs]
        if None in steps:
            steps = [None] * len(steps)
        unit = "ulp" if None in steps else "steps"
        for x, y, step in zip(a.outputs, b.outputs, steps, strict=True):
            differing += int(_differ(x, y).sum())
            count += x.numel()
            largest = max(largest, _difference(x, y, step))
        first = first or _first(a, b)
    return Verification(count, differing, largest, unit, first, accumulator_bounds(exported))


def _batches(inputs: Any) -> Iterator[tuple[Any, ...]]:
    batches: Iterable[Any] = [inputs] if isinstance(inputs, Tensor | tuple) else inputs
    for batch in batches:
        yield batch if isinstance(batch, tuple) else (batch,)


def _differ(x: Tensor, y: Tensor) -> Tensor:
    """Where two tensors differ; NaN equals NaN."""
    return (x != y) & ~(x.isnan() & y.isnan())


def _step(output: Tensor, layers: Mapping[str, Tensor], exported: Exported) -> float | None:
    """Return the step of an output that a layer has rounded; None if none has."""
    for path, form in exported.sites.items():
        layer, _, end = path.rpartition(".")
        value = layers.get(layer)
        if end == "output" and value is not None and value.shape == output.shape and not _differ(value, output).any():
            return float(form.step)
    return None


def _difference(x: Tensor, y: Tensor, step: float | None) -> float:
    """The largest difference, in steps or in units of the last place."""
    if not x.numel():
        return 0.0
    if step is not None:
        return float(((x.double() - y.double()).abs() / step).nan_to_num(nan=torch.inf).where(_differ(x, y), 0).max())
    return float((_place(x) - _place(y)).abs().where(_differ(x, y), 0).max())


def _place(x: Tensor) -> Tensor:
    """Return the position of each value among the float32 numbers in ascending order."""
    bits = x.float().contiguous().view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _first(a: Outcome, b: Outcome) -> str:
    both = [path for path in a.layers if path in b.layers]
    for path in both:
        x, y = a.layers[path], b.layers[path]
        if x.shape != y.shape or bool(_differ(x, y).any()):
            return path
    if any(bool(_differ(x, y).any()) for x, y in zip(a.outputs, b.outputs, strict=True)):
        return f"something after {both[-1]}" if both else "an unknown layer"
    return ""
