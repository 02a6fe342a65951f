"""Test your own policy: `check_policy` finds common mistakes and says how to fix them."""

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.adaptive import attachment
from adapt.arguments import is_whole
from adapt.numerics import BlockFloat, Precision
from adapt.switching.policy import Observation, Policy, State, columns_of
from adapt.switching.saved_state import pack, unpack
from adapt.trace import Column, Trace

SHAPES = ((8, 3), (4, 2, 3, 3), (1, 16))
"""The layers of the simulated training: a matrix, a convolution and a layer of another size."""

_FLAGS = tuple(name for name, member in vars(Policy).items() if isinstance(member, property))
_RECORDED = {name for name, column in vars(Trace).items() if isinstance(column, Column) and column.default is not None}


def check_policy(policy: Policy[Any], *, steps: int = 250) -> None:
    """Run a policy in a simulated training of three layers, and raise at the first mistake.

    This finds formats that are missing or are not formats, methods that return nothing, flags and patience of the wrong
    type, switches that `patience` had ruled out, weights that are read when `patience` had ruled out a switch, states
    and observations that are changed in place, results that depend on anything but state and observation, states that
    do not survive a checkpoint, errors when no loss is observed or a gradient is not finite, and invalid rows of the
    trace.

    Args:
        policy: the policy.
        steps: number of simulated optimizer steps; must be more than the policy needs to switch.

    Raises:
        AssertionError: the policy has a mistake; the message says in one sentence what to do.
        TypeError: it lacks a member of a policy.
    """
    attachment.check_policy(policy)
    name = type(policy).__name__
    for flag in _FLAGS:
        value = getattr(policy, flag)
        _require(isinstance(value, bool), f"{name}.{flag} must be True or False, got {value!r}")
    hyperparameters = copy.deepcopy(getattr(policy, "__dict__", {}))
    first = _Run(policy).train(steps)
    _require(
        _equal(hyperparameters, getattr(policy, "__dict__", {})),
        f"{name} changes its own attributes while it trains: keep what it remembers in a dataclass derived from State, "
        "because one policy may serve several runs and only the state is saved",
    )
    _require(
        _equal(first, _Run(policy).train(steps)),
        f"{name} decides differently in a second run on the same steps: keep all that it remembers in the State that "
        "it returns, nowhere else, and draw no random numbers",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class _Run:
    """A simulated training with drifting weights, random gradients and the engine's bookkeeping."""

    def __init__(self, policy: Policy[Any]) -> None:
        self._policy, self._name = policy, type(policy).__name__
        self._generator = torch.Generator().manual_seed(0)
        self._weights = [0.3 * torch.randn(shape, generator=self._generator) for shape in SHAPES]
        self._sums = [torch.zeros(shape) for shape in SHAPES]
        self._windows: list[list[Tensor]] = [[] for _ in SHAPES]

    def train(self, steps: int) -> list[State]:
        """Return the states of all steps, after checking each."""
        policy, name = self._policy, self._name
        given = copy.deepcopy(self._weights)
        state = policy.start(self._weights)
        _require(_equal(given, self._weights), f"{name}.start changes the weights in place: work on a copy")
        self._check_state("start", state)
        self._check_state("start", policy.start(self._weights[:1]), layers=1)
        states, quiet_until = [state], 0
        for step in range(1, steps + 1):
            patience = policy.patience(state)
            _require(
                is_whole(patience) and patience >= 0,
                f"{name}.patience must return a whole number of steps ≥ 0, got {patience!r}: return 0 if the very next "
                "step may switch a layer",
            )
            quiet_until = max(quiet_until, step - 1 + patience)
            after = self._advanced(state, step, quiet=step <= quiet_until)
            if step <= quiet_until:
                self._check_quiet(state, after, step)
            self._check_record(after)
            for layer in np.flatnonzero(after.gradients == 0).tolist():
                self._sums[layer].zero_()
                self._windows[layer].clear()
            state = after
            states.append(state)
        return states

    def _advanced(self, state: State, step: int, *, quiet: bool) -> State:
        """Return the state after a step, whose loss may be missing and whose gradients may not be finite."""
        policy, name = self._policy, self._name
        observation, situation = self._observation(step, quiet=quiet)
        before, seen = copy.deepcopy(state), copy.deepcopy(vars(observation))
        try:
            after = policy.advance(state, observation)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"{name}.advance raised {type(error).__name__} in step {step}, in which {situation}: {error}"
            ) from error
        _require(
            _equal(_contents(before), _contents(state)),
            f"{name}.advance changes the state that it is given: return a new one by dataclasses.replace, and write "
            "`array = array + 1`, not `array += 1`",
        )
        for field, value in seen.items():
            _require(
                _equal(value, vars(observation)[field]),
                f"{name}.advance changes observation.{field} in place: it belongs to the training, so work on a copy",
            )
        self._check_state("advance", after)
        _require(
            type(after) is type(state),
            f"{name}.advance returns a {type(after).__name__}, but start a {type(state).__name__}: return the same "
            "class by dataclasses.replace",
        )
        return after  # type: ignore[no-any-return]

    def _observation(self, step: int, *, quiet: bool) -> tuple[Observation, str]:
        """Return a step's observation, and a description of what is special about the step."""
        policy, layers = self._policy, len(SHAPES)
        seen, loss, situation = np.ones(layers, bool), 2.0 / (1 + step / 50) + 0.1 * (step % 3), "all was well"
        if step % 11 == 4:
            seen[step % layers], situation = False, "the gradient of a layer was not finite (`seen` is False)"
        shown: float | None = loss
        if step % 11 == 8:
            shown, situation = None, "no loss was observed (`loss` is None)"
        norms, norms_of_sums = np.full(layers, np.nan), np.zeros(layers)
        for layer, weights in enumerate(self._weights):
            gradient = 0.1 * torch.randn(weights.shape, generator=self._generator) + 0.1 * weights
            weights -= 0.02 * gradient
            if seen[layer]:
                norms[layer] = float(gradient.norm())
                if policy.sums_gradients:
                    self._sums[layer] += gradient
                if policy.keeps_gradients:
                    self._windows[layer].append(gradient)
            norms_of_sums[layer] = float(self._sums[layer].norm())
        hidden = _Hidden(self._name)
        return Observation(
            loss=shown,
            norms=norms,
            norms_of_sums=norms_of_sums,
            seen=seen,
            sound=np.ones(layers, bool),
            weights=hidden if quiet else self._weights,
            sums=(hidden if quiet else self._sums) if policy.sums_gradients else (),
            windows=(hidden if quiet else self._windows) if policy.keeps_gradients else (),
            l1=np.zeros(layers),
            measure_saturation=hidden.measure if quiet else lambda: np.zeros(layers),
        ), situation

    def _check_quiet(self, before: State, after: State, step: int) -> None:
        """Refuse a switch, or the end of a window, in a step in which `patience` had ruled it out."""
        switched = [i for i, pair in enumerate(zip(before.formats, after.formats, strict=True)) if pair[0] != pair[1]]
        ended = np.flatnonzero((after.gradients == 0) & (before.gradients > 0)).tolist()
        if switched or ended:
            what = f"switched layer {switched[0]}" if switched else f"ended the window of layer {ended[0]}"
            raise AssertionError(
                f"{self._name}.patience had ruled out a switch in step {step}, but advance {what}: return at most the "
                "number of steps before the next one that may switch, and 0 if you cannot know it"
            )

    def _check_state(self, method: str, state: Any, layers: int = len(SHAPES)) -> None:
        """Refuse anything but a state of this many layers that survives a checkpoint."""
        where = f"{self._name}.{method}"
        hint = ": is a `return` missing?" if state is None else ": return adapt.switching.policy.State or a subclass"
        _require(isinstance(state, State), f"{where} must return a State, got {state!r:.80}{hint}")
        formats = state.formats
        _require(isinstance(formats, tuple), f"{where} must return formats as a tuple, got {formats!r:.80}")
        for form in formats:
            hint = f": write adapt.Precision{form!r}" if isinstance(form, tuple) and len(form) == 2 else ""
            _require(
                form is None or isinstance(form, Precision | BlockFloat),
                f"{where} returns {form!r:.80} as a format, but a format is an adapt.Precision, a BlockFloat or None "
                f"for float32{hint}",
            )
        _require(
            len(formats) == layers,
            f"{where} returns {len(formats)} formats for {layers} layers: return one for each, in the layers' order",
        )
        known = {field.name for field in fields(state)}
        _require(
            not (extra := sorted(set(vars(state)) - known)) and is_dataclass(type(state)),
            f"the state of {where} has {', '.join(extra)}, which is not a field and would not be saved: declare it in "
            "a class derived from State with @dataclass(frozen=True)",
        )
        for name in known - {"formats"}:
            value = getattr(state, name)
            if isinstance(value, np.ndarray):
                _require(
                    value.shape[:1] == (layers,),
                    f"{name} in the state of {where} has shape {value.shape}: an array must have one item for each of "
                    f"{layers} layers, and anything that belongs to no layer must be a number, a string or a tuple",
                )
        counts: Any = state.gradients
        _require(
            isinstance(counts, np.ndarray) and counts.dtype == np.int64 and counts.shape == (layers,),
            f"gradients in the state of {where} must be an int64 array of {layers} counts, got {counts!r:.80}",
        )
        self._check_saved(where, state, layers)

    def _check_saved(self, where: str, state: State, layers: int) -> None:
        for field in fields(state):
            try:
                packed, file = pack(state), io.BytesIO()
                torch.save(packed[field.name], file)
                file.seek(0)
                read = torch.load(file, weights_only=True)
                same = _equal(_contents(unpack({**packed, field.name: read}, state, layers)), _contents(state))
            except Exception as error:
                same, reason = False, f" ({' '.join(str(error).split()):.120})"
            else:
                reason = ""
            _require(
                same,
                f"{field.name} in the state of {where} does not come back from a checkpoint{reason}: keep NumPy arrays "
                "[layers], numbers, strings, or tuples of numbers or strings",
            )

    def _check_record(self, state: State) -> None:
        record = self._policy.record(state)
        where = f"{self._name}.record"
        _require(isinstance(record, dict), f"{where} must return a dict of arrays, or {{}}, got {record!r:.80}")
        unknown = sorted(set(record) - _RECORDED - set(columns_of(self._policy)))
        _require(
            not unknown,
            f"{where} returns {', '.join(unknown)}, which is no column of the trace: declare it in `columns`, a "
            "mapping from names to adapt.trace.Column",
        )
        for name, values in record.items():
            _require(
                np.shape(values) == (len(SHAPES),),
                f"{where} returns {name} in the shape {np.shape(values)}: return one number for each layer",
            )


class _Hidden(Sequence[Any]):
    """Tensors that a policy must not read, because its `patience` had ruled out a switch in this step."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def measure(self) -> NDArray[np.float64]:
        """Refuse to measure."""
        self._refuse()
        raise AssertionError

    def __len__(self) -> int:
        return len(SHAPES)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        self._refuse()

    def __iter__(self) -> Iterator[Any]:
        self._refuse()
        return iter(())

    def _refuse(self) -> None:
        raise AssertionError(
            f"{self._policy}.advance reads weights, sums, windows or saturation in a step for which patience had ruled "
            "out a switch: they are those of a later step, so read them only where a layer may switch"
        )


def _contents(state: State) -> dict[str, Any]:
    return dict(vars(state))


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are deeply equal; NaN equals NaN."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, State):
        return type(a) is type(b) and _equal(_contents(a), _contents(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, _Hidden) or callable(a):
        return True
    return bool(a == b) or (a != a and b != b)
