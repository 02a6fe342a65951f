"""Policies from LightningCLI's and Hydra's files: `pytest -m clients tests/clients/test_configuration.py`."""

import re
from collections import OrderedDict
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import yaml

import adapt
from adapt.learned import Budget
from adapt.lightning import AdaptivePrecision, LearnedBitwidth
from tests.lightning.modules import loader

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

POLICIES = [
    ({"class_path": "adapt.AdaPT", "init_args": {"lookback": [5, 10]}}, adapt.AdaPT(lookback=(5, 10))),
    (
        {"class_path": "adapt.AdaPT", "init_args": {"initial": {"word_length": 6, "fraction_length": 3}}},
        adapt.AdaPT(initial=adapt.Precision(6, 3)),
    ),
    ({"class_path": "adapt.AdaPT.compact"}, adapt.AdaPT.compact()),
    (
        {"class_path": "adapt.AdaPT.compact", "init_args": {"bits": 4, "lookback": [2, 64]}},
        adapt.AdaPT.compact(bits=4, lookback=(2, 64)),
    ),
    (
        {"class_path": "adapt.MuPPET", "init_args": {"word_lengths": [4, 6], "threshold": [1, 2, 0.5]}},
        adapt.MuPPET(word_lengths=(4, 6), threshold=(1, 2, 0.5)),
    ),
    (
        {"class_path": "adapt.Fixed", "init_args": {"precision": {"word_length": 6, "fraction_length": 3}}},
        adapt.Fixed(adapt.Precision(6, 3)),
    ),
    (
        {"class_path": "adapt.CyclicPrecision", "init_args": {"total_steps": 96, "bits": [2, 6]}},
        adapt.CyclicPrecision(96, (2, 6)),
    ),
]


def module_of(package):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            parts = {"conv1": torch.nn.Linear(6, 4), "head": torch.nn.Sequential(torch.nn.Linear(4, 3))}
            self.model = torch.nn.Sequential(OrderedDict(parts))

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def train_dataloader(self):
            return loader()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def settings(callback, package=lightning.pytorch):
    """The settings of an epoch's run with this callback."""
    trainer = package.Trainer(max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(module_of(package)())
    return callback.trace.run


def cli(package, folder, callback, *arguments):
    trainer = {"max_epochs": 2, **QUIET, "callbacks": [callback], "default_root_dir": str(folder)}
    (folder / "given.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    pytest.importorskip("jsonargparse")
    from importlib import import_module

    cli = import_module(f"{package.__name__}.cli").LightningCLI
    return cli(module_of(package), args=[*arguments, "--config", str(folder / "given.yaml")], run=bool(arguments))


@pytest.mark.parametrize(("described", "policy"), POLICIES)
@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_lightning_cli(package, described, policy, tmp_path):
    options = {"rounding": "nearest", "l1": 1e-4, "policy": described}
    made = cli(package, tmp_path, {"class_path": "adapt.lightning.AdaptivePrecision", "init_args": options})
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, AdaptivePrecision))
    assert settings(callback, package) == settings(AdaptivePrecision(policy, rounding="nearest", l1=1e-4), package)


def test_the_file_that_lightning_cli_saves_makes_the_same_run(tmp_path):
    described = {"class_path": "adapt.AdaPT.compact", "init_args": {"bits": 4, "lookback": [2, 4]}}
    callback = {"class_path": "adapt.lightning.AdaptivePrecision", "init_args": {"policy": described}}
    made = cli(lightning.pytorch, tmp_path, callback, "fit")
    (saved,) = tmp_path.rglob("config.yaml")
    callbacks = yaml.safe_load(saved.read_text())["trainer"]["callbacks"]
    (again,) = (tmp_path / "again",)
    again.mkdir()
    repeated = cli(lightning.pytorch, again, callbacks[0], "fit")
    first, second = (m.trainer.callbacks[0].controller for m in (made, repeated))
    assert first.policy == second.policy == adapt.AdaPT.compact(bits=4, lookback=(2, 4))
    assert first.step == second.step == 12


def test_lightning_cli_makes_learned_widths(tmp_path):
    options = {
        "weight_budget": {"class_path": "adapt.learned.Budget", "init_args": {"bits": 4}},
        "activation_budget": {"class_path": "adapt.learned.Budget", "init_args": {"bits": 6}},
        "phases": [0.2, 0.6, 0.2],
    }
    callback = {"class_path": "adapt.lightning.LearnedBitwidth", "init_args": options}
    made = cli(lightning.pytorch, tmp_path, callback, "fit")
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, LearnedBitwidth))
    assert callback.learner.size.weight_bits <= 4


@pytest.mark.parametrize(("described", "policy"), POLICIES)
def test_hydra(described, policy):
    pytest.importorskip("hydra")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    def targeted(value):
        if isinstance(value, dict) and "class_path" in value:
            return {"_target_": value["class_path"], **targeted(value.get("init_args", {}))}
        if isinstance(value, dict) and "word_length" in value:
            return {"_target_": "adapt.Precision", **value}
        return {name: targeted(part) for name, part in value.items()} if isinstance(value, dict) else value

    assert instantiate(OmegaConf.create(targeted(described))) == policy
    callback = {"_target_": "adapt.lightning.AdaptivePrecision", "policy": targeted(described), "rounding": "nearest"}
    expected = AdaptivePrecision(policy, rounding="nearest")
    assert settings(instantiate(OmegaConf.create(callback))) == settings(expected)


def test_what_omegaconf_holds_is_a_policy():
    omegaconf = pytest.importorskip("omegaconf")
    for _, policy in POLICIES:
        assert adapt.switching.from_dict(omegaconf.OmegaConf.create(adapt.switching.to_dict(policy))) == policy


HOW_TO = Path(adapt.__file__).parent.parent / "docs" / "how-to"
DOCUMENTED = [
    yaml.safe_load(block)
    for page in ("configuration.md", "keep-a-layer.md")
    for block in re.findall(
        r"^```yaml\n(.*?)^```", (HOW_TO / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
]


SAME_IN_PYTHON = [
    AdaptivePrecision(adapt.AdaPT.compact(bits=4), rounding="nearest", activations="range"),
    AdaptivePrecision(adapt.AdaPT(lookback=(25, 100), initial=adapt.Precision(8, 4))),
    LearnedBitwidth(Budget(kilobytes=40), Budget(bits=6), phases=(0.3, 0.4, 0.3)),
    AdaptivePrecision(rounding="nearest", layer_bits={"model.conv1": 8, "model.head.*": (6, 8)}),
]


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_lightning_cli_takes_what_the_documentation_shows(package, tmp_path):
    shown = [block["trainer"]["callbacks"] for block in DOCUMENTED if "trainer" in block]
    for (described,), expected in zip(shown, SAME_IN_PYTHON, strict=True):
        made = cli(package, tmp_path, described)
        (found,) = (c for c in made.trainer.callbacks if isinstance(c, AdaptivePrecision | LearnedBitwidth))
        assert type(found) is type(expected)
        assert settings(found, package) == settings(expected, package)


def test_hydra_takes_what_the_documentation_shows():
    pytest.importorskip("hydra")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    (described,) = (block for block in DOCUMENTED if "callback" in block)
    made = instantiate(OmegaConf.create(described)).callback
    expected = AdaptivePrecision(adapt.AdaPT(lookback=(25, 100), initial=adapt.Precision(8, 4)), rounding="nearest")
    assert settings(made) == settings(expected)


def test_the_hyperparameters_that_a_run_logs_make_its_policy(tmp_path):
    described = {"class_path": "adapt.AdaPT.compact", "init_args": {"bits": 4, "lookback": [2, 4]}}
    made = cli(
        lightning.pytorch,
        tmp_path,
        {"class_path": "adapt.lightning.AdaptivePrecision", "init_args": {"policy": described}},
        "fit",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path}",
    )
    (logged,) = tmp_path.rglob("hparams.yaml")
    run = yaml.safe_load(logged.read_text())["adapt"]
    assert run == made.trainer.callbacks[0].trace.run
    assert adapt.switching.from_dict(run["policy"]) == adapt.AdaPT.compact(bits=4, lookback=(2, 4))
