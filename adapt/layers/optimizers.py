"""What is known of the user's optimizer: its parameters, and whether float32 masters can follow its steps."""

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


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that moves the weights in a way that masters cannot follow.

    Raises:
        TypeError: `optimizer` is no torch optimizer.
        ValueError: it evaluates the loss several times in a step, or moves the weights between steps.
        NotImplementedError: it belongs to an engine that keeps weights or gradients for itself.
    """
    for kind in type(optimizer).__mro__:
        for package, engine in _ENGINES.items():
            if f"{kind.__module__}.".startswith(f"{package}."):
                raise NotImplementedError(
                    f"optimizer {kind.__name__} of {engine} moves weights or gradients where masters cannot follow: "
                    "use a plain torch optimizer with DistributedDataParallel or fully_shard (FSDP2)"
                )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    kind = type(optimizer)
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


def updates_in_place(optimizer: Optimizer) -> bool:
    """Whether only `step()` moves parameters, by operations in place on what it finds in them.

    This is known of torch's own optimizers and of ours. Any other may keep views of the parameters or put new tensors
    into them.
    """
    known = type(optimizer).__module__.startswith(("torch.optim.", "adapt."))
    return known and not any(group.get("differentiable") for group in optimizer.param_groups)


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield every parameter of the optimizer, group by group."""
    for group in optimizer.param_groups:
        yield from group["params"]
