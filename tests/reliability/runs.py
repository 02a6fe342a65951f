"""A small run with all that a real one has to restore, in this process or in one of its own that can be killed.

Epochs in shuffled order, dropout, momentum, two micro-batches to a step, and a checkpoint after every micro-batch.
"""

import hashlib

import numpy as np
import torch
from torch import nn

import adapt

ACCUMULATED = 2
EPOCH = 14
"""Micro-batches, so that an epoch is no whole number of windows."""

QUICK = {"lookback": (2, 5), "resolution": (8, 20)}
SETTINGS = {
    "paper": (adapt.AdaPT(**QUICK), {}),
    "compact": (adapt.AdaPT(buffer_bits=0, kl_tolerance=0.3, **QUICK), {"rounding": "nearest", "l1": 1e-4, "l2": 1e-3}),
    "algorithm 4": (adapt.AdaPT(push_up="diversity", quantize_gradients=True, **QUICK), {"l1_by_word_length": True}),
    "biases": (adapt.AdaPT(normalize_gradients=False, **QUICK), {"quantize_biases": True, "trace_every": 3}),
    "MuPPET": (
        adapt.MuPPET(steps_per_epoch=2, window=2, violations=1, threshold=(1.0, 0.0, 0.0)),
        {"quantize_biases": True, "activations": "range", "quantize_errors": True},
    ),
    "fixed": (adapt.Fixed(adapt.Precision(6, 4)), {"seed": 5}),
}


class Run:
    """A run that stands `position` micro-batches after its start."""

    def __init__(self, setting, *, init=0):
        torch.manual_seed(init)
        policy, options = SETTINGS[setting]
        self.model = nn.Sequential(
            nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=5, gamma=0.9)
        self.controller = adapt.attach(self.optimizer, self.model, policy, **options)
        self.position = 0

    def advance(self):
        """One micro-batch, and after every second one an optimizer step."""
        epoch, place = divmod(self.position, EPOCH)
        inputs, targets = examples()
        chosen = torch.randperm(EPOCH, generator=torch.Generator().manual_seed(epoch))[place]
        loss = nn.functional.cross_entropy(self.model(inputs[chosen]), targets[chosen])
        (loss / ACCUMULATED).backward()
        self.controller.observe(loss)
        self.position += 1
        if self.position % ACCUMULATED == 0:
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()

    def state(self):
        """All that has to be saved."""
        return {
            "position": self.position,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }

    def resume(self, state):
        """Go on from where `state` was saved."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self.position = state["position"]

    def digest(self):
        """One number for the run."""
        return summed(self.controller, self.model)


def summed(controller, model):
    """One number for weights, masters, momentum, formats and trace, to the last bit."""
    summary = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *controller.masters.items()):
        summary.update(name.encode() + tensor.detach().numpy().tobytes())
    for state in controller.optimizer.state.values():
        summary.update(state["momentum_buffer"].numpy().tobytes())
    summary.update(repr((controller.step, controller.precisions, controller.skipped)).encode())
    for name, value in controller.trace.state_dict().items():
        summary.update(name.encode() + (value.numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()))
    return summary.hexdigest()


def examples():
    """Inputs [EPOCH, 8, 6] and targets [EPOCH, 8] that can be learned in part."""
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(EPOCH, 8, 6, generator=generator)
    noise = torch.randn(EPOCH, 8, 3, generator=generator) / 2
    return inputs, (inputs[..., :3] + noise).argmax(-1)


def switches(trace):
    """How often a layer's format changed."""
    return int(np.count_nonzero(trace.switches()))


def main(folder, setting, micro_batches):
    """Train up to `micro_batches`, from the checkpoint if there is one; write the digest at the end."""
    torch.set_num_threads(1)
    run = Run(setting)
    if (folder / "checkpoint").exists():
        run.resume(adapt.load(folder / "checkpoint"))
    (folder / "started").touch()
    while run.position < micro_batches:
        run.advance()
        adapt.save(run.state(), folder / "checkpoint")
    (folder / "digest").write_text(run.digest())
