"""A Lightning run in a process of its own that can be killed, with a checkpoint after every step."""

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.lightning.modules import Classifier, ResumableLoader, precision, trainer
from tests.reliability.runs import summed


class Started(Callback):
    """Leaves a file when training begins."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, *_):
        (self.folder / "started").touch()


def main(folder, steps):
    """Train up to `steps`, from the last checkpoint if there is one; write the digest at the end."""
    torch.set_num_threads(1)
    module, callback = Classifier(), precision(l1=1e-4, quantize_biases=True)
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, enable_version_counter=False)
    run = trainer(callback, keep, Started(folder), max_steps=steps, max_epochs=-1, enable_checkpointing=True)
    last = folder / "last.ckpt"
    run.fit(module, ResumableLoader(), ckpt_path=last if last.exists() else None, weights_only=True)
    (folder / "digest").write_text(summed(callback.controller, module))
