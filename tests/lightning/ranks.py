"""One process of several: `python -m tests.lightning.ranks FOLDER PROCESSES [--fork]`.

Lightning starts the others, or, with --fork, this process does before it trains, as torchrun would.
"""

import os
import socket
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from tests.lightning.modules import Classifier, data, loader, precision

EPOCHS = 3


class Share(lightning.LightningDataModule):
    """Gives every process its share of each batch; Lightning's own sampler would shuffle, but not for one process."""

    def __init__(self, processes, batches=6, samples=8):
        super().__init__()
        self.processes, self.data, self.size = processes, data(batches, samples), samples // processes

    def train_dataloader(self):
        return DataLoader(self.data, self.size, sampler=range(self.trainer.global_rank, len(self.data), self.processes))

    def val_dataloader(self):
        return loader(2)


def train(folder, processes, ckpt_path=None):
    """Train on batches that are split over the processes; return callback and trainer."""
    callback = precision(l1=1e-3, l2=1e-3)
    strategy = DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto"
    run = lightning.Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, max_epochs=EPOCHS, log_every_n_steps=2,
        callbacks=[callback, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)], logger=CSVLogger(folder, version=0),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(Classifier(), datamodule=Share(processes), ckpt_path=ckpt_path)
    return callback, run


def outcome(callback):
    """What must agree."""
    controller = callback.controller
    return {
        "masters": controller.masters,
        "formats": {name: (p.word_length, p.fraction_length) for name, p in controller.precisions.items()},
        "word_length": torch.from_numpy(callback.trace.word_length.copy()),
        "diversity": torch.from_numpy(callback.trace.diversity.copy()),
        "losses": list(controller.state_dict()["state"]["losses"]),
    }


def fork(processes):
    """Become several processes, each with the variables by which Lightning knows that all of them are there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank, started = 0, []
    while rank == 0 and len(started) + 1 < processes:
        child = os.fork()
        if child == 0:
            rank = len(started) + 1
        started.append(child)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    return started if rank == 0 else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    others = fork(processes) if "--fork" in sys.argv else []
    callback, run = train(folder, processes)
    torch.save(outcome(callback), folder / f"whole_{run.global_rank}.pt")
    callback, run = train(folder, processes, ckpt_path=folder / "epoch=0.ckpt")
    torch.save(outcome(callback), folder / f"resumed_{run.global_rank}.pt")
    if any(os.waitpid(child, 0)[1] for child in others):
        sys.exit("another rank failed")
