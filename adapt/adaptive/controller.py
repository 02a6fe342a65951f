"""`Controller`: the user's handle on a run whose formats a policy chooses."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapt.adaptive.run import AdaptiveRun
from adapt.distributed.sharding import full
from adapt.engine.engine import Engine
from adapt.numerics import LONGEST_WORD, FixedPoint, Precision
from adapt.switching.policy import Policy


class Controller(Engine):
    """Keeps an optimizer's layers on a fixed-point grid and lets a policy change their precision. Made by `attach`.

    The figures of a step (norms, loss) stay on the device until a layer can switch. Then the policy sees all of them in
    order, so it decides just as if it had looked at every step, without waiting for the device each time.
    """

    _run: AdaptiveRun

    @property
    def policy(self) -> Policy[Any]:
        """The policy. Between steps it may be replaced by one of the same class with other hyperparameters.

        Raises:
            TypeError: the new policy is of another class, or needs other tensors of every layer.
        """
        return self._run.decisions.policy

    @policy.setter
    def policy(self, policy: Policy[Any]) -> None:
        before = self.policy
        needs = ("sums_gradients", "samples_gradients", "keeps_gradients")
        if type(policy) is not type(before) or any(getattr(policy, n) != getattr(before, n) for n in needs):
            raise TypeError(f"policy must be of the same kind as {before!r}, whose state it takes over, got {policy!r}")
        self._run.change_policy(policy)

    @property
    def precisions(self) -> dict[str, FixedPoint]:
        """The format of every layer by the weight's name; None for a layer in float32. With a fraction length for every
        output channel, it is an `adapt.numerics.ChannelPrecision`.

        For block floating point, this is the fixed-point format of the layer's current weights.
        """
        return dict(zip(self._run.layers.names, self._run.layers.grids.precisions, strict=True))  # type: ignore[arg-type]

    @property
    def activation_precisions(self) -> dict[str, Precision]:
        """The format of every quantised input, output and error, by the weight's name and ".input" and so on.

        None where values stay float32; empty without `activations`. Reading it waits for the device.
        """
        return {} if self._run.activations is None else self._run.activations.precisions  # type: ignore[return-value]

    @property
    def skipped(self) -> dict[str, int]:
        """How many gradients of each layer were not finite. The optimizer saw zeros, the statistics skipped them."""
        self._run.flush()
        return dict(zip(self._run.layers.names, self._run.decisions.skipped.tolist(), strict=True))

    def penalty(self) -> Tensor:
        """Return the current α‖W‖₁ + β/2·‖W‖₂² + P, a 0-dim tensor without gradient: the step itself applies it."""
        layers = self._run.layers
        numel = torch.as_tensor(np.maximum(layers.numel, 1), device=layers.device)
        words = torch.as_tensor(self._run.decisions.word_lengths, dtype=torch.float64, device=layers.device)
        total = (words * layers.nonzeros / numel).mean() / LONGEST_WORD
        for alpha, weight in zip(self._run.l1_of_layers, layers.weights, strict=True):
            total = total + alpha * full(weight.abs().sum()) + self._run.options.l2 / 2 * full(weight.square().sum())
        return total.to(torch.float32)
