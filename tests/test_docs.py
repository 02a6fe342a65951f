"""What the documentation says is true: the files that it names exist, and its snippets run."""

import os
import re
import runpy
from pathlib import Path

import pytest

from tests.processes import LIGHTNING, python

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:adapt|tests|recipes|benchmarks|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = sorted(target for target in targets if not (page.parent / target).exists())
    assert not missing


def test_the_rooms_on_the_architecture_page_are_those_of_the_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = page.split("```")[1]
    drawn = set(re.findall(r"(\w+)(?:/|\.py)", house)) | {"__main__"}
    there = {p.name.removesuffix(".py") for p in (ROOT / "adapt").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert drawn == there - {"__init__", "__pycache__"}


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path):
    program = tmp_path / "page.py"
    program.write_text("\n".join(snippets(page)), encoding="utf-8")
    # A process of its own, as one of them makes a process group; that one is started as torchrun would, alone.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ran = python(program, folder=tmp_path, environment={**os.environ, **alone}, imported=LIGHTNING)
    assert ran.returncode == 0, ran.stderr


def test_the_lines_for_each_host_are_run_by_a_test_of_the_clients():
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "clients").glob("test_*.py"))
    hosts = re.findall(r'^```python title="(.+?)"', page, flags=re.MULTILINE)
    assert len(hosts) >= 14
    assert not [host for host in hosts if f'"{host}"' not in tests]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", range(len(snippets(ROOT / "README.md"))))
def test_each_snippet_of_the_readme_runs_as_it_stands(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "snippet.py"
    program.write_text(snippets(ROOT / "README.md")[index], encoding="utf-8")
    runpy.run_path(str(program))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
