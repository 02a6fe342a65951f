"""The plain PyTorch training run that the recipes share: seeded, resumable after every epoch, on any device."""

import dataclasses
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from tqdm import tqdm

import adapt
from adapt import files
from adapt.adaptive.controller import Controller
from recipes.common.batches import Batches
from recipes.common.data import Pictures
from recipes.common.methods import buffer_bits, method
from recipes.common.models import MODELS

SCHEDULES = ("onecycle", "plateau")


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes; two runs with equal settings on one device give the same weights.

    Args:
        data_set, model: names in `recipes.common.data.DATA_SETS` (or "digits") and `recipes.common.models.MODELS`.
        method: a name in `recipes.common.methods.METHODS`, which says policy and rounding.
        epochs, batch_size, seed: as usual.
        schedule: "onecycle" (`lr` is its peak) or "plateau" (`lr` is its start; a tenth after six epochs in which the
            training loss did not fall).
        lr: learning rate. Rates of methods that divide each layer's gradient by its norm do not compare with those of
            the others; see `recipes.common.methods.normalized_rates`.
        momentum: of SGD, with Nesterov's correction.
        l1, l2: penalty coefficients α and β of the weights of convolutions and dense layers; added after normalisation.
        buffer_bits: AdaPT's; the paper takes 4, and 8 for residual networks and CIFAR-100.
        subset: train on the first so many pictures only.

    Raises:
        ValueError: a name or number that cannot be.
    """

    data_set: str
    model: str
    method: str
    epochs: int
    batch_size: int
    schedule: str
    lr: float
    momentum: float = 0.9
    l1: float = 0.0
    l2: float = 0.0
    buffer_bits: int = 4
    subset: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("model", tuple(MODELS)), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.l1 and self.method == "float32":
            raise ValueError(f"l1 must be 0 for float32, got {self.l1!r}: only the controller of a format applies it")
        policy(self)


def policy(settings: Settings, steps_per_epoch: int = 1) -> Any:
    """The policy that a method's name stands for; None for float32.

    Raises:
        ValueError: no such method.
    """
    return method(settings.method).policy(settings.buffer_bits, steps_per_epoch)


def recommended(model: str, name: str, data_set: str = "cifar10") -> dict[str, Any]:
    """Learning rate, penalties and buffer bits with which the method `name` trains `model`; rates found on CIFAR-10."""
    return {**method(name).rates(model), "buffer_bits": buffer_bits(model, data_set)}


def make_optimizer(settings: Settings, model: nn.Module, steps_per_epoch: int) -> tuple[Optimizer, Controller | None]:
    """SGD for float32, `adapt.ASGD` for everything else: the one line that differs."""
    chosen = policy(settings, steps_per_epoch)
    options: dict[str, Any] = {"lr": settings.lr, "momentum": settings.momentum, "nesterov": settings.momentum > 0}
    if chosen is not None:
        optimizer = adapt.ASGD(
            model,
            **options,
            fused=True,
            policy=chosen,
            l1=settings.l1,
            l2=settings.l2,
            seed=settings.seed,
            rounding=method(settings.method).rounding,
        )
        return optimizer, optimizer.controller
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.l2}, {"params": others}]
    return torch.optim.SGD(groups, **options, fused=True), None


def make_schedule(settings: Settings, optimizer: Optimizer, steps: int) -> LRScheduler | ReduceLROnPlateau:
    """The learning-rate schedule over `steps` optimizer steps."""
    if settings.schedule == "onecycle":
        return OneCycleLR(optimizer, settings.lr, total_steps=steps, cycle_momentum=False)
    return ReduceLROnPlateau(optimizer, factor=0.1, patience=5)


def make_batches(
    splits: tuple[Pictures, Pictures],
    data_set: str,
    batch_size: int,
    subset: int | None,
    seed: int,
    device: torch.device | str,
) -> tuple[Batches, Batches]:
    """The batches to train on, cropped and flipped where the pictures are natural, and those to test on.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch asks for.
    """
    if subset is not None and not 1 <= subset <= len(splits[0]):
        raise ValueError(f"subset must lie between 1 and the {len(splits[0])} pictures, got {subset}")
    training, test = (split.to(device) for split in (splits[0].first(subset), splits[1]))
    mean, deviation = training.statistics()
    natural = data_set.startswith("cifar")
    batches = Batches(
        training, batch_size, mean, deviation, shuffle=True, seed=seed, padding=4 if natural else 0, flip=natural
    )
    return batches, Batches(test, 500, mean, deviation)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """(mean loss, accuracy) in evaluation mode, where a controller shows the weights rounded to nearest."""
    was_training = model.training
    model.eval()
    loss = correct = torch.zeros((), device=batches.mean.device)
    for x, y in batches:
        logits = model(x)
        loss = loss + F.cross_entropy(logits, y, reduction="sum")
        correct = correct + (logits.argmax(1) == y).sum()
    model.train(was_training)
    return float(loss) / len(batches.pictures), float(correct) / len(batches.pictures)


@dataclass
class Run:
    """A run in progress: everything that its checkpoint holds."""

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    controller: Controller | None
    schedule: LRScheduler | ReduceLROnPlateau
    shape: tuple[int, ...]
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def trace(self) -> adapt.Trace | None:
        """What the controller noted; None for float32."""
        return None if self.controller is None else self.controller.trace

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        device = next(self.model.parameters()).device
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(
            {
                "settings": dataclasses.asdict(self.settings),
                "history": self.history,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Go on where the checkpoint ends.

        Raises:
            ValueError: the checkpoint is damaged or belongs to a run with other settings.
        """
        state = files.load(path)
        now, then = dataclasses.asdict(self.settings), state["settings"]
        if changed := [
            f"{name} (then {then.get(name)!r}, now {now[name]!r})" for name in now if then.get(name) != now[name]
        ]:
            raise ValueError(f"{path} belongs to a run with another {', '.join(changed)}: choose another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])
        self.history = state["history"]


def train(
    settings: Settings,
    splits: tuple[Pictures, Pictures],
    folder: Path | None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Run:
    """Train, or go on training, until `settings.epochs` are done.

    Args:
        splits: training and test pictures.
        folder: where `checkpoint.pt` is written after every epoch, and found when the run is started again;
            None: no checkpoint.
        progress: whether a bar shows steps, loss and accuracy.

    Raises:
        ValueError: there are fewer pictures than the subset or a batch asks for; the folder holds another run; the loss
            stopped being a number.
    """
    batches, test_batches = make_batches(
        splits, settings.data_set, settings.batch_size, settings.subset, settings.seed, device
    )
    training = batches.pictures
    torch.manual_seed(settings.seed)
    model = MODELS[settings.model](training.classes, training.shape)
    model = model.to(device=device, memory_format=torch.channels_last)
    optimizer, controller = make_optimizer(settings, model, len(batches))
    schedule = make_schedule(settings, optimizer, settings.epochs * len(batches))
    run = Run(settings, model, optimizer, controller, schedule, training.shape)
    checkpoint = None if folder is None else folder / "checkpoint.pt"
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)

    go_on(run, batches, test_batches, checkpoint, progress=progress)
    return run


def go_on(
    run: Run,
    batches: Batches,
    test_batches: Batches,
    checkpoint: Path | None,
    *,
    before: int = 0,
    progress: bool = True,
) -> None:
    """Train from the run's last epoch on until `settings.epochs` are done, and write the checkpoint after each.

    Args:
        before: epochs that the network learned in another run, from the same batches.
        progress: whether a bar shows steps, loss and accuracy.

    Raises:
        ValueError: the loss stopped being a number.
    """
    settings, optimizer, schedule = run.settings, run.optimizer, run.schedule
    with tqdm(
        desc=f"{settings.model} {settings.method}", total=settings.epochs * len(batches),
        initial=len(run.history) * len(batches), unit="step", disable=not progress,
    ) as bar:  # fmt: skip
        for epoch in range(len(run.history), settings.epochs):
            batches.set_epoch(before + epoch)
            start, start_of_processor = time.perf_counter(), time.process_time()
            loss = train_epoch(run, batches, bar)
            seconds, processor_seconds = time.perf_counter() - start, time.process_time() - start_of_processor
            test_loss, accuracy = evaluate(run.model, test_batches)
            entry = {"loss": loss, "test_loss": test_loss, "accuracy": accuracy, "seconds": seconds}
            entry |= {"processor_seconds": processor_seconds, "lr": optimizer.param_groups[0]["lr"]}
            if run.controller is not None:
                entry["mean_word_length"] = float(run.controller.trace.word_length[-1].mean())
            run.history.append(entry)
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(loss)
            if checkpoint is not None:
                run.save(checkpoint)
            bar.set_postfix({"loss": f"{loss:.3f}", "accuracy": f"{accuracy:.3f}"})


def train_epoch(run: Run, batches: Batches, bar: tqdm) -> float:
    """One pass over the batches; the mean training loss.

    Raises:
        ValueError: the loss stopped being a number.
    """
    run.model.train()
    total = torch.zeros((), device=batches.mean.device)
    for x, y in batches:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(x), y)
        loss.backward()
        if run.controller is not None:
            run.controller.observe(loss)
        run.optimizer.step()
        if not isinstance(run.schedule, ReduceLROnPlateau):
            run.schedule.step()
        total += loss.detach()
        bar.update()
    mean = float(total) / len(batches)
    if mean != mean:
        raise ValueError(f"the training loss is not a number any more: lr = {run.settings.lr!r} is too high")
    return mean


def provenance() -> dict[str, Any]:
    """What a result file says about where it comes from: the command, the versions, the machine."""
    name = sys.argv[0]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"python -m {spec.parent}" if spec is not None and spec.parent else f"python {name}"
    return {
        "command": shlex.join([*start.split(), *sys.argv[1:]]),
        "adapt": adapt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
