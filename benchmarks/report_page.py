"""How long a browser takes to open the report of a long run: `python -m benchmarks.report_page`.

Needs Chromium. Both wall time and the processor time of the page's main thread are printed, because only the latter
means something on a busy machine.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp  # comes with Lightning

from adapt.report.page import as_html
from adapt.report.runs import Run
from tests.browser import CHROMIUM, run_of

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1200,900")
PAINTS = 'JSON.stringify(performance.getEntriesByType("paint").map(({name, startTime}) => [name, startTime]))'
LOADED = (
    "JSON.stringify((({domContentLoadedEventEnd, loadEventEnd}) => ({domContentLoadedEventEnd, loadEventEnd}))"
    '(performance.getEntriesByType("navigation")[0]))'
)


async def opened(page: Path, folder: Path) -> dict[str, float]:
    """Open the page in a fresh Chromium, and return times in milliseconds from the start of the navigation."""
    profile = Path(tempfile.mkdtemp(dir=folder))
    browser = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        port_file = profile / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                target = next(tab for tab in await response.json(content_type=None) if tab["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                return await _measured(socket, page)
    finally:
        browser.terminate()
        await browser.wait()


async def _measured(socket: aiohttp.ClientWebSocketResponse, page: Path) -> dict[str, float]:
    sent = 0

    async def ask(method: str, **parameters: Any) -> dict[str, Any]:
        nonlocal sent
        sent += 1
        await socket.send_json({"id": sent, "method": method, "params": parameters})
        while (message := await socket.receive_json()).get("id") != sent:
            pass
        return message["result"]

    await ask("Page.enable")
    await ask("Performance.enable", timeDomain="threadTicks")
    await ask("Page.navigate", url=page.as_uri())
    painted: dict[str, float] = {}
    while "first-contentful-paint" not in painted:
        await asyncio.sleep(0.2)
        painted = dict(json.loads((await ask("Runtime.evaluate", expression=PAINTS))["result"]["value"]))
    loaded = json.loads((await ask("Runtime.evaluate", expression=LOADED))["result"]["value"])
    metrics = {metric["name"]: metric["value"] for metric in (await ask("Performance.getMetrics"))["metrics"]}
    return {
        "DOMContentLoaded": loaded["domContentLoadedEventEnd"],
        "load": loaded["loadEventEnd"],
        "first contentful paint": painted["first-contentful-paint"],
        "main thread, processor time": 1000 * metrics["TaskDuration"],
        "of it scripts": 1000 * metrics["ScriptDuration"],
    }


def main() -> None:
    """Make the page and open it some times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1, help="runs side by side")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    runs = [Run(f"run {index}", run_of(options.layers, options.steps)) for index in range(options.runs)]
    start = time.process_time()
    html = as_html(runs)
    print(f"{options.runs} × {options.layers} layers × {options.steps:,} steps: {len(html):,} bytes,", end=" ")
    print(f"made in {time.process_time() - start:.1f} s of processor time")
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page.html"
        page.write_text(html, encoding="utf-8")
        found = [asyncio.run(opened(page, Path(name))) for _ in range(options.repeat)]
    for figure in found[0]:
        values = [times[figure] for times in found]
        print(f"{figure}: {median(values):,.0f} ms, median of {len(values)} (at best {min(values):,.0f})")


if __name__ == "__main__":
    main()
