"""Run a policy in a simulated training, and raise at its first mistake."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.adaptive import attachment
from adapt.arguments import is_whole
from adapt.switching.policy import Observation, Policy, State, columns_of
from adapt.testing.states import check_state, equal, require
from adapt.trace.standard_columns import STANDARD_COLUMNS

SHAPES = ((8, 3), (4, 2, 3, 3), (1, 16))
"""The layers of the simulated training: a matrix, a convolution and a layer of another size."""

_FLAGS = tuple(name for name, member in vars(Policy).items() if isinstance(member, property))
_RECORDED = {name for name, column in STANDARD_COLUMNS.items() if column.default is not None}


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
        require(isinstance(value, bool), f"{name}.{flag} must be True or False, got {value!r}")
    hyperparameters = copy.deepcopy(getattr(policy, "__dict__", {}))
    first = _Run(policy).train(steps)
    require(
        equal(hyperparameters, getattr(policy, "__dict__", {})),
        f"{name} changes its own attributes while it trains: keep what it remembers in a dataclass derived from State, "
        "because one policy may serve several runs and only the state is saved",
    )
    require(
        equal(first, _Run(policy).train(steps)),
        f"{name} decides differently in a second run on the same steps: keep all that it remembers in the State that "
        "it returns, nowhere else, and draw no random numbers",
    )


class _Run:
    """A simulated training with drifting weights, random gradients and the engine's bookkeeping."""

    def __init__(self, policy: Policy[Any]) -> None:
        self._policy, self._name = policy, type(policy).__name__
        self._generator = torch.Generator().manual_seed(0)
        weights = [0.3 * torch.randn(shape, generator=self._generator) for shape in SHAPES]
        by_channel = getattr(policy, "channels", False)
        self._weights = [weight.flatten(1) for weight in weights] if by_channel else weights
        self._sums = [torch.zeros_like(weight) for weight in self._weights]
        self._windows: list[list[Tensor]] = [[] for _ in SHAPES]

    def train(self, steps: int) -> list[State]:
        """Return the states of all steps, after checking each."""
        policy, name = self._policy, self._name
        given = copy.deepcopy(self._weights)
        state = policy.start(self._weights)
        require(equal(given, self._weights), f"{name}.start changes the weights in place: work on a copy")
        check_state(f"{name}.start", state, len(SHAPES))
        check_state(f"{name}.start", policy.start(self._weights[:1]), 1)
        states, quiet_until = [state], 0
        for step in range(1, steps + 1):
            patience = policy.patience(state)
            require(
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
        require(
            equal(before, state),
            f"{name}.advance changes the state that it is given: return a new one by dataclasses.replace, and write "
            "`array = array + 1`, not `array += 1`",
        )
        for field, value in seen.items():
            require(
                equal(value, vars(observation)[field]),
                f"{name}.advance changes observation.{field} in place: it belongs to the training, so work on a copy",
            )
        check_state(f"{name}.advance", after, len(SHAPES))
        require(
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

    def _check_record(self, state: State) -> None:
        record = self._policy.record(state)
        where = f"{self._name}.record"
        require(isinstance(record, dict), f"{where} must return a dict of arrays, or {{}}, got {record!r:.80}")
        unknown = sorted(set(record) - _RECORDED - set(columns_of(self._policy)))
        require(
            not unknown,
            f"{where} returns {', '.join(unknown)}, which is no column of the trace: declare it in `columns`, a "
            "mapping from names to adapt.trace.Column",
        )
        for name, values in record.items():
            require(
                np.shape(values) == (len(SHAPES),),
                f"{where} returns {name} in the shape {np.shape(values)}: return one number for each layer",
            )


class _Hidden(Sequence[Any]):
    """Tensors that a policy must not read, because its `patience` had ruled out a switch in this step."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __len__(self) -> int:
        return len(SHAPES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError(
            f"{self._policy}.advance reads weights, sums, windows or saturation in a step for which patience had ruled "
            "out a switch: they are those of a later step, so read them only where a layer may switch"
        )

    def measure(self) -> NDArray[np.float64]:
        """Refuse to measure."""
        return np.array(list(self))
