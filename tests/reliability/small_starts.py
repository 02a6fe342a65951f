"""Weights that start small or at zero, under every policy and rounding: whether they train as in float32.

`python -m tests.reliability.small_starts` trains the whole matrix (four minutes on one core) and prints what fails;
`tests/reliability/test_small_starts.py` holds it.

A run passes if its final loss (the mean of the last 20 steps) is at most 1.1 times the better of float32's and
⟨8, 6⟩'s under the same rounding, and if no loss on the way is above twice the first, or above float32's own largest.
Targets are smoothed, so that a tenth of the loss is a margin that means something: without that float32 goes to zero.
`AdaPT()` as printed normalises gradients, which makes another learning rate of the same number. It is compared with
float32 and ⟨8, 6⟩ whose gradients are normalised likewise.

`--steps 600` trains what is judged for so many steps, and `--annealed` lets its learning rate fall to zero, both held
against the same references of 200 steps: what passes then was slowed by its format, but is not beyond it.
"""

import argparse
import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import adapt
from adapt import learned
from adapt.switching.policy import Policy

STEPS = 200
SMOOTHING = 0.2
MARGIN = 1.1

# Networks


def head(deviation: float) -> nn.Module:
    """A trained body of two layers and a fresh head."""
    model = _trained_body()
    nn.init.normal_(model[4].weight, std=deviation)
    nn.init.zeros_(model[4].bias)
    return model


def _trained_body() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs, targets = _batch("other task")
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets, label_smoothing=SMOOTHING).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


class Block(nn.Module):
    """A transformer block of one head; every weight begins with standard deviation 0.02."""

    def __init__(self, tokens: int = 32, width: int = 16, length: int = 8) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.before, self.between, self.after = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.projected = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, [batch · length, tokens]."""
        x = self.tokens(tokens) + self.places.weight
        query, key, value = self.mixed(self.before(x)).chunk(3, -1)
        x = x + self.projected(nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        x = x + self.narrow(torch.relu(self.wide(self.between(x))))
        return self.head(self.after(x)).flatten(0, 1)


class Adapted(nn.Module):
    """A frozen layer and a low-rank addition that begins at zero, as in LoRA."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen layer's output and the addition."""
        return self.base(x) + self.up(self.down(x))


def adapters() -> nn.Module:
    """A trained network in which only low-rank additions learn."""
    body = _trained_body()
    return nn.Sequential(*(Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in body))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "head 0": lambda: head(0.0),
    "head .001": lambda: head(0.001),
    "head .01": lambda: head(0.01),
    "head .1": lambda: head(0.1),
    "transformer": Block,
    "LoRA": adapters,
}


def _batch(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, always the same."""
    if task == "transformer":
        tokens = torch.randint(0, 32, (64, 1), generator=torch.Generator().manual_seed(5))
        course = [tokens]
        for _ in range(8):
            course.append((3 * course[-1] + 1) % 32)
        found = torch.cat(course, 1)
        return found[:, :-1], found[:, 1:].flatten()
    generator = torch.Generator().manual_seed(3 if task == "other task" else 4)
    inputs, teacher = torch.randn(128, 16, generator=generator), torch.randn(16, 4, generator=generator)
    return inputs, (inputs @ teacher).argmax(1)


# Optimizers and formats

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "AdamW": torch.optim.AdamW,
}
RATES = {"SGD": (0.01, 0.03, 0.1), "AdamW": (1e-3, 3e-3, 1e-2)}

EIGHT = adapt.Precision(8, 6)
POLICIES: dict[str, Policy[Any]] = {
    "AdaPT()": adapt.AdaPT(),
    "compact()": adapt.AdaPT.compact(),
    "compact(bits=4)": adapt.AdaPT.compact(bits=4),
    "MuPPET": adapt.MuPPET(steps_per_epoch=10),
    "Fixed(8, 6)": adapt.Fixed(EIGHT),
    "CyclicPrecision": adapt.CyclicPrecision(STEPS, cycles=4),
    "Fixed(8, 6), normalised": adapt.Fixed(EIGHT, normalize_gradients=True),
    "float32, normalised": adapt.Fixed(adapt.Precision(32, 24), normalize_gradients=True),
}
_PHASES = learned.Phases(80, 90, 30)
LEARNED: dict[str, Callable[[torch.optim.Optimizer, nn.Module], object]] = {
    "learned, 8 bits": lambda o, m: learned.attach(
        o, m, weight_budget=learned.Budget(bits=8), phases=_PHASES, schedule=False
    ),
    "learned, 4 bits": lambda o, m: learned.attach(
        o, m, weight_budget=learned.Budget(bits=4), phases=_PHASES, schedule=False
    ),
    "LSQ, 8 bits": lambda o, m: learned.attach_lsq(o, m, weight_bits=8),
    "LSQ, 4 bits": lambda o, m: learned.attach_lsq(o, m, weight_bits=4),
    "LSQ, 2 bits": lambda o, m: learned.attach_lsq(o, m, weight_bits=2),
}


class Case(NamedTuple):
    """One run of the matrix."""

    how: str
    rounding: str
    network: str
    optimizer: str
    rate: float


class Course(NamedTuple):
    """What a run's losses came to."""

    first: float
    largest: float
    final: float
    warnings: tuple[str, ...]


_NETWORKS: dict[str, nn.Module] = {}


def train(case: Case, steps: int = STEPS, *, annealed: bool = False) -> Course:
    """Train one case; `how` "float32" trains without any attachment, `annealed` lowers the rate to zero as a cosine."""
    if case.network not in _NETWORKS:
        torch.manual_seed(0)
        _NETWORKS[case.network] = NETWORKS[case.network]()
    model = copy.deepcopy(_NETWORKS[case.network])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[case.optimizer](parameters, lr=case.rate)
    controller, losses = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if case.how in POLICIES:
            controller = adapt.attach(optimizer, model, POLICIES[case.how], rounding=case.rounding, seed=0)
        elif case.how in LEARNED:
            LEARNED[case.how](optimizer, model)
        inputs, targets = _batch(case.network)
        for step in range(steps):
            if annealed:
                optimizer.param_groups[0]["lr"] = case.rate * (1 + math.cos(math.pi * step / steps)) / 2
            loss = cross_entropy(model(inputs), targets, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            if controller is not None:
                controller.observe(loss)
            optimizer.step()
            losses.append(loss.item())
        if controller is not None:
            len(controller.trace)
    largest = max(loss if math.isfinite(loss) else math.inf for loss in losses)
    return Course(losses[0], largest, sum(losses[-20:]) / 20, tuple(str(w.message) for w in caught))


def cases(networks: Iterable[str] = NETWORKS) -> Iterator[Case]:
    """All cases that are judged."""
    for network, (optimizer, rates) in itertools.product(networks, RATES.items()):
        for rate in rates:
            for how in (name for name in POLICIES if "normalised" not in name):
                for rounding in ("nearest", "stochastic"):
                    yield Case(how, rounding, network, optimizer, rate)
            for how in LEARNED:
                yield Case(how, "nearest", network, optimizer, rate)


_COURSES: dict[Case, Course] = {}


def course(case: Case) -> Course:
    """Train the case, once."""
    if case not in _COURSES:
        _COURSES[case] = train(case)
    return _COURSES[case]


class Verdict(NamedTuple):
    """How a run did: its final and largest loss over what they may be."""

    final: float
    largest: float

    @property
    def passes(self) -> bool:
        """Whether it did well enough."""
        return self.final <= 1 and self.largest <= 1


def judge(case: Case, found: Course | None = None) -> Verdict:
    """Compare the case, or another course of it, with float32 and ⟨8, 6⟩."""
    kind = ", normalised" if case.how == "AdaPT()" else ""
    plain = course(case._replace(how="float32" + kind, rounding="nearest"))
    eight = course(case._replace(how="Fixed(8, 6)" + kind))
    found = course(case) if found is None else found
    allowed = max(2 * found.first, plain.largest)
    return Verdict(found.final / (MARGIN * min(plain.final, eight.final)), found.largest / allowed)


def main() -> None:
    """Print the share of runs that pass, and every run that fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--how", choices=[*POLICIES, *LEARNED], action="append")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the runs that are judged")
    parser.add_argument("--annealed", action="store_true", help="their learning rate falls to zero")
    options = parser.parse_args()
    passed: dict[tuple[str, str], list[bool]] = {}
    for case in cases(options.network or NETWORKS):
        if options.how and case.how not in options.how:
            continue
        is_usual = options.steps == STEPS and not options.annealed
        at = course(case) if is_usual else train(case, options.steps, annealed=options.annealed)
        verdict = judge(case, at)
        passed.setdefault((case.how, case.rounding), []).append(verdict.passes)
        if not (verdict.passes and is_usual):
            print(
                f"{case.how:16} {case.rounding:10} {case.network:11} {case.optimizer:5} {case.rate:<6g} "
                f"final {verdict.final:5.2f} largest {verdict.largest:5.2f} "
                f"({at.first:.3f} → {at.largest:.3f} → {at.final:.4f})",
                flush=True,
            )
    for (how, rounding), found in passed.items():
        print(f"{how:16} {rounding:10} {sum(found)} of {len(found)} pass")


if __name__ == "__main__":
    main()
