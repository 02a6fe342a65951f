"""TensorBoard on this machine, opened in Chromium without a window: charts and pictures are drawn.

Screenshots stay in pytest's temporary folder, or in the folder that the variable SCREENSHOTS names.
"""

import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from adapt.tensorboard import Timeline
from tests import browser

RUN_COLOUR = (255, 112, 67)
"""TensorBoard's colour of the first run in the older tabs."""

pytestmark = [pytest.mark.long, pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """TensorBoard with two runs, once it has read both."""
    folder = tmp_path_factory.mktemp("runs")
    for layers in (20, 100):
        with SummaryWriter(folder / f"{layers}-layers") as writer:
            timeline = Timeline(writer)
            timeline.describe({"policy": "AdaPT", "policy.resolution": (50, 150), "rounding": "stochastic", "seed": 0})
            timeline.write(browser.run_of(layers))
    with browser.tensorboard(folder) as address:
        yield address


@pytest.fixture
def screenshot(address, tmp_path):
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path)).resolve()
    kept.mkdir(parents=True, exist_ok=True)

    def take(page: str, name: str, size: tuple[int, int], is_drawn) -> np.ndarray:
        """Return the page as pixels, uint8 [height, width, 3], once it is drawn."""
        path = kept / f"{name}.png"
        for _ in range(4):
            browser.screenshot(
                f"{address}/{page}", path, size, tmp_path / "profile", "--enable-unsafe-swiftshader", budget=60_000
            )
            pixels = np.asarray(Image.open(path).convert("RGB"))
            if is_drawn(pixels):
                break
        return pixels

    return take


@pytest.mark.parametrize("layers", [20, 100])
def test_pictures_are_drawn_in_the_cards(screenshot, layers):
    page = f"?tagFilter=adapt%2F(timeline%7Cword_length_heatmap)&runFilter={layers}-layers#timeseries"
    assert browser.has_heat_map(screenshot(page, f"tensorboard-{layers}-layers", (1400, 480), browser.has_heat_map))


def test_charts_are_drawn(screenshot):
    def is_drawn(pixels):
        return browser.share(pixels[:, 400:], RUN_COLOUR) > 0.002

    assert is_drawn(screenshot("#custom_scalars", "tensorboard-charts", (1400, 900), is_drawn))


def test_policy_and_options_are_under_hparams(address):
    body = json.dumps({"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10}).encode()
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/session_groups", body, {"Content-Type": "application/json"}
    )
    groups = browser.get(request)["sessionGroups"]
    assert len(groups) == 2
    assert all(group["hparams"]["policy"] == "AdaPT" for group in groups)
