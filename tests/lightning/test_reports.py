"""What a run logs, shows, draws and saves, and that it waits for the device only then."""

import csv
import importlib.util
import inspect
import math
from pathlib import Path

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.nn import functional as F

import adapt
from adapt import cli, perfmodel
from adapt.adaptive.controller import Controller
from adapt.lightning import AdaptivePrecision, LearnedBitwidth, forward_inputs, metrics
from tests.covering import picked
from tests.lightning.modules import (
    BATCHES,
    RESTLESS,
    Adversaries,
    Classifier,
    assert_same_run,
    fit,
    loader,
    precision,
    trainer,
)
from tests.trace.test_own_columns import Counting

INTERNALS = ("lookback", "resolution", "diversity", "strategy")
FIELDS = ("word_length", "fraction_length", "nonzero")
AGGREGATES = ("mean_word_length", "nonzero", "size_ratio", "memory_ratio", "training_speedup", "inference_speedup")


class Notebook(Logger):
    """Keeps everything that it is given."""

    name, version = "notebook", 0

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def having(self, key):
        return {step: line[key] for step, line in self.lines if key in line}


class TestLogging:
    def test_every_layer_at_every_logging_step_with_constant_keys(self):
        book = Notebook()
        callback, _ = fit(Classifier(), logger=book, log_every_n_steps=4)
        keys = {f"adapt_layers/{field}/{layer}" for field in FIELDS for layer in ("net.0.weight", "net.2.weight")}
        lines = [(step, line) for step, line in book.lines if "adapt_layers/word_length/net.0.weight" in line]
        assert [step for step, _ in lines] == [3, 7, 11, 15]
        for step, line in lines:
            assert line.keys() == keys
            row = callback.trace.step.tolist().index(step + 1)
            for field in FIELDS:
                for column, layer in enumerate(callback.trace.layers):
                    assert line[f"adapt_layers/{field}/{layer}"] == getattr(callback.trace, field)[row, column]

    def test_how_the_policy_decides_is_logged_on_request(self):
        for asked in (False, True):
            book = Notebook()
            fit(Classifier(), AdaptivePrecision(RESTLESS, log_internals=asked), logger=book, log_every_n_steps=4)
            for field in INTERNALS:
                assert bool(book.having(f"adapt_layers/{field}/net.0.weight")) == asked

    def test_a_policys_own_column_is_logged_beside_the_others(self):
        book = Notebook()
        callback, _ = fit(Classifier(), AdaptivePrecision(Counting()), logger=book, log_every_n_steps=4)
        logged = book.having("adapt_layers/largest_norm/net.0.weight")
        assert list(logged) == [3, 7, 11, 15]
        assert list(logged.values()) == callback.trace["largest_norm"][[3, 7, 11, 15], 0].tolist()

    def test_the_whole_network_by_the_performance_model(self):
        book, module = Notebook(), Classifier()
        callback, run = fit(module, precision(l1=1e-2), logger=book, log_every_n_steps=3, accumulate_grad_batches=2)
        counts = perfmodel.operations(module, torch.zeros(4, 6))
        for name in AGGREGATES:
            logged = book.having(f"adapt/{name}")
            assert list(logged) == [2, 5, 8]
            for step, value in logged.items():
                summary = perfmodel.RunningSummary(counts, batch_size=4, accumulation=2).update(
                    first_rows(callback.trace, step + 1)
                )
                assert value == pytest.approx(getattr(summary, name), rel=1e-6)
            assert float(run.callback_metrics[f"adapt/{name}"]) == pytest.approx(value)

    def test_there_is_something_to_monitor_from_the_first_step_on(self):
        class Watches(Callback):
            seen = ()

            def on_train_batch_end(self, trainer, *args):
                self.seen = (*self.seen, trainer.callback_metrics.get("adapt/mean_word_length"))

        watch = Watches()
        callback, _ = fit(Classifier(), None, watch, max_epochs=1)
        # Nothing is logged in between, and the last step of an epoch is always fresh.
        first, last = watch.seen[0], watch.seen[-1]
        assert float(first) == pytest.approx(callback.trace.mean_word_length()[0])
        assert float(last) == pytest.approx(callback.trace.mean_word_length()[-1])

    def test_it_can_be_monitored_by_checkpoints_and_early_stopping(self, tmp_path):
        keep = ModelCheckpoint(tmp_path, "best", monitor="adapt/size_ratio")
        stop = EarlyStopping("adapt/size_ratio", patience=50)
        fit(Classifier(), None, keep, stop, enable_checkpointing=True, val_check_interval=2)
        assert (tmp_path / "best.ckpt").exists()
        assert math.isfinite(float(keep.best_model_score))

    def test_the_progress_bar_shows_the_word_length_and_nothing_modelled(self):
        _, run = fit(Classifier(), None, TQDMProgressBar(refresh_rate=0), enable_progress_bar=True)
        shown = {name for name in run.progress_bar_metrics if name.startswith("adapt/")}
        assert shown == {"adapt/mean_word_length"}

    def test_nothing_is_said_about_loggers_where_there_are_none(self, recwarn):
        fit(Classifier(), logger=False)
        assert not [w for w in recwarn if "logger" in str(w.message)]

    def test_barebones(self, recwarn):
        callback = precision()
        trainer(callback, barebones=True, **dict.fromkeys(("logger", "enable_progress_bar"), False)).fit(
            Classifier(), loader()
        )
        assert callback.controller.step == 3 * BATCHES
        assert not [w for w in recwarn if "self.log()" in str(w.message) and "adapt" in str(w.message)]

    def test_a_csv_logger_keeps_one_set_of_columns(self, tmp_path):
        logger = CSVLogger(tmp_path, flush_logs_every_n_steps=2)
        fit(Classifier(), logger=logger, log_every_n_steps=2, val_check_interval=2)
        with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for key in ("adapt/mean_word_length", *(f"adapt_layers/{field}/net.0.weight" for field in FIELDS)):
            assert sum(row[key] != "" for row in rows) == 3 * BATCHES // 2

    def test_steps_of_two_optimizers(self):
        book = Notebook()
        callback, _ = fit(Adversaries(), logger=book, log_every_n_steps=4)
        logged = book.having("adapt/mean_word_length")
        assert list(logged) == [3, 7, 11, 15]
        assert all(
            list(book.having(f"adapt_layers/word_length/{part}.weight")) == list(logged)
            for part in ("generator", "discriminator")
        )
        traces = [controller.trace for controller in callback.controllers]
        sizes = [int(trace.numel.sum()) for trace in traces]
        for batch, value in logged.items():
            assert value == pytest.approx(np.average([trace.word_length[batch, 0] for trace in traces], weights=sizes))

    def test_layers_of_two_optimizers_that_are_called_the_same(self, tmp_path):
        class Twins(Adversaries):
            def configure_optimizers(self):
                return [adapt.ASGD(part, lr=0.05) for part in (self.generator, self.discriminator)]

        book = Notebook()
        callback, _ = fit(Twins(), AdaptivePrecision(), logger=[book, TensorBoardLogger(tmp_path)], log_every_n_steps=4)
        for part, controller in zip(("generator", "discriminator"), callback.controllers, strict=True):
            assert controller.trace.layers == ("weight",)
            assert list(book.having(f"adapt_layers/nonzero/{part}.weight").values()) == [
                controller.trace.nonzero[step, 0] for step in (3, 7, 11, 15)
            ]
        assert not book.having("adapt_layers/nonzero/weight")

    def test_layers_that_the_module_does_not_know_are_called_by_their_optimizer(self):
        traces = [trace_of(["weight"], [1], 2), trace_of(["weight"], [1], 2)]
        module = Adversaries()
        layers = [{"weight": module.generator.weight}, {"weight": torch.zeros(2)}]
        names = metrics.distinct_names(traces, layers, module)
        assert names == [["generator.weight"], ["optimizer_1.weight"]]
        assert metrics.merged(traces, names).layers == ("generator.weight", "optimizer_1.weight")

    def test_a_sparse_trace_logs_its_latest_row(self):
        book = Notebook()
        callback, _ = fit(Classifier(), precision(trace_every=5), logger=book, log_every_n_steps=1)
        logged = book.having("adapt_layers/word_length/net.0.weight")
        assert len(logged) == 3 * BATCHES
        assert math.isnan(logged[0])
        assert logged[9] == callback.trace.word_length[1, 0]
        assert min(book.having("adapt/mean_word_length")) == 4


def first_rows(trace, rows):
    """A trace of the first rows of another."""
    part = adapt.Trace(trace.layers, trace.numel)
    fields = (*FIELDS, *INTERNALS, "divergence", "rounding_cost")
    part.append(trace.step[:rows], **{field: getattr(trace, field)[:rows] for field in fields})
    return part


class TestWaiting:
    def test_the_trace_is_read_at_logging_steps_only(self, monkeypatch):
        read = []
        original = Controller.trace.fget
        monkeypatch.setattr(Controller, "trace", property(lambda self: read.append(self.step) or original(self)))
        fit(Classifier(), logger=Notebook(), log_every_n_steps=5, max_epochs=2)
        # What makes the run, the first step, every fifth, the last of each epoch, and once more when training ends.
        assert sorted(set(read)) == [0, 1, 5, 6, 10, 12]
        assert read.count(5) == 1

    @pytest.mark.parametrize(
        "configure",
        picked(
            {
                "a submodule's names": lambda module: adapt.ASGD(module.net, lr=0.05, policy=RESTLESS),
                "no names": lambda module: adapt.ASGD(module.parameters(), lr=0.05, policy=RESTLESS),
                "the module's names": lambda module: adapt.ASGD(module.named_parameters(), lr=0.05, policy=RESTLESS),
            },
            "no names",
        ),
    )
    def test_speedups_are_known_whatever_the_layers_are_called(self, configure):
        _, run = fit(Classifier(configure))
        logged = {name: float(run.callback_metrics[f"adapt/{name}"]) for name in AGGREGATES}
        _, expected = fit(Classifier(lambda module: adapt.ASGD(module, lr=0.05, policy=RESTLESS)))
        for name, value in logged.items():
            # Noise comes from the stream of a layer's name.
            assert value == pytest.approx(float(expected.callback_metrics[f"adapt/{name}"]), rel=0.2)

    def test_a_changing_accumulation_leaves_the_training_speedup_out_and_says_so(self, told):
        _, run = fit(Classifier(), None, GradientAccumulationScheduler({0: 3, 1: 1}))
        logged = {name for name in run.callback_metrics if name.startswith("adapt/")}
        assert logged == {f"adapt/{name}" for name in AGGREGATES if name != "training_speedup"}
        assert told() == [
            "AdaptivePrecision leaves adapt/training_speedup out: GradientAccumulationScheduler changes how many "
            "batches a step has."
        ]

    def test_logging_changes_nothing(self):
        often, _ = fit(Classifier(), logger=Notebook(), log_every_n_steps=1)
        never, _ = fit(Classifier(), logger=False, log_every_n_steps=0)
        assert_same_run(often.controller, never.controller)


class TestOperations:
    """Where the multiply-adds come from."""

    def counts(self, module, batch=None):
        counts, reason = forward_inputs.count_operations(module, batch)
        names = {p: name for name, p in module.named_parameters()}
        return counts and {names[weight]: count for weight, count in counts.items()}, reason

    def test_the_example_of_the_module(self):
        module = Classifier()
        for example in (torch.zeros(2, 6), (torch.zeros(2, 6),), {"inputs": torch.zeros(2, 6)}):
            module.example_input_array = example
            assert self.counts(module) == ({"net.0.weight": 48, "net.2.weight": 24}, "")

    @pytest.mark.parametrize(
        "batch",
        [
            (torch.zeros(2, 6), torch.zeros(2)),
            [torch.zeros(2, 6), torch.zeros(2)],
            {"inputs": torch.zeros(2, 6), "targets": torch.zeros(2)},
            torch.zeros(2, 6),
        ],
        ids=["tuple", "list", "dictionary", "tensor"],
    )
    def test_the_first_batch(self, batch):
        assert self.counts(Classifier(), batch)[0] == {"net.0.weight": 48, "net.2.weight": 24}

    def test_a_module_without_forward_is_its_only_network(self):
        class Without(Classifier):
            forward = Classifier.__mro__[1].forward

            def training_step(self, batch, index):
                return F.cross_entropy(self.net(batch[0]), batch[1])

            validation_step = training_step

        module = Without()
        module.loss = nn.CrossEntropyLoss()
        assert self.counts(module, (torch.zeros(2, 6), torch.zeros(2)))[0] == {"net.0.weight": 48, "net.2.weight": 24}
        module.other = nn.Linear(2, 2)
        assert self.counts(module, (torch.zeros(2, 6),)) == (None, "Without has no forward")

    def test_counting_disturbs_neither_the_random_stream_nor_the_module(self):
        module = Classifier()
        module.net.append(nn.BatchNorm1d(3))
        module.net.append(nn.Dropout(0.5))
        state, stream = {n: v.clone() for n, v in module.state_dict().items()}, torch.get_rng_state()
        assert self.counts(module, (torch.zeros(2, 6),))[0]["net.0.weight"] == 48
        assert torch.equal(stream, torch.get_rng_state())
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert module.training

    @pytest.mark.parametrize("broken", ["forward", "batch"])
    def test_where_nothing_fits_the_speedups_are_left_out_and_it_says_how_to_have_them(self, broken, told):
        class Other(Classifier):
            def forward(self, inputs):
                if inputs.shape[1] != 6 or broken == "forward":
                    raise ValueError("nothing of the kind")
                return super().forward(inputs)

            def training_step(self, batch, index):
                batch = batch if broken == "forward" else batch["parts"]
                return F.cross_entropy(self.net(batch[0]), batch[1])

            validation_step = training_step

        pairs = [{"parts": pair} for pair in loader()] if broken == "batch" else list(loader())
        batches = torch.utils.data.DataLoader(pairs, batch_size=None)
        _, run = fit(Other(), loaders=(batches, batches))
        (message,) = told()
        assert "leaves the speedups out" in message
        assert "Set example_input_array of Other" in message
        logged = {name for name in run.callback_metrics if name.startswith("adapt/")}
        assert logged == {f"adapt/{name}" for name in AGGREGATES if "speedup" not in name}

    def test_a_batch_without_a_clear_size_leaves_them_out(self):
        assert forward_inputs.batch_size((torch.zeros(2, 6), torch.zeros(3))) is None
        assert forward_inputs.batch_size({"a": torch.zeros(2, 6)}) == 2
        assert forward_inputs.batch_size(None) is None


def trace_of(names, numel, rows, seed=0):
    """A trace of random formats."""
    random = np.random.default_rng(seed)
    trace = adapt.Trace(names, numel)
    shape = (rows, len(names))
    trace.append(
        np.arange(1, rows + 1),
        word_length=random.integers(2, 33, shape),
        fraction_length=random.integers(0, 9, shape),
        nonzero=random.random(shape),
        lookback=random.uniform(1, 50, shape),
        resolution=random.integers(1, 99, shape),
    )
    return trace


class TestAggregates:
    def test_of_several_optimizers_are_those_of_one_with_all_layers(self):
        names, numel, work = ["a", "b", "c"], [10, 20, 300], {"a": 7, "b": 11, "c": 5}
        whole = trace_of(names, numel, 9)
        parts = []
        for columns in ([0, 2], [1]):
            part = adapt.Trace([names[i] for i in columns], [numel[i] for i in columns])
            part.append(whole.step, **{f: getattr(whole, f)[:, columns] for f in (*FIELDS, *INTERNALS, "divergence")})
            parts.append(part)
        counts = [{name: work[name] for name in part.layers} for part in parts]
        both = metrics.Aggregates(batch_size=8, accumulation=1).update(parts, counts)
        one = metrics.Aggregates(batch_size=8, accumulation=1).update([whole], [work])
        assert both == pytest.approx(one)
        assert one.keys() == {f"adapt/{name}" for name in AGGREGATES}

    def test_a_layer_without_products_counts_by_its_size_only(self):
        trace, table = trace_of(["a"], [10], 5), trace_of(["table"], [90], 5, seed=1)
        alone = metrics.Aggregates(batch_size=8, accumulation=1).update([trace], [{"a": 7}])
        both = metrics.Aggregates(batch_size=8, accumulation=1).update([trace, table], [{"a": 7}, {"table": 0}])
        assert both["adapt/training_speedup"] == alone["adapt/training_speedup"]
        assert both["adapt/mean_word_length"] == pytest.approx(
            0.1 * trace.word_length[-1, 0] + 0.9 * table.word_length[-1, 0]
        )

    def test_a_trace_that_was_wound_back_is_read_anew(self):
        aggregates, counts = metrics.Aggregates(batch_size=8, accumulation=1), [{"a": 7}]
        long, short = trace_of(["a"], [10], 9), trace_of(["a"], [10], 4, seed=2)
        aggregates.update([long], counts)
        fresh = metrics.Aggregates(batch_size=8, accumulation=1)
        assert aggregates.update([short], counts) == fresh.update([short], counts)

    @pytest.mark.parametrize("counts", [{"a": 7, "b": 11}, {"a": 0, "b": 0}])
    def test_a_layer_may_join(self, counts):
        aggregates = metrics.Aggregates(batch_size=8, accumulation=1)
        aggregates.update([trace_of(["a"], [10], 5)], [{"a": counts["a"]}])
        both = trace_of(["a", "b"], [10, 20], 9)
        fresh = metrics.Aggregates(batch_size=8, accumulation=1)
        assert aggregates.update([both], [counts]) == fresh.update([both], [counts])

    def test_before_the_first_row_there_are_none(self):
        empty = adapt.Trace(["a"], [10])
        aggregates = metrics.Aggregates(batch_size=8, accumulation=1)
        assert aggregates.update([empty], [{"a": 7}]) == {}
        begun = trace_of(["b"], [5], 2)
        figures = aggregates.update([empty, begun], [{"a": 0}, {"b": 0}])
        assert figures["adapt/mean_word_length"] == begun.word_length[-1, 0]

    def test_pictures_of_several_optimizers_show_the_steps_of_all(self):
        first, second = trace_of(["a"], [1], 7), trace_of(["b", "c"], [2, 3], 4, seed=1)
        merged = metrics.merged([first, second], [["a"], ["b", "c"]])
        assert merged.layers == ("a", "b", "c")
        assert merged.step.tolist() == [1, 2, 3, 4]
        assert np.array_equal(merged.word_length[:, 0], first.word_length[:4, 0])
        assert np.array_equal(merged.nonzero[:, 1:], second.nonzero)
        assert metrics.merged([first], [["a"]]) is first

    def test_pictures_of_several_optimizers_have_the_columns_of_all(self):
        mass = {"mass": adapt.trace.Column(np.float32, 0, 9, float32=0, default=7)}
        first, second = adapt.Trace(["a"], [1], mass), trace_of(["b", "c"], [2, 3], 2)
        first.append([1, 2], word_length=8, fraction_length=4, nonzero=1, mass=[[3], [4]])
        merged = metrics.merged([first, second], [["a"], ["b", "c"]])
        assert merged["mass"].tolist() == [[3, 7, 7], [4, 7, 7]]

    def test_where_accumulation_changes_there_is_no_training_speedup(self):
        figures = metrics.Aggregates(batch_size=8, accumulation=None).update([trace_of(["a"], [10], 5)], [{"a": 7}])
        assert figures.keys() == {f"adapt/{name}" for name in AGGREGATES if name != "training_speedup"}


class TestFiles:
    def test_the_trace_lies_where_the_report_looks_for_it(self, tmp_path, capsys):
        logger = CSVLogger(tmp_path)
        callback, _ = fit(Classifier(), logger=logger, log_every_n_steps=5)
        saved = adapt.Trace.load(f"{logger.log_dir}/trace.npz")
        assert np.array_equal(saved.word_length, callback.trace.word_length)
        assert cli.main(["report", logger.log_dir]) == 0
        assert "net.0.weight" in capsys.readouterr().out

    def test_two_optimizers_two_files(self, tmp_path):
        logger = CSVLogger(tmp_path)
        callback, _ = fit(Adversaries(), logger=logger, log_every_n_steps=5)
        for index, controller in enumerate(callback.controllers):
            saved = adapt.Trace.load(f"{logger.log_dir}/trace_{index}.npz")
            assert saved.layers == tuple(controller.masters)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_the_trace_of_an_interrupted_run_is_saved_too(self, error, tmp_path):
        class Broken(Classifier):
            def on_train_batch_start(self, batch, index):
                if index == 4:
                    raise error

        logger = CSVLogger(tmp_path)
        with pytest.raises((error, SystemExit)):
            fit(Broken(), logger=logger)
        assert len(adapt.Trace.load(f"{logger.log_dir}/trace.npz")) == 4

    def test_a_folder_that_cannot_be_written_costs_a_warning_and_not_the_run(self, tmp_path, monkeypatch):
        def refuse(self, path):
            raise PermissionError(13, "no room", str(path))

        monkeypatch.setattr(adapt.Trace, "save", refuse)
        with pytest.warns(UserWarning, match=r"could not be saved, the callback still has it.*no room"):
            callback, _ = fit(Classifier(), logger=CSVLogger(tmp_path))
        assert len(callback.trace) == 3 * BATCHES

    def test_no_folder_is_made_where_no_logger_has_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        fit(Classifier(), logger=Notebook())
        fit(Classifier(), logger=False)
        fit(Classifier(), logger=CSVLogger(tmp_path / "dry"), fast_dev_run=True)
        assert not list(tmp_path.rglob("*"))

    def test_a_remote_folder_is_left_alone(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        class Remote(Notebook):
            log_dir = "s3://bucket/run"

        assert metrics.save_files({"trace.npz": trace_of(["a"], [1], 2)}, [Remote()]) == []
        assert not list(tmp_path.iterdir())


class TestTensorBoard:
    def test_lines_from_the_logger_and_pictures_from_the_timeline(self, tmp_path):
        pytest.importorskip("matplotlib")
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        logger = TensorBoardLogger(tmp_path)
        callback, _ = fit(Classifier(), logger=logger, log_every_n_steps=2)
        events = accumulator.EventAccumulator(logger.log_dir).Reload()
        tags = events.Tags()
        # Points where the value changes, and where a picture was drawn.
        for field in FIELDS:
            points = events.Scalars(f"adapt_layers/{field}/net.0.weight")
            line = np.interp(callback.trace.step, [p.step for p in points], [p.value for p in points])
            np.testing.assert_allclose(line, callback.trace[field][:, 0], rtol=1e-6)
        assert len(events.Scalars("adapt_layers/word_length/net.0.weight")) < len(callback.trace)
        assert not any(f"adapt_layers/{field}/net.0.weight" in tags["scalars"] for field in INTERNALS)
        assert {f"adapt/{name}" for name in AGGREGATES} <= set(tags["scalars"])
        assert tags["images"] == ["adapt/word_length_heatmap", "adapt/timeline"]
        assert events.Images("adapt/timeline")[-1].step == 3 * BATCHES == callback.trace.step[-1]
        assert tags["histograms"] == ["adapt/word_length"]

    def test_drawing_takes_a_small_share_of_the_time(self, tmp_path, monkeypatch):
        timeline = pytest.importorskip("adapt.tensorboard").Timeline
        drawn, clock = [], [0.0]

        def draw(self, trace):
            drawn.append(len(trace))
            clock[0] += 1.0

        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        monkeypatch.setattr(timeline, "draw", draw)

        class Passes(Callback):
            def on_train_epoch_end(self, *args):
                clock[0] += 7.0

        fit(Classifier(), None, Passes(), max_epochs=7, logger=TensorBoardLogger(tmp_path))
        # After the first picture, which took a second, comes the next one twenty seconds later.
        assert drawn == [BATCHES, 4 * BATCHES, 7 * BATCHES, 7 * BATCHES]

    def test_without_matplotlib_there_are_lines_only(self, tmp_path, monkeypatch):
        pytest.importorskip("tensorboard")
        logger = TensorBoardLogger(tmp_path)
        real = importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
        )
        assert metrics.timelines([logger]) == {}
        fit(Classifier(), precision(RESTLESS), logger=logger, log_every_n_steps=2)


class WithHyperparameters(Classifier):
    """A module that saves hyperparameters of its own, "adapt" among them if `taken` is given."""

    def __init__(self, width=8, **taken):
        super().__init__()
        self.save_hyperparameters({"width": width, **taken})


def learned():
    return LearnedBitwidth(adapt.learned.Budget(bits=4), phases=(1, 1, 1))


def hparams_file(logger):
    return yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text(encoding="utf-8"))


class TestHyperparameters:
    @pytest.mark.covering(1)
    @pytest.mark.parametrize("make", [precision, learned, lambda: precision(adapt.MuPPET())])
    @pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda package: package.__name__)
    def test_what_makes_the_run_lies_beside_the_modules_own(self, make, package, tmp_path):
        class Module(package.LightningModule):
            def __init__(self, width=8):
                super().__init__()
                self.save_hyperparameters()
                self.net = nn.Linear(6, 3)

            def forward(self, inputs):
                return self.net(inputs)

            def training_step(self, batch, index):
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.05)

        callback, logger = make(), package.loggers.CSVLogger(tmp_path)
        package.Trainer(
            accelerator="cpu", max_epochs=3, callbacks=[callback], logger=logger, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=5,
        ).fit(Module(), loader())  # fmt: skip
        assert hparams_file(logger) == {"width": 8, "adapt": callback.trace.run}
        if isinstance(callback, AdaptivePrecision):
            assert adapt.switching.from_dict(callback.trace.run["policy"]) == callback.controller.policy
        else:
            assert callback.trace.run["phases"] == {"pretraining": 6, "learning": 6, "finetuning": 6}

    def test_each_optimizer_has_its_own(self, tmp_path):
        logger = CSVLogger(tmp_path)
        callback, _ = fit(Adversaries(), logger=logger)
        assert hparams_file(logger) == {
            "adapt": {"0": callback.controllers[0].trace.run, "1": callback.controllers[1].trace.run}
        }

    def test_one_of_the_same_name_stays(self, tmp_path):
        logger = CSVLogger(tmp_path)
        fit(WithHyperparameters(adapt="mine"), logger=logger)
        assert hparams_file(logger) == {"width": 8, "adapt": "mine"}

    @pytest.mark.skipif("enable_autolog_hparams" not in inspect.signature(lightning.Trainer).parameters, reason="old")
    def test_none_are_logged_where_the_trainer_logs_none(self, tmp_path):
        logger = CSVLogger(tmp_path)
        fit(WithHyperparameters(), logger=logger, enable_autolog_hparams=False)
        assert logger.experiment.hparams == {}

    def test_a_resumed_run_logs_what_it_goes_on_with(self, tmp_path):
        keep = ModelCheckpoint(tmp_path, "{step}", save_last=True)
        before, _ = fit(Classifier(), None, keep, enable_checkpointing=True, max_epochs=1)
        logger = CSVLogger(tmp_path)
        fit(Classifier(), precision(seed=5), logger=logger, ckpt_path=tmp_path / "last.ckpt")
        assert hparams_file(logger)["adapt"]["seed"] == before.trace.run["seed"]

    @pytest.mark.covering(1)
    @pytest.mark.parametrize("make", [precision, learned])
    @pytest.mark.parametrize("module", [Classifier, WithHyperparameters])
    def test_tensorboard_shows_them(self, make, module, tmp_path):
        pytest.importorskip("matplotlib")
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        logger = TensorBoardLogger(tmp_path)
        callback, _ = fit(module(), make(), logger=logger)
        events = accumulator.EventAccumulator(logger.log_dir).Reload()
        text = events.Tensors("adapt/run/text_summary")[0].tensor_proto.string_val[0].decode()
        for name, value in callback.trace.run.items():
            if not isinstance(value, dict):
                assert f"| {name} | {value} |" in text
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        shown = HParamsPluginData.FromString(content).session_start_info.hparams
        if module is Classifier:
            assert shown["adapt"].string_value == adapt.__version__
        else:
            assert set(shown) == {"width"}

    def test_tensorboard_shows_them_without_pictures_too(self, tmp_path, monkeypatch):
        pytest.importorskip("tensorboard")
        real = importlib.util.find_spec
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest)
        )
        logger = TensorBoardLogger(tmp_path)
        callback, _ = fit(Classifier(), logger=logger)
        assert logger.hparams == {"adapt": callback.trace.run}


def rounding_activations():
    return AdaptivePrecision(activations="range")


def learning_activations():
    budget = adapt.learned.Budget(bits=6)
    return LearnedBitwidth(weight_budget=budget, activation_budget=budget, update_every=2)


@pytest.mark.parametrize("make", [rounding_activations, learning_activations])
def test_the_graph_is_drawn_while_activations_are_rounded(tmp_path, make):
    module = Classifier()
    module.example_input_array = torch.zeros(4, 6)
    fit(module, make(), logger=TensorBoardLogger(tmp_path, log_graph=True))
    assert b"net" in b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
