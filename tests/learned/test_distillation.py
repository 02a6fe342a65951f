"""Losses that listen to a teacher."""

import math

import pytest
import torch
from torch import nn

from adapt.learned import Distillation
from adapt.learned.distillation import alignment, soft_labels


def literal(student, teacher, temperature):
    """Cross entropy with the teacher's probabilities, and its excess over their entropy, sample by sample."""
    crosses, divergences = [], []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        crosses.append(-sum(a * math.log(b) for a, b in zip(p, q, strict=True)))
        divergences.append(crosses[-1] + sum(a * math.log(a) for a in p))
    return (sum(v) / len(v) * temperature**2 for v in (crosses, divergences))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_losses_are_their_formulas(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    cross, divergence = literal(student, teacher, temperature)
    assert soft_labels(student, teacher, temperature).item() == pytest.approx(cross)
    assert alignment(student, teacher, temperature).item() == pytest.approx(divergence)
    assert alignment(student, student, temperature).item() == pytest.approx(0, abs=1e-12)


def test_modes():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9))
    x, logits, loss = torch.randn(6, 3), torch.randn(6, 4, requires_grad=True), torch.tensor(1.5)
    wanted = teacher[0](x)
    assert torch.equal(Distillation(teacher, "soft")(loss, logits, x), soft_labels(logits, wanted))
    found = Distillation(teacher, "penalty", weight=0.5, temperature=2.0)(loss, logits, x)
    torch.testing.assert_close(found, loss + 0.5 * alignment(logits, wanted, 2.0))
    assert teacher.training
    found.backward()
    assert teacher[0].weight.grad is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"teacher": None}, TypeError, "teacher must be a torch.nn.Module"),
        ({"mode": "hard"}, ValueError, 'mode must be "soft" or "penalty"'),
        ({"weight": "a"}, TypeError, "weight must be a number"),
        ({"weight": -1}, ValueError, "weight must be a finite number ≥ 0, got -1"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number ≥ 1e-06, got 0.0"),
    ],
)
def test_refusals(options, kind, message):
    with pytest.raises(kind, match=message):
        Distillation(**{"teacher": nn.Linear(2, 2), **options})


def test_a_weight_of_zero_leaves_the_loss():
    loss, logits = torch.tensor(1.5), torch.randn(4, 2)
    assert Distillation(nn.Linear(3, 2), weight=0)(loss, logits, torch.randn(4, 3)) == loss


def test_every_part_of_the_teacher_keeps_its_mode():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError

    teacher = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
    Distillation(teacher)(torch.zeros(()), torch.zeros(4, 2), torch.randn(4, 3))
    assert [part.training for part in teacher.modules()] == [True, True, False, True]
    failing = nn.Sequential(Failing(), nn.Dropout().eval())
    with pytest.raises(RuntimeError):
        Distillation(failing)(torch.zeros(()), torch.zeros(4, 2), torch.randn(4, 3))
    assert [part.training for part in failing.modules()] == [True, True, False]


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match="both need the same classes"):
        Distillation(nn.Linear(2, 3))(torch.zeros(()), torch.zeros(4, 2), torch.zeros(4, 2))
