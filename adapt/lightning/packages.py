"""Lightning's two packages, `lightning` and `pytorch_lightning`, side by side: a trainer may come from either."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Union

__all__ = [
    "PACKAGES",
    "Callback",
    "LightningModule",
    "Logger",
    "Trainer",
    "classes",
    "has_own_forward",
    "isolate_rng",
    "move_data_to_device",
]

NAMES = ("lightning.pytorch", "pytorch_lightning")


def _import_all() -> tuple[str, ...]:
    """Import the installed packages, first those that the program has imported already, and return their names.

    The packages share the functions that log, and each lets them use its own logger when it is imported. The logger of
    the first stays, because that is the one whose level the user has set.

    Raises:
        ImportError: none of them can be imported.
    """
    found: list[str] = []
    log: Any = None
    reason: ImportError | None = None
    for package in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            import_module(package)
        except ImportError as error:
            # A package that is installed but broken is no obstacle to the other.
            reason = error
        else:
            from lightning_utilities.core import rank_zero

            log = rank_zero.log if log is None else log
            rank_zero.log = log
            found.append(package)
    if not found:
        raise ImportError(
            "adapt.lightning needs lightning or pytorch_lightning: run pip install 'adapt-precision[lightning]'"
        ) from reason
    return tuple(found)


PACKAGES = _import_all()
"""The installed packages, one or both."""


def classes(*names: str) -> tuple[type[Any], ...]:
    """Return classes for `isinstance`, each from every package that has it.

    Args:
        names: what the classes are called inside a package, such as "callbacks.WeightAveraging".
    """
    found = []
    for name in names:
        folder, _, own = name.rpartition(".")
        modules = (import_module(f"{package}.{folder}".rstrip(".")) for package in PACKAGES)
        found += [getattr(module, own) for module in modules if hasattr(module, own)]
    return tuple(found)


def has_own_forward(module: Any) -> bool:
    """Return whether a LightningModule defines forward."""
    return all(type(module).forward is not kind.forward for kind in classes("LightningModule"))


if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import move_data_to_device
    from lightning.pytorch.utilities.seed import isolate_rng
else:
    Trainer, LightningModule, Logger = (
        Union[classes(name)]  # noqa: UP007
        for name in ("Trainer", "LightningModule", "loggers.Logger")
    )

    class Callback(*classes("Callback")):
        """A callback of every package: LightningCLI, and trainers that are given a single callback, check the class."""

    # These know neither trainers nor modules, so it does not matter whose they are.
    move_data_to_device = import_module(f"{PACKAGES[0]}.utilities").move_data_to_device
    isolate_rng = import_module(f"{PACKAGES[0]}.utilities.seed").isolate_rng
