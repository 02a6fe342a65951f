import itertools
import re

import numpy as np
import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from adapt import figures, report
from adapt.tensorboard import Timeline
from adapt.trace import Column, Trace
from adapt.trace.widths import Widths
from tests.processes import python

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


def points(events: EventAccumulator, column: str, layer: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events.Scalars(f"adapt_layers/{column}/{layer}")]


def layout(events: EventAccumulator) -> layout_pb2.Layout:
    (event,) = events.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def write(folder, *traces: Trace, **options) -> EventAccumulator:
    with SummaryWriter(folder) as writer:
        line = Timeline(writer, **options)
        for trace in traces:
            line.write(trace)
    return read(folder)


class TestLines:
    @pytest.mark.parametrize("column", ["word_length", "fraction_length", "nonzero", "lookback", "resolution"])
    def test_every_layer_has_its_line(self, column, tmp_path):
        trace = grown(40)
        events = write(tmp_path, trace, internals=True)
        for index, layer in enumerate(LAYERS):
            steps, values = zip(*points(events, column, layer), strict=True)
            np.testing.assert_allclose(np.interp(trace.step, steps, values), trace[column][:, index])

    def test_how_the_policy_decides_is_written_on_request_only(self, tmp_path):
        tags = write(tmp_path, grown(40)).Tags()["scalars"]
        assert {tag.split("/")[1] for tag in tags if tag.startswith("adapt_layers/")} == {
            "word_length",
            "fraction_length",
            "nonzero",
        }

    def test_the_whole_network_has_lines_too(self, tmp_path):
        trace = grown(3)
        events = write(tmp_path, trace)
        mean = [p.value for p in events.Scalars("adapt/mean_word_length")]
        assert mean == pytest.approx(trace.mean_word_length().tolist())
        for name in ("nonzero", "size_ratio", "memory_ratio"):
            assert events.Scalars(f"adapt/{name}")[-1].value == pytest.approx(report.totals(trace)[name])

    def test_a_policys_own_column_has_lines_and_charts(self, tmp_path):
        trace = Trace(LAYERS, [10, 30], {"mass": Column(np.float32, 0, 9, float32=0, default=0)})
        trace.append([1, 2], word_length=8, fraction_length=4, nonzero=1.0, mass=[[2, 3], [4, 5]])
        events = write(tmp_path, trace)
        assert points(events, "mass", "fc.weight") == [(1, 3), (2, 5)]
        assert layout(events).category[-1].title == "mass"

    def test_points_are_where_a_line_turns(self, tmp_path):
        trace = Trace(["a"], [1])
        lengths = [8, 8, 8, 6, 6, 6, 6, 7, 8, 8]
        trace.append(range(10), word_length=[[bits] for bits in lengths], fraction_length=4, nonzero=1.0)
        events = write(tmp_path, trace)
        assert points(events, "word_length", "a") == [(0, 8), (2, 8), (3, 6), (6, 6), (7, 7), (8, 8), (9, 8)]
        assert points(events, "fraction_length", "a") == [(0, 4), (9, 4)]

    @given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=30), ends=st.sets(st.integers(1, 29)))
    def test_whatever_the_calls_the_line_is_the_same(self, lengths, ends):
        """Straight lines between the points go through every value, and no step is written twice."""
        written = []

        class Writer:
            def __getattr__(self, name):
                return lambda *args, **_: written.append(args[1:]) if args[0] == "adapt_layers/word_length/a" else None

        trace, line = Trace(["a"], [1]), Timeline(Writer(), charts=False)
        for start, end in itertools.pairwise(sorted({0, *(e for e in ends if e < len(lengths)), len(lengths)})):
            rows = [[bits] for bits in lengths[start:end]]
            trace.append(range(start, end), word_length=rows, fraction_length=0, nonzero=1.0)
            line.write_layers(trace, to_the_end=end == len(lengths))
        values, steps = zip(*written, strict=True)
        assert list(steps) == sorted(set(steps))
        assert np.interp(range(len(lengths)), steps, values).tolist() == lengths

    def test_values_that_are_not_finite_are_left_out(self, tmp_path):
        events = write(tmp_path, grown(5), internals=True)
        assert points(events, "diversity", "conv[0].weight") == [(0, 1.5), (8, 1.5)]
        assert points(events, "divergence", "conv[0].weight") == [(2, 0.25), (8, 0.25)]
        tags = events.Tags()["scalars"]
        assert "adapt_layers/diversity/fc.weight" not in tags
        assert "adapt_layers/divergence/fc.weight" not in tags

    def test_there_is_one_event_file(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            line = Timeline(writer)
            line.describe({"policy": "AdaPT"})
            line.write(grown(5))
        assert len(list(tmp_path.rglob("*tfevents*"))) == 1

    def test_long_traces_are_thinned_evenly_and_keep_their_last_row(self, tmp_path):
        found = points(write(tmp_path, grown(1501)), "word_length", "conv[0].weight")
        assert [step for step, _ in found] == [*range(0, 3000, 8), 3000]

    def test_learned_widths_are_exact(self, tmp_path):
        trace = Trace(["a"], [4])
        trace.append([1, 2, 3], word_length=[[4], [4], [3]], fraction_length=0, nonzero=0.5)
        widths = Widths(["a", "a.input"], [2, 1], [2, 2, 9])
        widths.append(1, [4, 5, 8])
        widths.append(3, [3, 4, 6])
        with SummaryWriter(tmp_path) as writer:
            Timeline(writer).write(trace, widths)
        events = read(tmp_path)
        assert points(events, "word_length", "a") == [(1, 4.5), (2, 4.5), (3, 3.5)]
        assert points(events, "word_length", "a.input") == [(1, 8), (2, 8), (3, 6)]
        assert [p.value for p in events.Scalars("adapt/size_ratio")] == [0.5 * bits / 32 for bits in (4.5, 4.5, 3.5)]


class TestRepeatedWriting:
    def test_a_growing_trace_is_written_once(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            line, trace = Timeline(writer), grown(10)
            line.write(trace)
            line.write(trace)
            line.write_layers(grown(20, trace))
            line.write(grown(25, trace))
            line.write(trace)
        events = read(tmp_path)
        assert [step for step, _ in points(events, "word_length", "conv[0].weight")] == list(range(0, 50, 2))
        assert points(events, "word_length", "fc.weight") == [(0, 8), (18, 8), (48, 8)]
        assert [point.step for point in events.Histograms("adapt/word_length")] == list(range(0, 50, 2))
        assert [point.step for point in events.Images("adapt/word_length_heatmap")] == [18, 48]

    def test_a_run_that_is_written_many_times_stays_small(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            line, trace = Timeline(writer), Trace(LAYERS, [10, 30])
            writer.add_image = lambda *_, **__: None
            for _ in range(4):
                line.write(grown(len(trace) + 2500, trace))
        steps = [step for step, _ in points(read(tmp_path), "word_length", "conv[0].weight")]
        assert steps == sorted(set(steps))
        assert steps[-1] == trace.step[-1]
        assert 400 < len(steps) < 1700

    def test_a_resumed_run_goes_on_after_its_last_step(self, tmp_path):
        events = write(tmp_path, grown(10), after=11)
        assert [step for step, _ in points(events, "word_length", "conv[0].weight")] == [12, 14, 16, 18]

    def test_a_layer_that_joins_later_gets_its_line(self, tmp_path):
        trace = grown(5)
        with SummaryWriter(tmp_path) as writer:
            line = Timeline(writer)
            line.write(trace)
            trace.add_layers(["late.weight"], [5])
            trace.append(100, word_length=[6, 7, 8], fraction_length=0, nonzero=1.0)
            line.write(trace)
        assert points(read(tmp_path), "word_length", "late.weight") == [(0, 32), (8, 32), (100, 8)]

    def test_a_trace_without_rows_writes_nothing(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            Timeline(writer).write(Trace(LAYERS, [10, 30]))
            Timeline(writer).write_layers(Trace(LAYERS, [10, 30]))
        tags = read(tmp_path).Tags()
        assert not any(tags[kind] for kind in ("scalars", "images", "histograms", "tensors"))


class TestPicturesAndHistograms:
    def test_pictures_are_there(self, tmp_path):
        events = write(tmp_path, grown(40))
        for tag in ("adapt/word_length_heatmap", "adapt/timeline"):
            (image,) = events.Images(tag)
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert image.step == 78
            # The shape of a card, in twice its pixels and more.
            assert 1.5 < image.width / image.height < 1.7
            assert image.width > 800

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
    def test_a_chart_has_at_most_ten_lines_and_each_line_a_chart(self, tmp_path):
        trace = Trace([f"block.{i}.weight" for i in range(23)], [1] * 23)
        trace.append([0, 1], word_length=8, fraction_length=4, nonzero=1.0)
        events = write(tmp_path, trace)
        tags = events.Tags()["scalars"]
        categories = {category.title: category.chart for category in layout(events).category}
        assert set(categories) == {"word length", "fraction length", "nonzero"}
        charts = categories["word length"]
        assert [chart.title for chart in charts] == ["layers 1 to 10", "layers 11 to 20", "layers 21 to 23"]
        # As TensorBoard matches them: from the beginning of the tag.
        patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
        assert [len(chart.multiline.tag) for chart in charts] == [10, 10, 3]
        lines = [tag for pattern in patterns for tag in tags if re.match(pattern, tag)]
        assert lines == [f"adapt_layers/word_length/{layer}" for layer in trace.layers]

    def test_names_are_no_patterns(self, tmp_path):
        events = write(tmp_path, grown(5))
        (chart,) = layout(events).category[0].chart
        assert re.match(chart.multiline.tag[0], "adapt_layers/word_length/conv[0].weight")

    def test_a_writer_is_told_once(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            for trace in (grown(2), grown(4)):
                Timeline(writer).write(trace)
        layout(read(tmp_path))

    def test_they_can_be_left_to_the_user(self, tmp_path):
        assert "custom_scalars__config__" not in write(tmp_path, grown(5), charts=False).Tags()["tensors"]


class TestDescription:
    MADE = {"policy": "AdaPT", "policy.kl_tolerance": 0.1, "l1": None, "seed": 3, "note": "a | b"}  # noqa: RUF012

    def test_it_is_a_text_and_hyperparameters_of_the_run(self, tmp_path):
        with SummaryWriter(tmp_path) as writer:
            Timeline(writer).describe(self.MADE)
        events = read(tmp_path)
        (text,) = events.Tensors("adapt/run/text_summary")
        assert b"| seed | 3 |\n| note | a \\| b |" in text.tensor_proto.string_val[0]
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert start["policy"].string_value == "AdaPT"
        assert start["seed"].number_value == 3
        assert start["l1"].string_value == "None"


class TestWriters:
    def test_lightnings_logger(self, tmp_path):
        loggers = pytest.importorskip("lightning.pytorch.loggers")
        logger = loggers.TensorBoardLogger(tmp_path, name="run", version=0)
        with pytest.raises(TypeError, match=r"TensorBoardLogger has no add_scalar.*pass its \.experiment"):
            Timeline(logger)
        Timeline(logger.experiment).write(grown(5))
        logger.experiment.flush()
        assert len(points(read(tmp_path / "run" / "version_0"), "word_length", "conv[0].weight")) == 5

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
        result = python("-c", code)
        assert {"tensorboard": "TensorBoard"}.get(missing, missing) in result.stdout
        assert "pip install 'adapt-precision[tensorboard]'" in result.stdout


class TestFigures:
    @pytest.mark.covering(2)
    @pytest.mark.parametrize("canvas", [figures.PAGE, figures.CARD], ids=["page", "card"])
    @pytest.mark.parametrize("layers", [1, 12, 65])
    @pytest.mark.parametrize("draw", [figures.word_length_heatmap, figures.timeline])
    def test_labels_stay_inside_and_apart(self, draw, layers, canvas):
        trace = Trace(
            [f"block{index}.with.a.long.path.to.some.convolution.weight" for index in range(layers)], [5] * layers
        )
        trace.append(
            np.arange(300),
            word_length=np.arange(300)[:, None] % 31 + np.full(layers, 2),
            fraction_length=3,
            nonzero=0.5,
        )
        figure = draw(trace, canvas)
        picture = figures.pixels(figure)
        assert picture.dtype == np.uint8
        # A margin without ink on every side: nothing is cut off.
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
            boxes = sorted((box.y0, box.y1) for box in boxes if box.y0 >= 0 and box.y1 <= picture.shape[0])
            assert all(low[1] <= high[0] + 1 for low, high in itertools.pairwise(boxes))

    def test_the_colours_span_the_words_of_the_run_beside_float32(self):
        trace = Trace(["a", "b"], [1, 1])
        trace.append([0, 1], word_length=[[4, 32], [6, 32]], fraction_length=0, nonzero=1.0)
        mesh = figures.word_length_heatmap(trace).axes[1].collections[0]
        assert mesh.norm.boundaries.tolist() == [3.5, 4.5, 5.5, 6.5]
        assert len({tuple(mesh.to_rgba(bits)) for bits in (4, 5, 6, 32)}) == 4
        trace = Trace(["a"], [1])
        trace.append([0, 1], word_length=32, fraction_length=0, nonzero=1.0)
        figures.pixels(figures.word_length_heatmap(trace))

    def test_equal_layers_lie_on_each_other(self):
        trace = Trace(["a", "b"], [1, 1])
        trace.append([0, 1], word_length=7, fraction_length=0, nonzero=1.0)
        lines = figures.timeline(trace).axes[0].patches
        assert {tuple(line.get_data().values) for line in lines} == {(7, 7)}

    def test_more_than_twenty_layers_are_two_bands_a_median_and_the_average(self):
        trace = Trace([str(i) for i in range(21)], [1] * 21)
        trace.append([0, 1], word_length=np.arange(4, 25), fraction_length=0, nonzero=1.0)
        shown = {p.get_label(): p.get_data() for p in figures.timeline(trace).axes[0].patches}
        assert list(shown) == ["all layers", "the middle half of them", "the median layer", "average weight"]
        assert (shown["all layers"].baseline[0], shown["all layers"].values[0]) == (4, 24)
        assert (shown["the middle half of them"].baseline[0], shown["the middle half of them"].values[0]) == (9, 19)
        assert shown["the median layer"].values[0] == 14

    def test_the_heat_map_shows_the_word_lengths(self):
        trace = grown(30)
        mesh = figures.word_length_heatmap(trace).axes[1].collections[0]
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(2, 30), trace.word_length.T)

    def test_nothing_global_is_touched(self):
        code = """
import sys
import numpy as np
from adapt import figures, report
from adapt.trace import Trace
trace = Trace(["a"], [1])
trace.append(0, word_length=8, fraction_length=4, nonzero=1.0)
figures.pixels(figures.word_length_heatmap(trace))
figures.pixels(figures.timeline(trace))
assert "matplotlib.pyplot" not in sys.modules
"""
        result = python("-c", code)
        assert result.returncode == 0, result.stderr

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
