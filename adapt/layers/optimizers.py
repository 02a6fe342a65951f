"""Properties of the user's optimizer: its parameters, and whether float32 masters can follow its steps."""

import gc
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from adapt import call_stack

_ENGINES = {
    "deepspeed": "DeepSpeed",
    "fairscale": "FairScale",
    "horovod": "Horovod",
    "megatron": "Megatron",
    "torch.distributed.optim": "torch.distributed.optim",
}
"""Packages whose optimizers change weights or gradients outside the reach of hooks on `step()`."""


_PLAIN_WRAPPERS = {"AcceleratedOptimizer", "BaseOptimWrapper", "OptimWrapper", "LightningOptimizer", "_FabricOptimizer"}
"""Wrappers of Accelerate, MMEngine, fastai and Lightning that hold an optimizer and write no weights themselves."""


def check_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose steps masters can follow: this one, or the one that it merely holds.

    Raises:
        TypeError: `optimizer` is not a torch optimizer.
        ValueError: it evaluates the loss several times per step, differentiates twice, or changes the weights between
            steps.
        NotImplementedError: it belongs to an engine with its own weights or gradients, wraps another optimizer or is
            wrapped by one, or lacks the hooks of torch's optimizers.
    """
    held = _held(optimizer)
    if held is not None and _merely_holds(optimizer):
        return check_optimizer(held)
    kind = type(optimizer)
    for base in kind.__mro__:
        for package, engine in _ENGINES.items():
            if f"{base.__module__}.".startswith(f"{package}."):
                raise NotImplementedError(
                    f"optimizer {base.__name__} of {engine} moves weights or gradients where masters cannot follow: "
                    "use a plain torch optimizer with DistributedDataParallel or fully_shard (FSDP2)"
                )
    if not isinstance(optimizer, Optimizer):
        hint = f": if it changes weights only by step() of the {type(held).__name__} in it, pass that" if held else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind.__name__}{hint}")
    if isinstance(optimizer, torch.optim.LBFGS) or (hasattr(kind, "first_step") and hasattr(kind, "second_step")):
        raise ValueError(
            f"optimizer {kind.__name__} evaluates the loss several times in one step, so all but its first forward "
            "pass would run on float32 masters: use one that evaluates once, such as SGD or AdamW"
        )
    if hasattr(kind, "train") and hasattr(kind, "eval"):
        raise ValueError(
            f"optimizer {kind.__name__} moves the weights between its steps, in train() and eval(), where masters "
            "cannot follow: use one that moves them in step() alone, such as SGD or AdamW"
        )
    if held is not None:
        raise _wraps(optimizer, held)
    tables = ("step_pre", "step_post", "state_dict_post", "load_state_dict_pre")
    if not (all(hasattr(optimizer, f"_optimizer_{table}_hooks") for table in tables) and hasattr(kind.step, "hooked")):
        raise NotImplementedError(
            f"optimizer {kind.__name__} lacks the hooks of torch's optimizers, through which its steps are followed: "
            "its __init__ must call torch.optim.Optimizer's, super().__init__(params, defaults)"
        )
    if _differentiates_twice(optimizer):
        raise ValueError(
            f"optimizer {kind.__name__} differentiates the gradients again in its step, when the parameters hold "
            "float32 masters and no longer the weights of the forward pass: use one that needs gradients alone, such "
            "as SGD or AdamW"
        )
    # An optimizer does not know its wrapper. A wrapper made just now is found here, any other in the first step.
    for other in _young_optimizers():
        _check_wrapper(other, optimizer)
    return optimizer


def _young_optimizers() -> list[Optimizer]:
    """Return the optimizers that were made lately.

    All young objects are held in here alone, because the traceback of an error would keep them alive.
    """
    young = (*gc.get_objects(generation=0), *gc.get_objects(generation=1))
    return [one for one in young if issubclass(type(one), Optimizer)]


def check_callers(optimizer: Optimizer) -> None:
    """Check that the optimizer's step is not called from the step of another optimizer.

    Raises:
        NotImplementedError: it is, and the other optimizer may write weights itself.
    """
    for frame in call_stack.callers():
        if frame.f_code.co_name == "step":
            _check_wrapper(frame.f_locals.get("self"), optimizer)


def _check_wrapper(other: object, optimizer: Optimizer) -> None:
    """Refuse an optimizer that is wrapped by `other`, as by a Lookahead."""
    if issubclass(type(other), Optimizer) and _held(other) is optimizer and not _merely_holds(other):
        raise _wraps(other, optimizer)


def _wraps(wrapper: object, held: Optimizer) -> NotImplementedError:
    outer, inner = type(wrapper).__name__, type(held).__name__
    return NotImplementedError(
        f"optimizer {outer} wraps {inner} and may change weights or gradients around its step, where masters cannot "
        f"follow: train with {inner} itself, without {outer}"
    )


def _held(wrapper: object) -> Optimizer | None:
    """Return the optimizer that an object has as an attribute, if any."""
    return next((value for value in getattr(wrapper, "__dict__", {}).values() if isinstance(value, Optimizer)), None)


def _merely_holds(wrapper: object) -> bool:
    return any(kind.__name__ in _PLAIN_WRAPPERS for kind in type(wrapper).__mro__)


def _differentiates_twice(optimizer: Optimizer) -> bool:
    """Return whether the optimizer estimates the diagonal of the Hessian, as AdaHessian and Sophia-H do."""
    options = {**vars(optimizer), **optimizer.param_groups[0]}
    words = [
        type(optimizer).__name__,
        *(name for name, value in options.items() if value is not None and value is not False),
    ]
    words += inspect.signature(type(optimizer).step).parameters
    return bool(getattr(optimizer, "is_second_order", False)) or any("hessian" in word.lower() for word in words)


def updates_in_place(optimizer: Optimizer) -> bool:
    """Return whether only `step()` changes parameters, by operations in place on their present memory.

    This is known of torch's own optimizers and of ours. Others may keep views of the parameters or replace their
    memory.
    """
    known = type(optimizer).__module__.startswith(("torch.optim.", "adapt."))
    return known and not any(group.get("differentiable") for group in optimizer.param_groups)


def has_scheduler(optimizer: Optimizer) -> bool:
    """Return whether one of torch's learning-rate schedulers was made for the optimizer: each wraps its `step`."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def has_plateau_scheduler(optimizer: Optimizer) -> bool:
    """Return whether a `ReduceLROnPlateau` was made for the optimizer.

    It wraps nothing, so it is looked for among all objects, which takes some ten milliseconds.
    """
    schedulers = [one for one in gc.get_objects() if issubclass(type(one), ReduceLROnPlateau)]
    return any(vars(one).get("optimizer") is optimizer for one in schedulers)


def is_scaled() -> bool:
    """Return whether an enabled GradScaler is making the present optimizer step."""
    for frame in call_stack.callers():
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
    return False


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of the optimizer, group by group."""
    for group in optimizer.param_groups:
        yield from group["params"]
