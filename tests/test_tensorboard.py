import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from adapt import figures
from adapt.tensorboard import Timeline
from adapt.trace import Column, Trace

LAYERS = ("conv[0].weight", "fc.weight")
EVERYTHING = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0, "compressedHistograms": 0}


def grown(rows: int, trace: Trace | None = None) -> Trace:
    """A trace of that many rows, at every second step; the formats follow from the row alone."""
    trace = Trace(LAYERS, [10, 30]) if trace is None else trace
    for row in range(len(trace), rows):
        trace.append(
            2 * row,
            word_length=[4 + row % 9, 8],
            fraction_length=[-3 + row % 9, 4],
            nonzero=[0.25, 1.0],
            lookback=[25 + row / 4, 30.0],
            resolution=[50 + row % 9, 60],
            diversity=[1.5, np.inf],
            divergence=[np.nan if row == 0 else 0.25, np.nan],
        )
    return trace


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def write(folder, *traces: Trace, **options) -> EventAccumulator:
    with SummaryWriter(folder) as writer:
        line = Timeline(writer, **options)
        for trace in traces:
            line.write(trace)
    return read(folder)


class TestScalars:
    @pytest.mark.parametrize("field", ["word_length", "fraction_length", "nonzero", "lookback", "resolution"])
    def test_every_layer_has_its_line(self, field, tmp_path):
        trace = grown(40)
        events = write(tmp_path, trace)
        for column, layer in enumerate(LAYERS):
            points = events.Scalars(f"{field}/{layer}")
            assert [point.step for point in points] == trace.step.tolist()
            np.testing.assert_allclose([point.value for point in points], getattr(trace, field)[:, column])

    def test_a_policys_own_column_has_lines_and_a_chart(self, tmp_path):
        trace = Trace(LAYERS, [10, 30], {"mass": Column(np.float32, 0, 9, float32=0, default=0)})
        trace.append([1, 2], word_length=8, fraction_length=4, nonzero=1.0, mass=[[2, 3], [4, 5]])
        events = write(tmp_path, trace)
        assert [(p.step, p.value) for p in events.Scalars("mass/fc.weight")] == [(1, 3), (2, 5)]
        layout = layout_pb2.Layout()
        layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
        assert [chart.title for chart in layout.category[0].chart][-1] == "mass"

    def test_values_that_are_not_finite_are_left_out(self, tmp_path):
        events = write(tmp_path, grown(5))
        assert len(events.Scalars("diversity/conv[0].weight")) == 5
        assert [point.step for point in events.Scalars("divergence/conv[0].weight")] == [2, 4, 6, 8]
        tags = events.Tags()["scalars"]
        assert "diversity/fc.weight" not in tags
        assert "divergence/fc.weight" not in tags

    def test_lines_can_be_left_to_a_logger(self, tmp_path):
        tags = write(tmp_path, grown(5), lines=False).Tags()
        assert tags["scalars"] == []
        assert tags["images"] == ["adapt/word_length_heatmap", "adapt/timeline"]
        assert tags["histograms"] == ["adapt/word_length"]

    def test_there_is_one_event_file(self, tmp_path):
        write(tmp_path, grown(5))
        assert len(list(tmp_path.rglob("*tfevents*"))) == 1

    def test_long_traces_are_thinned_evenly_and_keep_their_last_row(self, tmp_path):
        steps = [point.step for point in write(tmp_path, grown(1501)).Scalars("word_length/fc.weight")]
        assert steps == [*range(0, 3000, 8), 3000]


class TestRepeatedWriting:
    def test_a_growing_trace_is_written_once(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            line, trace = Timeline(writer), grown(10)
            line.write(trace)
            line.write(trace)
            line.write(grown(25, trace))
            line.write(trace)
        events = read(tmp_path)
        assert [point.step for point in events.Scalars("word_length/fc.weight")] == list(range(0, 50, 2))
        assert [point.step for point in events.Histograms("adapt/word_length")] == list(range(0, 50, 2))
        assert [point.step for point in events.Images("adapt/word_length_heatmap")] == [18, 48]

    def test_a_run_that_is_written_many_times_stays_small(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            line, trace = Timeline(writer), Trace(LAYERS, [10, 30])
            writer.add_image = lambda *_, **__: None
            for _ in range(4):
                line.write(grown(len(trace) + 2500, trace))
        points = read(tmp_path).Scalars("word_length/fc.weight")
        steps = [point.step for point in points]
        assert steps == sorted(set(steps))
        assert steps[-1] == trace.step[-1]
        assert 400 < len(points) < 1700

    def test_a_resumed_run_goes_on_after_its_last_step(self, tmp_path):
        events = write(tmp_path, grown(10), after=11)
        assert [point.step for point in events.Scalars("word_length/fc.weight")] == [12, 14, 16, 18]

    def test_a_layer_that_joins_later_gets_its_line(self, tmp_path):
        trace = grown(5)
        with SummaryWriter(tmp_path) as writer:
            line = Timeline(writer)
            line.write(trace)
            trace.add_layers(["late.weight"], [5])
            trace.append(100, word_length=[6, 7, 8], fraction_length=0, nonzero=1.0)
            line.write(trace)
        assert [(p.step, p.value) for p in read(tmp_path).Scalars("word_length/late.weight")] == [(100, 8)]

    def test_a_trace_without_rows_writes_nothing(self, tmp_path):
        tags = write(tmp_path, Trace(LAYERS, [10, 30])).Tags()
        assert not any(tags[kind] for kind in ("scalars", "images", "histograms", "tensors"))


class TestPicturesAndHistograms:
    def test_pictures_are_there(self, tmp_path):
        events = write(tmp_path, grown(40))
        for tag in ("adapt/word_length_heatmap", "adapt/timeline"):
            (image,) = events.Images(tag)
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert image.step == 78
            assert image.width > 800
            assert image.height > 300

    def test_histograms_count_layers_by_word_length(self, tmp_path):
        (event,) = write(tmp_path, grown(1)).Histograms("adapt/word_length")
        value = event.histogram_value
        assert value.num == 2
        assert value.sum == 12
        counts = dict(zip(value.bucket_limit, value.bucket, strict=True))
        assert {limit: count for limit, count in counts.items() if count} == {4.5: 1, 8.5: 1}

    def test_histograms_are_few(self, tmp_path):
        assert 40 < len(write(tmp_path, grown(1000)).Histograms("adapt/word_length")) <= 51


class TestCharts:
    def layout(self, events: EventAccumulator) -> layout_pb2.Layout:
        (event,) = events.Tensors("custom_scalars__config__")
        return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])

    def test_a_chart_holds_exactly_the_lines_of_its_quantity(self, tmp_path):
        events = write(tmp_path, grown(5))
        (category,) = self.layout(events).category
        charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
        tags = events.Tags()["scalars"]
        (pattern,) = charts["word length"]
        # As TensorBoard matches them: from the beginning of the tag.
        assert [tag for tag in tags if re.match(pattern, tag)] == [f"word_length/{layer}" for layer in LAYERS]
        assert set(charts) >= {"word length", "fraction length", "nonzero", "lookback", "resolution", "diversity"}

    def test_a_writer_is_told_once(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            for trace in (grown(2), grown(4)):
                Timeline(writer).write(trace)
        self.layout(read(tmp_path))

    def test_they_can_be_left_to_the_user(self, tmp_path):
        assert "custom_scalars__config__" not in write(tmp_path, grown(5), charts=False).Tags()["tensors"]


class TestWriters:
    def test_lightnings_logger(self, tmp_path):
        loggers = pytest.importorskip("lightning.pytorch.loggers")
        logger = loggers.TensorBoardLogger(tmp_path, name="run", version=0)
        with pytest.raises(TypeError, match=r"TensorBoardLogger has no add_scalar.*pass its \.experiment"):
            Timeline(logger)
        Timeline(logger.experiment).write(grown(5))
        logger.experiment.flush()
        assert len(read(tmp_path / "run" / "version_0").Scalars("word_length/fc.weight")) == 5

    def test_something_else_is_refused(self):
        with pytest.raises(TypeError, match="writer must be a SummaryWriter, but str has no add_scalar"):
            Timeline("runs")

    @pytest.mark.parametrize("missing", ["tensorboard", "matplotlib"])
    def test_a_missing_package_is_named_with_the_extra_that_brings_it(self, missing):
        code = f"""
import importlib.util, sys
sys.modules[{missing!r}] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith({missing!r}) else find(name, *rest)
try:
    import adapt.tensorboard
except ImportError as error:
    print(error)
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert {"tensorboard": "TensorBoard"}.get(missing, missing) in result.stdout
        assert "pip install 'adapt-precision[tensorboard]'" in result.stdout


class TestFigures:
    @pytest.mark.parametrize("layers", [1, 12, 65])
    @pytest.mark.parametrize("draw", [figures.word_length_heatmap, figures.timeline])
    def test_labels_stay_inside_and_apart(self, draw, layers):
        trace = Trace(
            [f"block{index}.with.a.long.path.to.some.convolution.weight" for index in range(layers)], [5] * layers
        )
        trace.append(
            np.arange(300),
            word_length=np.arange(300)[:, None] % 31 + np.full(layers, 2),
            fraction_length=3,
            nonzero=0.5,
        )
        figure = draw(trace)
        picture = figures.pixels(figure)
        assert picture.dtype == np.uint8
        # A margin without ink on every side: nothing is cut off.
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
            boxes = sorted((box.y0, box.y1) for box in boxes if box.y0 >= 0 and box.y1 <= picture.shape[0])
            assert all(low[1] <= high[0] + 1 for low, high in itertools.pairwise(boxes))

    def test_the_same_word_length_has_the_same_colour_in_every_picture(self):
        def colour(trace):
            mesh = figures.word_length_heatmap(trace).axes[1].collections[0]
            return mesh.to_rgba(8)

        wide, narrow = Trace(["a"], [1]), Trace(["a"], [1])
        wide.append([0, 1], word_length=[[2], [32]], fraction_length=0, nonzero=1.0)
        narrow.append([0, 1], word_length=8, fraction_length=0, nonzero=1.0)
        assert colour(wide) == colour(narrow)

    def test_the_heat_map_shows_the_word_lengths(self):
        trace = grown(30)
        mesh = figures.word_length_heatmap(trace).axes[1].collections[0]
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 30), trace.word_length.T)

    @pytest.mark.parametrize("draw", [figures.word_length_heatmap, figures.timeline])
    def test_nothing_global_is_touched(self, draw):
        code = f"""
import sys
import numpy as np
from adapt import figures
from adapt.trace import Trace
trace = Trace(["a"], [1])
trace.append(0, word_length=8, fraction_length=4, nonzero=1.0)
figures.pixels(figures.{draw.__name__}(trace))
assert "matplotlib.pyplot" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize("draw", [figures.word_length_heatmap, figures.timeline])
    def test_a_trace_without_rows_cannot_be_drawn(self, draw):
        with pytest.raises(ValueError, match="no rows"):
            draw(Trace(["a"], [1]))

    def test_names_as_labels(self):
        assert figures.short_names(("a.weight", "b.weight")) == ["a", "b"]
        assert figures.short_names(("a.weight", "b.bias")) == ["a.weight", "b.bias"]
        assert figures.short_names(("cost$x$",)) == [r"cost\$x\$"]
        (label,) = figures.short_names(("x" * 30 + "." + "y" * 30,))
        assert len(label) <= 36
        assert label.startswith("xxx")
        assert label.endswith("yyy")
