"""Chromium without a window, TensorBoard on loopback, and runs for them to show: for tests and docs/screenshots.py."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapt.trace import Trace

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def run_of(layers: int, rows: int = 2000) -> Trace:
    """A run like AdaPT's: words of 3 to 14 bits that move every hundred steps or so; short ones have more zeros."""
    generator = np.random.default_rng(layers)
    names = [f"layer{1 + i // 6}.{i % 6 // 2}.conv{1 + i % 2}.weight" for i in range(layers - 1)]
    trace = Trace([*names, "fc.weight"], np.geomspace(500, 500_000, layers).astype(int))
    moves = generator.random((rows, layers)) < min(0.01, 20 / rows)
    drift = np.linspace(0, -4, rows)[:, None] * generator.random(layers)
    words = 8 + np.linspace(2.5, -2.5, layers) + drift + generator.normal(0, 0.8, (rows, layers))
    held = np.maximum.accumulate(np.where(moves, np.arange(rows)[:, None], 0), axis=0)
    words = np.take_along_axis(words, held, axis=0).round().clip(3, 14).astype(int)
    trace.append(np.arange(rows), word_length=words, fraction_length=words - 2, nonzero=1 - 0.4 * np.exp(-words / 4.0))
    return trace


def get(address: str) -> dict:
    """Return the JSON at an address."""
    with urllib.request.urlopen(address, timeout=5) as response:
        return json.load(response)


def screenshot(address: str, path: Path, size: tuple[int, int], profile: Path, *flags: str, budget: int) -> None:
    """Save a page as PNG.

    Args:
        address: of the page.
        path: where to save it.
        size: width and height of the window, in pixels.
        profile: a folder for what Chromium keeps between two calls.
        flags: more flags of Chromium.
        budget: milliseconds that the page may wait for timers and the network; they pass at once where nothing happens.
    """
    command = [CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", *flags]
    command += [f"--window-size={size[0]},{size[1]}", f"--virtual-time-budget={budget}"]
    command += [f"--user-data-dir={profile}", f"--screenshot={path}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=240)


def share(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> float:
    """The share of the pixels, uint8 [height, width, 3], that have nearly this colour."""
    return float((np.abs(pixels.astype(int) - colour).max(axis=-1) <= tolerance).mean())


def has_heat_map(pixels: np.ndarray) -> bool:
    """Whether TensorBoard has drawn the heat map: the colours of long and of short words are there."""
    return all(share(pixels, colour, 30) > 0.003 for colour in ((34, 88, 165), (127, 205, 187)))


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Serve the runs in a folder on loopback, and give the address once TensorBoard has read two pictures of each."""
    runs = sum(path.is_dir() for path in folder.iterdir())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--load_fast", "false"], stdout=log, stderr=log)
    try:
        for _ in range(240):
            assert server.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                if [*map(len, get(f"{address}/data/plugin/images/tags").values())] == [2] * runs:
                    break
            time.sleep(0.5)
        else:
            raise AssertionError("TensorBoard did not read the runs within two minutes")
        yield address
    finally:
        server.terminate()
        server.wait(120)
