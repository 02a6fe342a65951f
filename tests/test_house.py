"""The house's rules: arrows between modules point down only, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adapt

ROOT = Path(adapt.__file__).parent

# From the ground up. A module may import from its own floor and from those below.
FLOORS = (
    ("precision", "blockfloat", "kernels", "hooks", "alone", "files", "checkpoint", "penalties", "pending", "ranks"),
    ("losses", "normalization", "products", "reduced_product", "straight_through"),
    ("outermost", "overrides", "activation_hooks"),
    ("initialization", "perfmodel"),
    ("rounding", "archive", "columns", "sharding"),
    ("trace", "switching", "layering", "members"),
    ("figures", "grids", "lending", "descent", "windows", "masters", "steps", "decisions"),
    ("activations", "execution", "biases", "views"),
    ("settings",),
    ("run",),
    ("controller",),
    ("attachment",),
    ("optim", "learned"),
    ("report", "tensorboard"),
    ("lightning", "cli"),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LEAVES = {"lightning", "report", "cli", "__main__"}


def module_name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The rooms of the package that a file imports from, at whatever depth of the code."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adapt":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("adapt.")}
    return rooms - {"__version__"}


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    room = module_name(path)
    assert room in FLOOR, f"give {room} a floor"
    for other in imported(path):
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other} from a floor above"
        assert other == room or other not in LEAVES or room == "__main__" or room == "cli", f"{other} is a leaf"


def test_import_is_light():
    heavy = {"lightning", "pytorch_lightning", "tensorboard", "matplotlib", "numba", "triton"}
    code = f"import sys, adapt; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
