"""What several processes do at once: scenarios, each of which returns what one rank saw."""

import contextlib
import copy
import itertools
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import adapt
from adapt.distributed.sharding import sharded_like
from tests.processes import together

STEPS, HALF = 30, 13
"""HALF lies inside a window."""

QUICK = {"lookback": (2, 5), "resolution": (8, 20)}
SETTINGS = {
    "paper": (adapt.AdaPT(**QUICK), {"l1": 1e-4}),
    "not normalised": (adapt.AdaPT(normalize_gradients=False, **QUICK), {"rounding": "nearest"}),
    "algorithm 4": (
        adapt.AdaPT(push_up="diversity", quantize_gradients=True, **QUICK),
        {"quantize_biases": True, "l1": 1e-4, "l2": 1e-3},
    ),
    "MuPPET": (
        # Every window raises the word length.
        adapt.MuPPET(2, (4, 8, 12, 14, 16), 2, 1, threshold=(0.0, 0.0, 0.0), quantize_gradients=True),
        {"quantize_biases": True},
    ),
    "channels": (
        adapt.AdaPT.compact(channels=True, lookback=(1, 3), loss_tolerance=0.01, quantize_gradients=True),
        {"quantize_biases": True, "l1": 1e-4},
    ),
}

COMPACT = {"compact": (adapt.AdaPT.compact(), {"quantize_biases": True, "rounding": "nearest"})}

ACTIVATIONS = {"activations": "range", "quantize_errors": True, "rounding": "nearest"}
"""Ranges are those of all processes. Nearest, because every process draws its own noise for its own samples."""


def make_model(init=0):
    """Nine rows: five and four on two processes; three, three, three and none on four."""
    torch.manual_seed(init)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Sequential(nn.Linear(9, 5), nn.Tanh()), nn.Linear(5, 3))


def batch(step, size=16):
    """The combined batch of one step: inputs [size, 6] and targets [size]."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(size, 6, generator=generator)
    return inputs, (inputs[:, :3] + torch.randn(size, 3, generator=generator) / 2).argmax(1)


class Training:
    """A model, its optimizer and its controller; every process feeds its share of the batch, or all of it."""

    def __init__(self, setting, *, engine=None, init=0, shares=1, share=0, more=None):
        policy, options = (SETTINGS | COMPACT)[setting]
        options = options | (more or {})
        self.plain = model = make_model(init)
        if engine == "fsdp":
            fully_shard(model[2])
            model = fully_shard(model)
        elif engine == "ddp":
            model = DistributedDataParallel(model)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.controller = adapt.attach(self.optimizer, model, policy, **options)
        self.shares, self.share, self.done = shares, share, 0
        self.formats = []

    def train(self, until):
        for step in range(self.done, until):
            inputs, targets = (part.chunk(self.shares)[self.share] for part in batch(step))
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.controller.observe(loss)
            self.optimizer.step()
            self.formats.append(formats_of(self.controller))
        self.done = until
        return self

    def outcome(self):
        """What a comparison looks at: whole tensors and plain values."""
        return {
            "weights": {n: whole(p.detach()) for n, p in self.plain.named_parameters()},
            "masters": {n: whole(m) for n, m in self.controller.masters.items()},
            "momentum": [whole(s["momentum_buffer"]) for s in self.optimizer.state.values()],
            "formats": self.formats,
            "skipped": self.controller.skipped,
            "trace": self.controller.trace.state_dict(),
        }


def formats_of(controller):
    return [None if p is None else (p.word_length, p.fraction_length) for p in controller.precisions.values()]


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def ddp(folder, rank, size):
    """Every process its share of the batch."""
    return {s: Training(s, engine="ddp", shares=size, share=rank).train(STEPS).outcome() for s in SETTINGS}


def activations(folder, rank, size):
    """Activations and errors quantised as well, under either engine."""
    results = {}
    for engine in ("ddp", "fsdp"):
        training = Training("paper", engine=engine, shares=size, share=rank, more=ACTIVATIONS).train(STEPS)
        formats = {n: (p.word_length, p.fraction_length) for n, p in training.controller.activation_precisions.items()}
        results[engine] = {**training.outcome(), "activations": formats}
    return results


def ddp_state_on_one_rank(folder, rank, size):
    """Rank 0 alone saves in the middle of a window; it and the others go on, or start again from its file."""
    training = Training("paper", engine="ddp", shares=size, share=rank).train(HALF)
    if rank == 0:
        adapt.save(
            {"model": training.plain.state_dict(), "optimizer": training.optimizer.state_dict()}, folder / "ddp.pt"
        )
        assert len(training.controller.trace) == HALF
    training.train(STEPS)
    dist.barrier()
    resumed = Training("paper", engine="ddp", shares=size, share=rank, init=1)
    state = adapt.load(folder / "ddp.pt")
    resumed.plain.load_state_dict(state["model"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.done, resumed.formats = HALF, training.formats[:HALF]
    return {"straight": training.outcome(), "resumed": resumed.train(STEPS).outcome()}


def fsdp(folder, rank, size):
    """Every process the whole batch, so that the mean of the gradients is that of one process, bit for bit."""
    results = {}
    for setting in SETTINGS:
        training = Training(setting, engine="fsdp").train(STEPS)
        assert isinstance(training.model, FSDPModule)
        controller = training.controller
        for master, parameter in zip(controller.masters.values(), controller.layers.values(), strict=True):
            assert type(master) is type(parameter.data), "masters are sharded like their parameters"
            assert master.to_local().numel() < master.numel()
        results[setting] = training.outcome()
    return results


def fsdp_shares(folder, rank, size):
    """Every process its share of the batch, as in earnest."""
    return {s: Training(s, engine="fsdp", shares=size, share=rank).train(STEPS).outcome() for s in SETTINGS}


def fsdp_views(folder, rank, size):
    """What forward passes see when training and evaluation take turns, and what is saved."""
    training = Training("paper", engine="fsdp").train(HALF)
    model, controller, seen = training.model, training.controller, []
    for layer in (model[0], model[2][0], model[3]):
        layer.register_forward_hook(lambda module, *_: seen.append(module.weight.detach().clone()))
    inputs, _ = batch(0)

    def look(context=None):
        seen.clear()
        with torch.no_grad():
            model(inputs)
        return list(seen)

    views = {"training": look()}
    model.eval()
    views["evaluation"] = look()
    model.train()
    views["training again"] = look()
    with controller.master_weights():
        views["masters"] = look()
    views["after masters"] = look()
    if rank == 0:
        # Neither needs the other processes.
        assert len(controller.trace) == HALF
        controller.state_dict()
    return {
        "views": views,
        "training": [whole(parameter.detach()) for parameter in controller.layers.values()],
        "masters": [whole(m) for m in controller.masters.values()],
        "precisions": formats_of(controller),
        "saved": {n: whole(v) for n, v in model.state_dict().items()},
        "penalty": float(controller.penalty()),
        "numel": controller.trace.numel.tolist(),
        "nonzero": controller.trace.nonzero[-1].tolist(),
    }


def states(training):
    return {
        "model": get_model_state_dict(training.model),
        "optimizer": get_optimizer_state_dict(training.model, training.optimizer),
        "precision": training.controller,
    }


def save_sharded(folder, rank, size):
    """A sharded checkpoint in the middle of a window, and how the run went on."""
    training = Training("paper", engine="fsdp").train(HALF)
    dcp.save(states(training), checkpoint_id=folder / "sharded")
    return training.train(STEPS).outcome()


def load_sharded(folder, rank, size):
    """Go on from the sharded checkpoint, on whatever number of processes there are."""
    training = Training("paper", engine="fsdp", init=1)
    state = states(training)
    dcp.load(state, checkpoint_id=folder / "sharded")
    set_model_state_dict(training.model, state["model"])
    set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"])
    training.done = HALF
    assert training.controller.step == HALF
    return training.train(STEPS).outcome()


def load_whole(folder, rank, size):
    """A checkpoint of one process goes on as a sharded run."""
    training = Training("paper", engine="fsdp", init=1)
    state, options = adapt.load(folder / "whole.pt"), StateDictOptions(full_state_dict=True)
    training.controller.load_state_dict(state["precision"])
    set_model_state_dict(training.model, state["model"], options=options)
    set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"], options=options)
    training.done = HALF
    return training.train(STEPS).outcome()


def copy_in(training):
    """Write whole weights into a network that no step has been made with."""
    with torch.no_grad():
        for parameter, other in zip(training.plain.parameters(), make_model(5).parameters(), strict=True):
            parameter.copy_(sharded_like(40 * other.detach(), parameter))
    return training


def fsdp_copied(folder, rank, size):
    """Weights that were copied in before the first step, under compact formats."""
    return copy_in(Training("compact", engine="fsdp")).train(HALF).outcome()


def prune(training):
    """Write zeros into some elements of every weight, as a pruning mask does between two steps."""
    with torch.no_grad():
        for parameter in training.plain.parameters():
            parameter.mul_((parameter.abs() > 0.1).to(parameter.dtype))
    return training


def fsdp_saved_alone(folder, rank, size):
    """All save after other code has written into weights before the first step; rank 0 alone between two steps."""
    saved = {}
    training = copy_in(Training("compact", engine="fsdp"))
    training.optimizer.state_dict()
    if rank == 0:
        training.controller.state_dict()
    prune(training.train(HALF))
    if rank == 0:
        state = training.controller.state_dict()
        masters = {name: master.to_local().clone() for name, master in state["masters"].items()}
        weights = {name: weight.to_local().clone() for name, weight in training.plain.state_dict().items()}
        saved = {"masters": masters, "weights": weights}
    with training.controller.evaluation_weights():
        expected = {
            "masters": {name: master.to_local().clone() for name, master in training.controller.masters.items()},
            "weights": {name: p.detach().to_local().clone() for name, p in training.plain.named_parameters()},
        }
    return {"saved": saved, "expected": expected, "outcome": training.train(STEPS).outcome()}


BETWEEN = {"eval": "evaluation", "part": "evaluation", "evaluation_weights": "evaluation", "master_weights": "masters"}
"""What a pass between forward and backward sees: a model or a part of it in evaluation mode, and the two contexts."""

BACKWARD = ("no graph", "one after the other", "the later first", "sum")
"""What becomes of the graph of the pass between; only losses of equal views have a common backward pass under FSDP."""


def passes_between(folder, rank, size):
    """Gradients with a pass between forward and backward, and those where a plain copy made that pass."""
    results = {}
    for engine in ("ddp", "fsdp"):
        training = Training("paper", engine=engine).train(HALF)
        for number, (how, backward) in enumerate(itertools.product(BETWEEN, BACKWARD)):
            if engine == "fsdp" and backward == "sum":
                continue
            found, expected = _pass_between(training, how, backward)
            results[f"{engine}, {how}, {backward}"] = {"found": found, "expected": expected}
            training.train(HALF + number + 1)
    training.optimizer.zero_grad()
    loss = training.model(batch(7)[0]).square().mean()
    with training.controller.evaluation_weights():
        other = training.model(batch(8)[0]).square().mean()
    try:
        (loss + other).backward()
    except RuntimeError as error:
        results["fsdp, sum"] = str(error)
    return results


def _pass_between(training, how, backward):
    model, controller, graph = training.model, training.controller, backward != "no graph"
    student = copied(training, "training", [])
    teacher = copied(training, BETWEEN[how], ["2.0.weight"] if how == "part" else list(controller.masters))
    context = getattr(controller, how)() if "weights" in how else contextlib.nullcontext()
    training.optimizer.zero_grad()
    losses = [model(batch(7)[0]).square().mean()], [student(batch(7)[0]).square().mean()]
    (model if how == "eval" else training.plain[2] if how == "part" else nn.Module()).eval()
    with context, torch.set_grad_enabled(graph):
        losses[0].append(model(batch(8)[0]).square().mean())
        losses[1].append(teacher(batch(8)[0]).square().mean())
    model.train()
    assert torch.equal(losses[0][1], losses[1][1])
    for run in losses:
        if backward == "sum":
            sum(run).backward()
            continue
        for loss in {"no graph": run[:1], "the later first": run[::-1]}.get(backward, run):
            loss.backward()
    gradients = [copy_gradients(twin) for twin in ([student, teacher] if graph else [student])]
    expected = {name: sum(part[name] for part in gradients) for name in gradients[0]}
    return copy_gradients(training.plain), expected


def copied(training, view, names):
    """A plain network with the weights that the parameters show, or in `names` with this view of their masters."""
    controller, twin = training.controller, make_model()
    shown = dict(training.plain.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            values = controller.masters[name] if name in names else shown[name].detach()
            form = controller.precisions[name] if name in names and view == "evaluation" else None
            parameter.copy_(whole(values) if form is None else adapt.quantize(whole(values), form))
    return twin


def copy_gradients(model):
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


def refusals(folder, rank, size):
    """The error of everything that cannot be supported."""
    errors = {}

    def attempt(name, make):
        try:
            make()
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"

    model = make_model()
    attempt("zero", lambda: adapt.attach(ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1), model))
    for name, original in (("fsdp1", False), ("fsdp1 with original parameters", True)):
        wrapped = FullyShardedDataParallel(make_model(), use_orig_params=original, device_id=torch.device("cpu"))
        attempt(name, lambda w=wrapped: adapt.attach(torch.optim.SGD(w.parameters(), lr=0.1), w))
    mesh = init_device_mesh("cpu", (size,))
    columns = nn.Linear(8, 4)
    columns.weight = nn.Parameter(distribute_tensor(columns.weight.detach(), mesh, [Shard(1)]))
    attempt("columns", lambda: adapt.attach(torch.optim.SGD(columns.parameters(), lr=0.1), columns))
    return errors


def run(rank, size, folder, scenario):
    """Take part in a scenario as one rank, and write what it saw."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / scenario}-{size}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=120), rank=rank, world_size=size)
    result = globals()[scenario](folder, rank, size)
    torch.save(copy.deepcopy(result), folder / f"{scenario}-{size}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class Processes:
    """Runs scenarios on several processes when their results are asked for: `Processes(folder, 2)["ddp"]`."""

    def __init__(self, folder, size):
        self.folder, self.size, self.results = folder, size, {}

    def __getitem__(self, scenario):
        """Return the result of each rank."""
        if scenario not in self.results:
            together(self.size, run, self.folder, scenario)
            paths = [self.folder / f"{scenario}-{self.size}-{rank}.pt" for rank in range(self.size)]
            self.results[scenario] = [torch.load(path, weights_only=True) for path in paths]
        return self.results[scenario]
