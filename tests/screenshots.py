"""The screenshots in docs/images, taken in Chromium: what a reader of the documentation sees is what the code draws.

    python -m recipes.quickstart                  # two of its runs are compared in the report
    mkdocs build --strict                         # the site, in site/
    python -m tests.screenshots                   # all pictures, or those that are named: report tensorboard site

Look at every picture before you commit it.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from adapt.report.page import as_html
from adapt.report.runs import Run, load_run
from adapt.tensorboard import Timeline
from tests import browser

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLOURS = 128
"""Colours of a picture: enough for flat areas and smooth letters, and a third of the bytes."""


def report(folder: Path, options: argparse.Namespace) -> None:
    """Two real runs side by side, on a desk and on a phone; and synthetic ones of 20 and of 100 layers."""
    real = [load_run(options.runs / name) for name in ("paper-plain", "compact-plain")]
    many, more = (Run(f"{layers}-layers", browser.run_of(layers, rows)) for layers, rows in ((20, 2000), (100, 10**5)))
    for name, runs, size, section, flags in (
        ("report", real, (1200, 1300), "", ()),
        ("report-why", real, (1200, 560), "why-layers-moved", ()),
        ("report-layers", real, (1200, 480), "layers", ()),
        ("report-phone", real, (390, 2000), "", ()),
        ("report-dark", [many], (1200, 1200), "", ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")),
        ("report-100-layers", [more], (1200, 2000), "", ()),
    ):
        html = as_html(runs)
        if section:  # alone, which the page's policy would not allow
            html = re.sub(r"<meta http-equiv[^>]*>", "", html)
            html = html.replace(
                "</head>", f"<style>section:not(#{section}), header {{ display: none; }}</style></head>"
            )
        page = folder / "page.html"
        page.write_text(html, encoding="utf-8")
        take(name, page.as_uri(), size, folder, *flags, budget=3000)


def tensorboard(folder: Path, options: argparse.Namespace) -> None:
    """The cards of synthetic runs of 20 and 100 layers."""
    logs = folder / "runs"
    for layers in (20, 100):
        with SummaryWriter(logs / f"{layers}-layers") as writer:
            Timeline(writer).write(browser.run_of(layers))
    with browser.tensorboard(logs) as address:
        for layers in (20, 100):
            page = f"?tagFilter=adapt%2F(timeline%7Cword_length_heatmap)&runFilter={layers}-layers#timeseries"
            name = f"tensorboard-{layers}-layers"
            for _ in range(8):  # on a busy machine cards may be empty yet
                path = take(
                    name, f"{address}/{page}", (1400, 480), folder, "--enable-unsafe-swiftshader", budget=60_000
                )
                picture = Image.open(path).convert("RGB")
                if browser.has_heat_map(np.asarray(picture)):
                    break
            else:
                raise RuntimeError(f"{path}: TensorBoard has drawn no heat map")
            picture.crop((284, 112, 1144, 480)).quantize(COLOURS).save(path, optimize=True)


def site(folder: Path, options: argparse.Namespace) -> None:
    """The documentation's first page."""
    take("docs", (options.site / "index.html").resolve().as_uri(), (1200, 1000), folder, budget=5000)


def take(name: str, address: str, size: tuple[int, int], folder: Path, *flags: str, budget: int) -> Path:
    """Take a screenshot, with few colours, into docs/images, and return its path."""
    path = IMAGES / f"{name}.png"
    browser.screenshot(address, path, size, folder / "profile", *flags, budget=budget)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")
    return path


def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = {"report": report, "tensorboard": tensorboard, "site": site}
    parser.add_argument("pictures", nargs="*", metavar="report|tensorboard|site", help="what to take (default: all)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/quickstart"), help="the folder of the quickstart's runs"
    )
    parser.add_argument("--site", type=Path, default=Path("site"), help="the folder of the built site")
    options = parser.parse_args()
    if unknown := sorted(set(options.pictures) - set(steps)):
        parser.error(f"there is no picture {', '.join(unknown)}: name some of {', '.join(steps)}")
    for name in options.pictures or steps:
        with tempfile.TemporaryDirectory() as folder:
            steps[name](Path(folder), options)


if __name__ == "__main__":
    main()
