"""AdaPT-SGD (AdaPT, section 3.4): torch's SGD with a controller attached."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Unpack

import torch
from torch import nn

from adapt.adaptive.attachment import attach
from adapt.adaptive.controller import Controller
from adapt.adaptive.options import Options, shows_options
from adapt.layers.naming import Parameters, named
from adapt.switching.policy import Policy


class ASGD(torch.optim.SGD):
    """Stochastic gradient descent on float32 masters, with forward and backward at adaptive precision.

    A drop-in replacement for `torch.optim.SGD`. The controller is `optimizer.controller`; `state_dict()` includes its
    state. A copied or unpickled ASGD has no controller and refuses to step: use `adapt.attach` on a plain SGD if you
    need copies.

    Args:
        params: a module, named parameters, parameters, or parameter groups.
        lr, momentum, …: as in `torch.optim.SGD`.
        policy, options: as in `adapt.attach` (l1, l2, rounding, seed, layers, …).
    """

    @shows_options
    def __init__(
        self,
        params: Parameters,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        policy: Policy[Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(lr, Real | torch.Tensor):
            hint = ": give the policy as policy=" if hasattr(lr, "advance") else ""
            raise TypeError(f"lr must be a number or a tensor, got {lr!r}{hint}")
        source: Any = params
        if isinstance(params, Iterable) and not isinstance(params, nn.Module | Mapping | torch.Tensor):
            source = list(params)
        has_groups = isinstance(source, list) and any(isinstance(entry, dict) for entry in source)
        if not (has_groups or isinstance(source, nn.Module)):
            source = named(source)
        super().__init__(
            source if has_groups else list(named(source).values()),
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.controller: Controller = attach(self, self.param_groups if has_groups else source, policy, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "controller" not in self.__dict__:
            self.register_step_pre_hook(_refuse)


def _refuse(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    raise RuntimeError(
        "this ASGD is a copy without a controller and would train in float32: make a new adapt.ASGD for the copied "
        "model and load the original's state_dict() into it"
    )
