"""One line around a plain loop writes all that Lightning's callback writes."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adapt
from adapt import learned
from adapt.learned import Budget, Phases
from adapt.report.runs import load_run
from adapt.trace.widths import Widths
from tests.processes import python
from tests.training import assembled, copies, net, train


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def recorded(folder, steps=12, **options):
    model, optimizer, controller = assembled(**options)
    with adapt.Recorder(controller, folder) as recorder:
        train(model, optimizer, steps, controller=controller)
        recorder.log(accuracy=0.5)
    return recorder, model, optimizer, controller


class TestFiles:
    def test_trace_lines_pictures_and_settings_are_written(self, tmp_path):
        recorder, _, _, controller = recorded(tmp_path / "runs" / "a")
        assert recorder.folder == tmp_path / "runs" / "a"
        saved = adapt.Trace.load(recorder.folder / "trace.npz")
        assert np.array_equal(saved.word_length, controller.trace.word_length)
        tags = events(recorder.folder).Tags()
        assert {"adapt/mean_word_length", "adapt_layers/word_length/0.weight", "accuracy"} <= set(tags["scalars"])
        assert "adapt/timeline" in tags["images"]
        assert "adapt/run/text_summary" in tags["tensors"]
        described = json.loads((recorder.folder / "run.json").read_text())
        assert described["run"]["policy"]["name"] == "AdaPT"
        assert described["run"]["policy"]["lookback"] == [2, 4]
        assert described["formats"].keys() == {"0.weight", "2.weight"}

    def test_the_report_reads_them(self, tmp_path):
        recorder, *_ = recorded(tmp_path / "a")
        run = load_run(recorder.folder)
        assert run.made["optimizer"] == "SGD"
        assert run.metrics["accuracy"] == ([12.0], [0.5])
        assert len(list(recorder.folder.glob("*tfevents*"))) == 1

    def test_learned_widths_too(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        learner = learned.attach(
            optimizer,
            model,
            weight_budget=Budget(bits=3),
            phases=Phases(2, 6, 2),
            update_every=2,
        )
        with adapt.Recorder(learner, tmp_path / "a") as recorder:
            train(model, optimizer, 10)
        widths = Widths.load(recorder.folder / "widths.npz")
        assert np.array_equal(widths.word_length, learner.widths.word_length)
        found = events(recorder.folder)
        last = found.Scalars("adapt_layers/word_length/0.weight")[-1].value
        assert last == pytest.approx(learner.widths.means()[-1, 0])
        assert "adapt/channels/0.weight" in found.Tags()["images"]
        assert [entry["phase"] for entry in load_run(recorder.folder).phases] == [e["phase"] for e in learner.log]

    def test_a_loop_that_fails_is_saved_without_a_summary(self, tmp_path, capsys):
        model, optimizer, controller = assembled()

        def interrupted():
            with adapt.Recorder(controller, tmp_path / "a"):
                train(model, optimizer, 5, controller=controller)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert len(adapt.Trace.load(tmp_path / "a" / "trace.npz")) == 5
        assert capsys.readouterr().out == ""

    def test_a_loop_without_a_step_leaves_no_trace(self, tmp_path, capsys):
        _, _, controller = assembled()
        with adapt.Recorder(controller, tmp_path / "a"):
            pass
        assert not (tmp_path / "a" / "trace.npz").exists()
        assert capsys.readouterr().out == ""

    def test_the_summary_names_the_figures_and_what_shows_more(self, tmp_path, capsys):
        recorder, *_ = recorded(tmp_path / "a")
        out = capsys.readouterr().out
        assert f"{recorder.folder}: <Controller of SGD: 2 layers" in out
        assert "bits on average" in out
        assert f"adapt report {recorder.folder}\n" in out
        assert f"tensorboard --logdir {recorder.folder}\n" in out


class TestWhileTheLoopRuns:
    def test_files_follow_for_a_share_of_the_time(self, tmp_path, monkeypatch):
        clock = [0.0]
        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        model, optimizer, controller = assembled()
        rows = []
        with adapt.Recorder(controller, tmp_path):
            for step in range(6):
                clock[0] += 4.0
                train(model, optimizer, 1, step, controller=controller)
                file = tmp_path / "trace.npz"
                rows.append(len(adapt.Trace.load(file)) if file.exists() else 0)
        # After ten seconds; the clock stands still while it writes, so after every further step too.
        assert rows == [0, 0, 3, 4, 5, 6]

    def test_recording_changes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr("adapt.recorder._FIRST_SECONDS", 0.0)
        _, _, _, watched = recorded(tmp_path / "a", steps=20)
        model, optimizer, alone = assembled()
        train(model, optimizer, 20, controller=alone)
        for name, master in copies(alone.masters).items():
            assert torch.equal(master, watched.masters[name])

    def test_the_optimizer_is_left_as_it_was(self, tmp_path):
        _, _, optimizer, controller = recorded(tmp_path / "a")
        assert len(optimizer._optimizer_step_post_hooks) == 1
        assert controller.is_attached


class TestFolders:
    def test_another_run_is_written_beside(self, tmp_path):
        first = recorded(tmp_path / "a", steps=5)[0]
        before = (first.folder / "trace.npz").read_bytes()
        assert [recorded(tmp_path / "a")[0].folder.name for _ in range(2)] == ["a-2", "a-3"]
        assert (first.folder / "trace.npz").read_bytes() == before

    def test_a_resumed_run_goes_on_in_its_folder_and_replaces_what_came_after_the_checkpoint(self, tmp_path):
        model, optimizer, controller = assembled()
        with adapt.Recorder(controller, tmp_path / "a"):
            train(model, optimizer, 8, controller=controller)
            state = {"model": copies(model.state_dict()), "optimizer": optimizer.state_dict()}
            adapt.save(state, tmp_path / "run.pt")
            train(model, optimizer, 4, 8, controller=controller)
        recorded(tmp_path / "a")  # beside it
        model, optimizer, controller = assembled(net(seed=1))
        state = adapt.load(tmp_path / "run.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        with adapt.Recorder(controller, tmp_path / "a") as recorder:
            train(model, optimizer, 10, 8, controller=controller)
        assert recorder.folder == tmp_path / "a"
        assert len(adapt.Trace.load(tmp_path / "a" / "trace.npz")) == 18
        mean = events(tmp_path / "a").Scalars("adapt/mean_word_length")
        steps = [point.step for point in mean]
        assert steps == sorted(set(steps))
        values = np.interp(controller.trace.step, steps, [point.value for point in mean])
        np.testing.assert_allclose(values, controller.trace.mean_word_length(), rtol=1e-6)


class TestUse:
    def test_an_optimizer_is_refused_with_a_hint(self):
        model = net()
        with pytest.raises(TypeError, match=r"got ASGD: pass its \.controller"):
            adapt.Recorder(adapt.ASGD(model, lr=0.1), "runs")
        with pytest.raises(TypeError, match="must be a controller from attach"):
            adapt.Recorder(model, "runs")

    def test_it_is_public_and_its_import_is_light(self):
        assert "Recorder" in dir(adapt)
        assert dir(adapt) == sorted(adapt.__all__)
        code = "import sys, adapt; adapt.Recorder; print({'tensorboard', 'matplotlib'} & set(sys.modules))"
        done = python("-c", code)
        assert done.stdout.strip() == "set()"
