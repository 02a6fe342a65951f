"""The house's rules: arrows between modules point down only, and importing the package stays light."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import adapt

ROOT = Path(adapt.__file__).parent

# From the ground up. A room may import from the floors below.
FLOORS = (
    ("numerics", "files", "factories", "user_warnings", "call_stack"),
    ("arguments", "penalties", "kernels"),
    ("rounding", "distributed", "initialization", "trace"),
    ("perfmodel", "switching", "layers", "figures"),
    ("weights", "activations", "execution", "profiling"),
    ("engine",),
    ("adaptive", "learned"),
    ("report", "tensorboard", "export"),
    ("lightning", "integrations", "cli", "testing", "recorder"),
    ("__main__",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LEAVES = {"lightning", "integrations", "report", "cli", "testing", "recorder", "__main__"}
LONGEST_CHAIN = 9


def module_name(path: Path) -> str:
    return ".".join(("adapt", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, at whatever depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adapt":
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in FILES else node.module for name in inside}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("adapt.")}
    return names - {"adapt"}


@pytest.mark.parametrize("name", FILES)
def test_arrows_point_down(name):
    room = name.split(".")[1]
    assert room in FLOOR, f"give {room} a floor"
    for other in {module.split(".")[1] for module in imported(FILES[name])} - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}, which is not on a floor below"
        assert other not in LEAVES or room in ("__main__", "cli", "recorder"), f"{other} is a leaf"


def test_no_modules_import_each_other_in_a_circle():
    order = graphlib.TopologicalSorter({name: imported(path) for name, path in FILES.items()})
    assert len(list(order.static_order())) >= len(FILES)


def test_the_longest_chain_of_rooms_is_short():
    rooms = {name.split(".")[1]: set() for name in FILES}
    for name, path in FILES.items():
        rooms[name.split(".")[1]] |= {module.split(".")[1] for module in imported(path)} - {name.split(".")[1]}

    @functools.cache
    def chain(room):
        return max(((room, *chain(other)) for other in rooms[room]), key=len, default=(room,))

    longest = max(map(chain, rooms), key=len)
    assert len(longest) <= LONGEST_CHAIN, " → ".join(longest)


def test_import_is_light():
    heavy = {"lightning", "pytorch_lightning", "tensorboard", "matplotlib", "numba", "triton"}
    code = f"import sys, adapt; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
