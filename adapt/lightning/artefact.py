"""The packed file of the best checkpoint, written when fit ends."""

import os
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from adapt import export
from adapt.lightning.packages import LightningModule, Trainer


def check_artefact(path: str | os.PathLike[str] | None, trainer: Trainer) -> None:
    """Refuse a fit that could not write its artefact.

    Raises:
        ValueError: the trainer saves no checkpoints, or there is no folder for the file.
    """
    if path is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if trainer.checkpoint_callback is None:
        raise ValueError(f"export={str(path)!r} is made from the best checkpoint: give the trainer a ModelCheckpoint")
    if not Path(path).parent.is_dir():
        raise ValueError(f"export={str(path)!r} needs an existing folder: create {Path(path).parent} first")


def write_artefact(path: str | os.PathLike[str], trainer: Trainer, module: LightningModule) -> None:
    """Write the packed file of the best checkpoint. If that fails, fit ends normally, and a warning says why."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    if not best:
        rank_zero_warn(f"{path} was not written, because no checkpoint was saved")
        return
    try:
        exported = export.capture(best, module)
        exported.save(path)
    except Exception as error:
        rank_zero_warn(f"{path} was not written: {error}. The checkpoint is {best}: see adapt.export.capture")
        return
    size = Path(path).stat().st_size
    rank_zero_info(f"{path} holds the network of {best}: {size:,} bytes, {exported.float32_bytes:,} in float32")
