"""What a release says of itself agrees, and what it ships is complete."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import adapt

ROOT = Path(__file__).parent.parent


def test_the_version_is_the_same_everywhere():
    citation = re.search(r"^version: (\S+)\ndate-released: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    heading = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert heading is not None
    assert citation.groups() == heading.groups()
    assert adapt.__version__ == heading[1]
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    pytest.importorskip("build")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, timeout=250)
    (wheel,) = tmp_path.glob(f"adapt_precision-{adapt.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("adapt/")}
    tracked = subprocess.run(["git", "ls-files", "adapt"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("the checkout is no git repository")
    assert shipped == set(tracked.stdout.split())
