"""What is known of the user's optimizer: its parameters, and whether float32 masters can follow its steps."""

import gc
import inspect
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

_ENGINES = {
    "deepspeed": "DeepSpeed",
    "fairscale": "FairScale",
    "horovod": "Horovod",
    "megatron": "Megatron",
    "torch.distributed.optim": "torch.distributed.optim",
}
"""Packages whose optimizers move weights or gradients where hooks on `step()` do not see it."""


_HOLDERS = {"AcceleratedOptimizer", "BaseOptimWrapper", "OptimWrapper", "LightningOptimizer", "_FabricOptimizer"}
"""Wrappers of Accelerate, MMEngine, fastai and Lightning that write no weights beside the optimizer that they hold."""


def check_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose steps masters can follow: this one, or the one that it merely holds.

    Raises:
        TypeError: `optimizer` is no torch optimizer.
        ValueError: it evaluates the loss several times in a step, differentiates twice, or moves the weights between
            steps.
        NotImplementedError: it belongs to an engine that keeps weights or gradients for itself, wraps another
            optimizer or is wrapped by one, or lacks the hooks of torch's optimizers.
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
            f"optimizer {kind.__name__} lacks the hooks of torch's optimizers, by which its steps are followed: let "
            "its __init__ call torch.optim.Optimizer's, as super().__init__(params, defaults)"
        )
    if _differentiates_twice(optimizer):
        raise ValueError(
            f"optimizer {kind.__name__} differentiates the gradients again in its step, when the parameters hold "
            "float32 masters and no longer the weights of the forward pass: use one that needs gradients alone, such "
            "as SGD or AdamW"
        )
    # The optimizer does not know who wraps it. A wrapper that was just made is found here, any other in the first step.
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
    """Refuse a step of the optimizer that another one makes within its own.

    Raises:
        NotImplementedError: there is such a one, and it may write weights itself.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "step":
            _check_wrapper(frame.f_locals.get("self"), optimizer)


def _check_wrapper(other: object, optimizer: Optimizer) -> None:
    """Refuse an optimizer that is inside of `other`, as that of a Lookahead."""
    if issubclass(type(other), Optimizer) and _held(other) is optimizer and not _merely_holds(other):
        raise _wraps(other, optimizer)


def _wraps(wrapper: object, held: Optimizer) -> NotImplementedError:
    outer, inner = type(wrapper).__name__, type(held).__name__
    return NotImplementedError(
        f"optimizer {outer} wraps {inner} and may change weights or gradients around its step, where masters cannot "
        f"follow: train with {inner} itself, without {outer}"
    )


def _held(wrapper: object) -> Optimizer | None:
    """The optimizer that an object has as an attribute."""
    return next((value for value in getattr(wrapper, "__dict__", {}).values() if isinstance(value, Optimizer)), None)


def _merely_holds(wrapper: object) -> bool:
    return any(kind.__name__ in _HOLDERS for kind in type(wrapper).__mro__)


def _differentiates_twice(optimizer: Optimizer) -> bool:
    """Whether the optimizer estimates the diagonal of the Hessian, as AdaHessian and Sophia-H do."""
    options = {**vars(optimizer), **optimizer.param_groups[0]}
    words = [
        type(optimizer).__name__,
        *(name for name, value in options.items() if value is not None and value is not False),
    ]
    words += inspect.signature(type(optimizer).step).parameters
    return bool(getattr(optimizer, "is_second_order", False)) or any("hessian" in word.lower() for word in words)


def updates_in_place(optimizer: Optimizer) -> bool:
    """Whether only `step()` moves parameters, by operations in place on what it finds in them.

    This is known of torch's own optimizers and of ours. Any other may keep views of the parameters or put new tensors
    into them.
    """
    known = type(optimizer).__module__.startswith(("torch.optim.", "adapt."))
    return known and not any(group.get("differentiable") for group in optimizer.param_groups)


def has_scheduler(optimizer: Optimizer) -> bool:
    """Return whether one of torch's learning-rate schedulers was made for the optimizer: each wraps its `step`."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def is_scaled() -> bool:
    """Return whether an enabled GradScaler is making the present optimizer step."""
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        if caller.f_code is torch.amp.GradScaler.step.__code__:
            return bool(caller.f_locals["self"].is_enabled())
        frame = caller
    return False


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of the optimizer, group by group."""
    for group in optimizer.param_groups:
        yield from group["params"]
