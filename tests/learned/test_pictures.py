"""Pictures of word lengths by channel, and in TensorBoard."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from adapt.figures import channel_heatmap, pixels

STEPS = np.array([1, 20, 40])
BITS = np.array([[6, 6, 6, 6], [6, 5, 4, 6], [6, 3, 2, 5]], np.int8)


def test_a_row_of_the_picture_is_a_channel():
    figure = channel_heatmap(STEPS, BITS, "conv1.weight")
    (mesh,) = figure.axes[0].collections
    assert np.array_equal(np.asarray(mesh.get_array()).reshape(4, 3), BITS.T)
    assert "conv1 (4.0 bits on average)" in figure.axes[0].get_title(loc="left")
    assert pixels(figure).std() > 0


def test_thousands_of_rows_and_channels_are_drawn():
    generator = np.random.default_rng(0)
    picture = pixels(channel_heatmap(np.arange(5000), generator.integers(2, 9, (5000, 600)), "w"))
    assert picture.shape[0] < 1500


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no rows yet"):
        channel_heatmap(STEPS[:0], BITS[:0], "w")


def test_tensorboard_gets_a_picture_for_each_layer(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from adapt.tensorboard import Timeline

    with SummaryWriter(tmp_path) as writer:
        timeline = Timeline(writer)
        timeline.write_channels(STEPS, {"conv1.weight": BITS, "fc.weight": BITS})
        timeline.write_channels(STEPS[:0], {"nothing": BITS[:0]})
    events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"adapt/channels/conv1.weight", "adapt/channels/fc.weight"}
    assert events.Images("adapt/channels/fc.weight")[0].step == 40
