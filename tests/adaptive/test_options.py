"""The options are written once, and editors, mypy and `help` see them at every face."""

import inspect
from dataclasses import fields

import pytest

import adapt
from adapt.adaptive.options import CommonOptions, Options, Settings
from adapt.lightning import AdaptivePrecision

FACES = [(adapt.attach, Options), (adapt.ASGD, Options), (AdaptivePrecision, CommonOptions)]


@pytest.mark.parametrize(("face", "options"), FACES)
def test_signatures_show_the_options_and_their_defaults(face, options):
    shown = inspect.signature(face).parameters
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in options.__annotations__:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default == defaults[name]
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in shown.values())


def test_the_options_are_those_of_the_settings():
    assert {field.name for field in fields(Settings)} == {*Options.__annotations__}


WRONG = [
    'adapt.attach(optimizer, model, rounding="up")',
    "adapt.attach(optimizer, model, sead=1)",
    'adapt.ASGD(model, lr=0.1, activations="all")',
    "adapt.ASGD(model, lr=0.1, quantise_biases=True)",
    "AdaptivePrecision(seed=None)",
    'AdaptivePrecision(exection="bfloat16")',
    "adapt.attach(optimizer, 3)",
]
RIGHT = [
    'adapt.attach(optimizer, model, adapt.AdaPT(), rounding="nearest", l1=1e-4, activations=8, execution="float16")',
    'adapt.attach(optimizer, model.named_parameters(), layers=lambda name, parameter: name == "weight")',
    'adapt.ASGD([{"params": model.parameters(), "lr": 0.1}], seed=3, activations="range")',
    "adapt.ASGD(model.parameters(), 0.1, policy=adapt.AdaPT.compact(), l2=0.1)",
    "AdaptivePrecision(adapt.AdaPT(), 0.1, 0.1, trace_every=5)",
]


@pytest.mark.long
def test_mypy_checks_the_options(tmp_path):
    api = pytest.importorskip("mypy.api")
    head = [
        "import torch",
        "import adapt",
        "from adapt.lightning import AdaptivePrecision",
        "model = torch.nn.Linear(3, 3)",
        "optimizer = torch.optim.SGD(model.parameters())",
    ]
    (tmp_path / "faces.py").write_text("\n".join([*head, *RIGHT, *WRONG]) + "\n")
    output, _, _ = api.run(["--no-incremental", "--follow-imports=silent", str(tmp_path / "faces.py")])
    first = len(head) + len(RIGHT) + 1
    found = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    assert found == set(range(first, first + len(WRONG))), output
