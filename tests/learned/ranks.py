"""One process of several: `torchrun --nproc-per-node 2 -m tests.learned.ranks FOLDER`."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adapt.learned import Budget, Phases, attach, attach_aqt

PROCESSES = 2
PHASES = Phases(4, 20, 6)


def network():
    """Layer normalisation, not batch normalisation: its statistics do not depend on how the batch is split."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 6, generator=generator)
    return inputs, (inputs[:, :3] + torch.randn(16, 3, generator=generator) / 2).argmax(1)


def train(share=0, shares=1, state=None, until=PHASES.total):
    """Train on a share of each batch; return the learner and the optimizer. One process calibrates with both shares."""
    model = network()
    plain = model
    if shares > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    # Every process calibrates with data of its own.
    inputs = batch(1000)[0].chunk(PROCESSES)
    inputs = inputs if shares == 1 else inputs[share : share + 1]
    learner = attach(
        optimizer,
        model,
        inputs,
        weight_budget=Budget(bits=4),
        activation_budget=Budget(bits=4),
        phases=PHASES,
        update_every=2,
    )
    if state is not None:
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(learner.step, until):
        optimizer.zero_grad()
        x, y = (part.chunk(shares)[share] for part in batch(step))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return learner, {"model": plain.state_dict(), "optimizer": optimizer.state_dict()}


def train_aqt(share=0, shares=1):
    """Train under AQT, each process on a share of each batch; return the learner."""
    model = network()
    plain = model
    if shares > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    learner = attach_aqt(optimizer, model, steps=20)
    for step in range(20):
        optimizer.zero_grad()
        x, y = (part.chunk(shares)[share] for part in batch(step))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return learner


def outcome(learner):
    """What must agree."""
    return {
        "masters": learner.masters,
        "steps": {name: torch.from_numpy(step) for name, step in learner.steps.items()},
        "ranges": {name: torch.from_numpy(most) for name, most in learner.ranges.items()},
        "widths": torch.from_numpy(learner.widths.word_length.copy()),
    }


def run(rank, size, folder):
    """What each of several processes does that no launcher started."""
    torch.distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    main(folder)


def main(folder):
    """Train as one rank of the process group, and write what came of it."""
    torch.set_num_threads(1)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    learner, _ = train(rank, size)
    torch.save(outcome(learner), folder / f"whole_{rank}.pt")
    _, state = train(rank, size, until=11)
    learner, _ = train(rank, size, state)
    torch.save(outcome(learner), folder / f"resumed_{rank}.pt")
    torch.save(outcome(train_aqt(rank, size)), folder / f"aqt_{rank}.pt")
    model = fully_shard(network())
    try:
        attach(torch.optim.SGD(model.parameters(), lr=0.1), model, weight_budget=Budget(bits=4), phases=PHASES)
    except NotImplementedError as error:
        (folder / f"refused_{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
