"""TensorBoard on this machine, opened in Chromium without a window: charts and pictures are drawn.

Screenshots stay in pytest's temporary folder, or in the folder that the variable SCREENSHOTS names.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from adapt.tensorboard import Timeline
from adapt.trace import Trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--hide-scrollbars", "--enable-unsafe-swiftshader")
RUN_COLOUR = (255, 112, 67)
"""TensorBoard's colour of the first run in the older tabs."""

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


def run_of(layers: int, rows: int = 2000) -> Trace:
    """A run like AdaPT's: words of 3 to 14 bits that move every hundred steps or so; short ones have more zeros."""
    generator = np.random.default_rng(layers)
    names = [f"layer{1 + i // 6}.{i % 6 // 2}.conv{1 + i % 2}.weight" for i in range(layers - 1)]
    trace = Trace([*names, "fc.weight"], np.geomspace(500, 500_000, layers).astype(int))
    moves = generator.random((rows, layers)) < 0.01
    drift = np.linspace(0, -4, rows)[:, None] * generator.random(layers)
    words = 8 + np.linspace(2.5, -2.5, layers) + drift + generator.normal(0, 0.8, (rows, layers))
    held = np.maximum.accumulate(np.where(moves, np.arange(rows)[:, None], 0), axis=0)
    words = np.take_along_axis(words, held, axis=0).round().clip(3, 14).astype(int)
    trace.append(np.arange(rows), word_length=words, fraction_length=words - 2, nonzero=1 - 0.4 * np.exp(-words / 4.0))
    return trace


def get(address: str) -> dict:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """TensorBoard with two runs, once it has read both."""
    folder = tmp_path_factory.mktemp("runs")
    for layers in (20, 100):
        with SummaryWriter(folder / f"{layers}-layers") as writer:
            timeline = Timeline(writer)
            timeline.describe({"policy": "AdaPT", "policy.resolution": (50, 150), "rounding": "stochastic", "seed": 0})
            timeline.write(run_of(layers))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--load_fast", "false"], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                tags = get(f"{address}/data/plugin/images/tags").values()
                if [*map(len, tags)] == [2, 2]:
                    break
            except OSError:
                pass
            time.sleep(0.5)
        else:
            pytest.fail("TensorBoard did not read the runs within a minute")
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def screenshot(address, tmp_path):
    kept = Path(os.environ.get("SCREENSHOTS", tmp_path)).resolve()
    kept.mkdir(parents=True, exist_ok=True)

    def take(page: str, name: str, size: tuple[int, int], is_drawn) -> np.ndarray:
        """Return the page as pixels, uint8 [height, width, 3], once it is drawn."""
        path = kept / f"{name}.png"
        for _ in range(4):
            subprocess.run(
                [CHROMIUM, *FLAGS, f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=60000",
                 f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={path}", f"{address}/{page}"],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            pixels = np.asarray(Image.open(path).convert("RGB"))
            if is_drawn(pixels):
                break
        return pixels

    return take


def share(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> float:
    """The share of the pixels that have nearly this colour."""
    return float((np.abs(pixels.astype(int) - colour).max(axis=-1) <= tolerance).mean())


BLUE, GREEN = (34, 88, 165), (127, 205, 187)
"""Long and short words in the heat map."""


@pytest.mark.parametrize("layers", [20, 100])
def test_pictures_are_drawn_in_the_cards(screenshot, layers):
    def is_drawn(pixels):
        return share(pixels, BLUE, 30) > 0.003 and share(pixels, GREEN, 30) > 0.003

    page = f"?tagFilter=adapt%2F(timeline%7Cword_length_heatmap)&runFilter={layers}-layers#timeseries"
    assert is_drawn(screenshot(page, f"tensorboard-{layers}-layers", (1400, 480), is_drawn))


def test_charts_are_drawn(screenshot):
    def is_drawn(pixels):
        return share(pixels[:, 400:], RUN_COLOUR) > 0.002

    assert is_drawn(screenshot("#custom_scalars", "tensorboard-charts", (1400, 900), is_drawn))


def test_policy_and_options_are_under_hparams(address):
    body = json.dumps({"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10}).encode()
    request = urllib.request.Request(
        f"{address}/data/plugin/hparams/session_groups", body, {"Content-Type": "application/json"}
    )
    groups = get(request)["sessionGroups"]
    assert len(groups) == 2
    assert all(group["hparams"]["policy"] == "AdaPT" for group in groups)
