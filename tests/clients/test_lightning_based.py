"""Training in libraries that bring their own Lightning module and trainer, as they are.

Run with `pytest -m clients tests/clients/test_lightning_based.py`.
"""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

import adapt
from adapt.lightning import AdaptivePrecision
from tests.clients import documented
from tests.clients.witness import check, same
from tests.lightning.modules import Witness

pd = pytest.importorskip("pandas")

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def signal(length=200):
    """Two sines and a little noise, float32 [length]."""
    time = np.arange(length)
    noise = np.random.default_rng(0).normal(0, 0.05, length)
    return (np.sin(time / 6) + 0.5 * np.sin(time / 15) + noise).astype(np.float32)


def end(precision, module):
    """The run was one, and the module keeps weights on the grid."""
    check(precision.controller)
    parameters = dict(module.named_parameters())
    assert set(precision.controller.precisions) <= set(parameters)
    for name, form in precision.controller.precisions.items():
        assert torch.equal(parameters[name], adapt.quantize(parameters[name], form)), name


class OfTrained(Witness):
    """Looks at what is trained, while it is: NBEATS freezes a part that it does not use."""

    is_over = False

    def look(self, part, args, output):
        if not self.is_over:
            super().look(part, args, output)

    def judge(self, weight, training):
        if weight.requires_grad:
            super().judge(weight, training)


class Watches(Callback):
    """Holds every forward pass of the module that is fitted against the grid."""

    witness, fits = None, 0

    def on_fit_start(self, trainer, module):
        precision = next(c for c in trainer.callbacks if isinstance(c, AdaptivePrecision))
        self.witness = OfTrained(module, precision)

    def on_fit_end(self, trainer, module):
        self.witness.check(*self.witness.passes)
        assert self.witness.passes["train"] > 20
        self.witness.is_over = True
        Watches.fits += 1

    def __getstate__(self):
        return {}


@pytest.fixture(autouse=True)
def _fits():
    Watches.fits = 0


def fitted_by_darts(folder, epochs):
    pytest.importorskip("darts")
    from darts import TimeSeries
    from darts.models import NBEATSModel

    options = {
        "input_chunk_length": 12, "output_chunk_length": 4, "num_stacks": 2, "num_blocks": 1, "layer_widths": 16,
        "n_epochs": epochs, "batch_size": 32, "random_state": 0, "save_checkpoints": True, "model_name": "model",
        "work_dir": str(folder),
    }  # fmt: skip
    series = TimeSeries.from_values(signal())

    def watched(pl_trainer_kwargs, **options):
        pl_trainer_kwargs["callbacks"].append(Watches())
        return NBEATSModel(pl_trainer_kwargs=pl_trainer_kwargs, **options)

    names = documented.run("darts", NBEATSModel=watched, options=options, trainer_options=QUIET)
    names["model"].fit(series, dataloader_kwargs={"shuffle": False})
    return names["model"], names["precision"], series


def test_darts(tmp_path):
    model, precision, series = fitted_by_darts(tmp_path / "whole", 6)
    end(precision, model.model)
    assert Watches.fits == 1
    forecast = model.predict(4).values()
    assert np.isfinite(forecast).all()
    model.save(str(tmp_path / "model.pt"))
    again = type(model).load(str(tmp_path / "model.pt"), pl_trainer_kwargs=QUIET, trusted=True)
    assert np.array_equal(again.predict(4).values(), forecast)
    fitted_by_darts(tmp_path / "parts", 3)
    resumed = type(model).load_from_checkpoint("model", str(tmp_path / "parts"), best=False, trusted=True)
    resumed.fit(series, epochs=6, dataloader_kwargs={"shuffle": False})
    assert same(resumed.model, model.model)


def test_neuralforecast(tmp_path):
    pytest.importorskip("neuralforecast")
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    options = {
        "h": 4, "input_size": 12, "max_steps": 40, "batch_size": 8, "windows_batch_size": 16,
        "mlp_units": [[16, 16]] * 3, "random_seed": 0, "enable_checkpointing": False, **QUIET,
    }  # fmt: skip

    def watched(callbacks, **options):
        return NHITS(callbacks=[*callbacks, Watches()], **options)

    model = documented.run("neuralforecast", NHITS=watched, options=options)["model"]
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=200, freq="D"), "y": signal()})
    forecaster = NeuralForecast(models=[model], freq="D")
    forecaster.fit(frame)
    (fitted,) = forecaster.models
    # The library trains a copy of the model that it is given, with the callback's own copy or the callback itself.
    used = fitted.trainer_kwargs["callbacks"]
    assert Watches.fits == 1
    end(next(c for c in used if isinstance(c, AdaptivePrecision)), fitted)
    forecast = forecaster.predict()
    assert np.isfinite(forecast["NHITS"]).all()
    forecaster.save(str(tmp_path), save_dataset=True, overwrite=True)
    again = NeuralForecast.load(str(tmp_path))
    pd.testing.assert_frame_equal(again.predict(), forecast)


def test_pytorch_tabular(tmp_path, monkeypatch):
    # It leaves files in the working folder.
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pytorch_tabular")
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(512, 4)), columns=list("abcd"))
    frame["target"] = (frame["a"] + frame["b"] > 0).astype(int)
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=list("abcd")),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="16-16"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=32, max_epochs=4, accelerator="cpu", auto_lr_find=False, progress_bar="none",
            early_stopping=None, checkpoints=None, load_best=False, seed=0,
        ),
    )  # fmt: skip

    class Watched:
        def fit(self, callbacks, **options):
            model.fit(callbacks=[*callbacks, Watches()], **options)

    names = documented.run("pytorch_tabular", model=Watched(), frame=frame)
    assert Watches.fits == 1
    end(names["precision"], model.model)
    before = model.predict(frame)
    model.save_model(str(tmp_path / "model"))
    again = TabularModel.load_model(str(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.predict(frame), before)
