"""Training in libraries that bring their own Lightning module and trainer, as they are.

Run with `pytest -m clients tests/clients/test_lightning_based.py`.
"""

import numpy as np
import pytest
import torch

import adapt
from adapt.lightning import AdaptivePrecision

pd = pytest.importorskip("pandas")

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

POLICY = adapt.AdaPT(lookback=(5, 10))
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def signal(length=200):
    """Two sines and a little noise, float32 [length]."""
    time = np.arange(length)
    noise = np.random.default_rng(0).normal(0, 0.05, length)
    return (np.sin(time / 6) + 0.5 * np.sin(time / 15) + noise).astype(np.float32)


def check(callback, module):
    """The run was on the grid, formats moved and the loss was seen; the module keeps weights on the grid."""
    controller = callback.controller
    assert controller.step > 20
    assert controller.trace.switches().any()
    assert controller.state_dict()["state"]["losses"]
    parameters = dict(module.named_parameters())
    assert set(controller.precisions) <= set(parameters)
    for name, form in controller.precisions.items():
        assert torch.equal(parameters[name], adapt.quantize(parameters[name], form)), name


def test_darts(tmp_path):
    pytest.importorskip("darts")
    from darts import TimeSeries
    from darts.models import NBEATSModel

    callback = AdaptivePrecision(POLICY)
    model = NBEATSModel(
        input_chunk_length=12, output_chunk_length=4, num_stacks=2, num_blocks=1, layer_widths=16, n_epochs=4,
        batch_size=32, random_state=0, pl_trainer_kwargs={"callbacks": [callback], **QUIET},
    )  # fmt: skip
    series = TimeSeries.from_values(signal())
    model.fit(series)
    check(callback, model.model)
    forecast = model.predict(4).values()
    assert np.isfinite(forecast).all()
    model.save(str(tmp_path / "model.pt"))
    again = NBEATSModel.load(str(tmp_path / "model.pt"), pl_trainer_kwargs=QUIET, trusted=True)
    assert np.array_equal(again.predict(4).values(), forecast)


def test_neuralforecast(tmp_path):
    pytest.importorskip("neuralforecast")
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    callback = AdaptivePrecision(POLICY)
    model = NHITS(
        h=4, input_size=12, max_steps=40, batch_size=8, windows_batch_size=16, mlp_units=[[16, 16]] * 3,
        callbacks=[callback], random_seed=0, enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2020-01-01", periods=200, freq="D"), "y": signal()})
    forecaster = NeuralForecast(models=[model], freq="D")
    forecaster.fit(frame)
    (fitted,) = forecaster.models
    # The library trains a copy of the model that it is given, with the callback's own copy or the callback itself.
    used = next(c for c in fitted.trainer_kwargs["callbacks"] if isinstance(c, AdaptivePrecision))
    check(used, fitted)
    assert np.isfinite(forecaster.predict()["NHITS"]).all()
    forecaster.save(str(tmp_path), save_dataset=False, overwrite=True)


def test_pytorch_tabular(tmp_path):
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
    callback = AdaptivePrecision(POLICY)
    model.fit(train=frame, callbacks=[callback])
    check(callback, model.model)
    before = model.predict(frame)
    model.save_model(str(tmp_path / "model"))
    again = TabularModel.load_model(str(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.predict(frame), before)
