"""The page: what it embeds is what the trace holds, and a browser shows it as text."""

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.cli import main
from adapt.report.page import COLUMNS, as_html
from adapt.report.runs import Run, load_run
from adapt.trace import Column, Trace
from adapt.trace.widths import Widths
from tests.browser import CHROMIUM

EVIL = "</script><b>bold</b>&amp;<!--"


class Page(HTMLParser):
    """The tags of a page, and the text of each by its id or name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._within: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = dict(attrs)
        self.tags.append((tag, named))
        self._within.append(named.get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if self._within:
            self.texts[self._within[-1]] = self.texts.get(self._within[-1], "") + data

    @property
    def data(self) -> dict[str, Any]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        return json.loads(self.texts["data"], parse_constant=refuse)


def example(rows: int = 400, layers: int = 3, every: int = 50) -> Trace:
    """Word lengths that move in every so many steps, one layer after the other."""
    trace = Trace([EVIL, *(f"layers.{i}.weight" for i in range(1, layers))], [1000 * (i + 1) for i in range(layers)])
    step = np.arange(rows)[:, None]
    word = 4 + ((step + np.arange(layers) * 7) // every) % 9
    trace.append(
        np.arange(1, rows + 1),
        word_length=word,
        fraction_length=word - 6,
        nonzero=np.broadcast_to(1 - step / (2 * rows), word.shape),
        diversity=np.where(step % 2 == 0, np.inf, 1.5 + 0 * word),
        divergence=np.where(step < rows // 2, np.nan, 0.25 + 0 * word),
        strategy=np.broadcast_to(np.where(step < rows // 4, 1, 3), word.shape),
        rounding_cost=np.where(step < rows // 2, np.nan, -0.001 + 0 * word),
    )
    return trace


def embedded(*runs: Run) -> list[dict[str, Any]]:
    return Page(as_html(runs)).data["runs"]


def unpacked(text: str, layers: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(layers, -1).T.astype(int)


class TestData:
    def test_the_map_holds_every_change_of_a_format(self):
        trace = example()
        (run,) = embedded(Run("run", trace))
        assert run["map"]["complete"]
        row = np.searchsorted(run["map"]["step"], trace.step, side="right") - 1
        assert (unpacked(run["map"]["bits"], 3)[row] == trace.word_length).all()
        fraction = unpacked(run["map"]["fraction"], 3) + run["map"]["lowest_fraction"]
        assert (fraction[row] == trace.fraction_length).all()

    def test_where_formats_change_all_the_time_the_map_is_thinned_and_says_so(self):
        trace = example(rows=5000, every=3)
        (run,) = embedded(Run("run", trace))
        assert not run["map"]["complete"]
        steps = np.array(run["map"]["step"])
        assert len(steps) <= COLUMNS + 1
        assert steps[-1] == trace.step[-1]
        assert (unpacked(run["map"]["bits"], 3) == trace.word_length[steps - 1]).all()

    def test_the_page_stays_small(self):
        trace = example(rows=20_000, layers=100, every=1)
        assert len(as_html([Run("run", trace)])) < 1_000_000

    def test_curves_and_zeros(self):
        trace = example()
        (run,) = embedded(Run("run", trace, metrics={"loss": ([1.0, 9.0], [2.5, 0.5])}))
        at = np.array(run["step"]) - 1
        assert run["curves"] == {"loss": [[1, 9], [2.5, 0.5]]}
        assert run["mean"] == pytest.approx(trace.mean_word_length()[at], abs=1e-3)
        assert unpacked(run["zeros"], 3) == pytest.approx(100 * (1 - trace.nonzero[at]), abs=0.51)
        zeros = (1 - trace.nonzero[at].astype(float)) @ (trace.numel / trace.numel.sum())
        assert run["mean_zeros"] == pytest.approx(zeros, abs=1e-4)

    def test_the_latest_moves_and_their_reasons(self):
        trace = example()
        (run,) = embedded(Run("run", trace))
        moves = run["moved"][1]
        assert [move[0] for move in moves] == trace.step[trace.switches()[:, 1]].tolist()
        step, word, fraction, next_word, next_fraction, strategy, diversity, divergence, cost = moves[-1]
        row = step - 1
        assert (word, fraction) == (trace.word_length[row - 1, 1], trace.fraction_length[row - 1, 1])
        assert (next_word, next_fraction) == (trace.word_length[row, 1], trace.fraction_length[row, 1])
        assert diversity == (1.5 if row % 2 else "∞")
        assert (strategy, divergence, cost) == ("max", 0.25, -0.001)
        assert (moves[0][5], moves[0][7:]) == ("min", [None, None])  # not measured yet

    def test_the_policys_own_columns(self):
        own = {"cost": Column(np.float64, 0, np.inf, float32=0, default=0, nan=True)}
        trace = Trace(["a", "b"], [1, 2], own)
        trace.append([1, 2], word_length=[[8, 8], [7, 8]], fraction_length=4, nonzero=1.0, cost=[[1, 2], [0.5, np.nan]])
        (run,) = embedded(Run("run", trace))
        assert run["own"] == {"cost": [0.5, None]}
        assert run["moved"][0][0][-1] == 0.5

    def test_the_layers_are_those_of_the_other_formats(self):
        run = Run("run", example(), operations={EVIL: 5})
        assert embedded(run)[0]["layers"] == json.loads(json.dumps(run.figures()["layers"]))

    def test_what_made_a_run_is_flattened(self):
        made = {"policy": {"name": "AdaPT", "lookback": [25, 100]}, "rounding": "nearest", "l1": 0.5}
        (run,) = embedded(Run("run", example(), made=made))
        pairs = [["policy name", "AdaPT"], ["policy lookback", "25, 100"], ["rounding", "nearest"], ["l1", "0.5"]]
        assert run["made"] == pairs

    def test_learned_widths_are_exact(self):
        widths = Widths(["a", "a.input"], [3, 1], [5, 5, 5, 64])
        widths.append(1, [2, 3, 3, 7])
        trace = Trace(["a"], [15])
        trace.append(1, word_length=3, fraction_length=2, nonzero=1.0)
        (run,) = embedded(Run("run", trace, widths=widths))
        first, second = run["channels"]
        assert first == {"tensor": "a", "elements": 15, "mean": pytest.approx(8 / 3, abs=1e-12), "bits": [2, 3, 3]}
        assert second["bits"] == [7]
        assert run["layers"][0]["word_length_last"] == pytest.approx(8 / 3)

    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            (["runs/a", "runs/b/c"], ["a", "b/c"]),
            (["a", "b"], ["a", "b"]),
            (["runs/a"], ["runs/a"]),
            (["/x/a", "b"], ["/x/a", "b"]),
            (["a", "a"], ["a", "a"]),
        ],
    )
    def test_labels_leave_out_what_all_names_share(self, names, labels):
        assert [run["label"] for run in embedded(*(Run(name, example()) for name in names))] == labels


class TestSafety:
    def test_nothing_from_a_run_becomes_html(self):
        run = Run(EVIL, example(), made={EVIL: EVIL}, formats={EVIL: EVIL}, phases=[{"phase": EVIL}])
        clean, page = Page(as_html([Run("run", example(rows=1, layers=2))])), Page(as_html([run]))
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]
        assert page.data["runs"][0]["run"] == EVIL
        assert page.data["runs"][0]["layers"][0]["layer"] == EVIL

    def test_infinite_and_missing_values_are_json(self):
        metrics = {"loss": ([1.0, 2.0], [np.inf, np.nan])}
        (run,) = embedded(Run("run", example(), made={"nan": float("nan")}, metrics=metrics))
        assert run["curves"]["loss"] == [[1, 2], [None, None]]

    def test_it_fetches_nothing(self):
        html = as_html([Run("run", example())])
        page = Page(html)
        assert not [attrs for _, attrs in page.tags if {"src", "href", "srcset", "action"} & attrs.keys()]
        assert not re.search(r"url\(|@import|fetch\(|XMLHttp", html)
        policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
        assert policy.startswith("default-src 'none'; ")
        for name in ("style", "script"):
            (text,) = re.findall(rf"<{name}>(.*?)</{name}>", html, flags=re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{name}-src 'sha256-{digest}'" in policy


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        example().save(tmp_path / "trace.npz")
        return tmp_path

    def test_writes_one_page(self, folder, capsys):
        path = folder / "report.html"
        assert main(["report", str(folder), str(folder / "trace.npz"), "--html", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}: {path.stat().st_size:,} bytes\n"
        assert len(Page(path.read_text(encoding="utf-8")).data["runs"]) == 2

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            (["--html", "{}/trace.npz"], "a file that ends in .html, got"),
            (["--html", "{}/a.html", "--format", "json"], "neither --format nor --pictures"),
            (["--html", "{}/a.html", "--pictures", "{}"], "neither --format nor --pictures"),
            (["--html", "{}/none/a.html"], "create the folder of a.html first"),
            (["{}/none.npz", "--html", "{}/a.html"], "No such file"),
        ],
    )
    def test_refuses(self, folder, more, reason, capsys):
        before = (folder / "trace.npz").read_bytes()
        assert main(["report", str(folder), *(word.format(folder) for word in more)]) == 1
        assert reason in capsys.readouterr().err
        assert (folder / "trace.npz").read_bytes() == before
        assert not (folder / "a.html").exists()

    def test_the_bytes_of_a_packed_file(self, folder):
        (folder / "old.safetensors").write_bytes(b"damaged")

        def read(path: Path) -> dict[str, tuple[str, int]]:
            if path.name != "network.safetensors":
                raise ValueError("damaged")
            return {"layers.1.weight": ("zstd", 77), EVIL: ("bits", 5), "layers.2.weight": ("bits", 8)}

        assert load_run(folder, read).packed_file == ""
        (folder / "network.safetensors").write_bytes(b"")
        (run,) = embedded(load_run(folder, read))
        assert run["packed_file"] == "network.safetensors"
        assert [row["packed_bytes"] for row in run["layers"]] == [5, 77, 8]
        assert run["totals"]["packed_bytes"] == 90
        assert "packed_bytes" not in load_run(folder).figures()["totals"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
class TestBrowser:
    def shown(self, folder: Path, html: str, act: str = "") -> Page:
        """What Chromium makes of a page, after a script has acted on it."""
        if act:  # which the page's policy would not allow
            html = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"<script>{act}</script></body>")
        (folder / "page.html").write_text(html, encoding="utf-8")
        command = [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"),
            *("--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/page.html"),
        ]
        shown = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
        return Page(shown.stdout)

    def test_everything_is_drawn_and_nothing_is_markup(self, tmp_path):
        widths = Widths([EVIL], [2], [500, 500])
        widths.append(1, [2, 3])
        run = Run(
            EVIL,
            example(),
            made={"policy": EVIL, "seed": 0},
            operations={EVIL: 5, "layers.1.weight": 7, "layers.2.weight": 1},
            widths=widths,
            phases=[{"phase": EVIL, "steps": 3.0}],
            formats={f"{EVIL}.input": "⟨8, 4⟩"},
            metrics={"accuracy": ([1.0, 2.0], [0.5, 0.75])},
        )
        page = self.shown(tmp_path, as_html([run, Run("other", example(rows=1, layers=2), made={"seed": 0})]))
        tags = [tag for tag, _ in page.tags]
        assert "b" not in tags
        assert tags.count("canvas") == 2
        heads = page.texts["h2"]
        for head in ("Why layers moved", "Modelled cost", "Learned widths", "Phases", "Activations", "Layers"):
            assert head in heads
        assert EVIL in page.texts["title"]
        assert "accuracy" in page.texts["figcaption"]
        assert "1 setting that the runs share" in page.texts["summary"]

    def test_the_table_sorts_and_the_map_answers_to_keys(self, tmp_path):
        act = """
const table = document.querySelector("table.layers");
const layers = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent).join(" ");
const head = [...table.querySelectorAll("thead button")].find((button) => button.textContent === "weights");
const found = [layers()];
head.click(); found.push(layers());
head.click(); found.push(layers(), head.parentElement.getAttribute("aria-sort"));
const map = document.querySelector("canvas");
const press = (key) => map.dispatchEvent(new KeyboardEvent("keydown", { key }));
press("ArrowDown"); press("ArrowLeft");
found.push(document.querySelector("output").textContent);
press("Enter");
found.push(document.querySelector("select").value);
document.body.append(Object.assign(document.createElement("pre"), { id: "found", textContent: JSON.stringify(found) }));
"""
        trace = Trace(["b", "a"], [10, 2000])
        trace.append([1, 2, 3], word_length=[[8, 8], [8, 8], [8, 6]], fraction_length=4, nonzero=1.0)
        page = self.shown(tmp_path, as_html([Run("run", trace)]), act)
        found = json.loads(page.texts["found"])
        assert found[:4] == ["10 2,000", "10 2,000", "2,000 10", "descending"]
        assert found[4:] == ["a · from step 1 · ⟨8, 4⟩", "0/1"]
