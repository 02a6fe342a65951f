"""The house's rules: arrows between modules point down only, and importing the package stays light."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import adapt
from tests.processes import python

ROOT = Path(adapt.__file__).parent

# From the ground up. A room may import from the floors below.
FLOORS = (
    ("numerics", "files", "command_line", "user_warnings", "call_stack", "torch_internals"),
    ("arguments", "penalties", "kernels"),
    ("rounding", "distributed", "trace"),
    ("perfmodel", "switching", "layers", "figures"),
    ("weights", "activations", "execution", "profiling", "initialization"),
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
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


OBJECTS = {
    "_version", "_is_view", "_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_orig_mod",
    "_output_padding", "_reversed_padding_repeated_twice", "_trilinear",
}  # fmt: skip
"""Private attributes of torch's tensors, modules, optimizers and operators, all there since torch 2.6."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def torch_names(tree: ast.Module) -> set[str]:
    """The dotted names of torch's that a file imports or uses, whatever it calls them."""
    meanings = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                meanings[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            meanings |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def dotted(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return meanings.get(node.id)
        owner = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return owner and f"{owner}.{node.attr}"

    names = {*meanings.values(), *filter(None, map(dotted, ast.walk(tree)))}
    return {name for name in names if name.split(".")[0] == "torch"}


DOCUMENTED = {"_replace", "_asdict", "_fields", "_getframe"}
"""Public in spite of their names: of named tuples, and of sys."""


def own_attributes() -> set[str]:
    """The names that the package itself defines."""
    names = set()
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def test_private_names_of_torch_are_used_in_one_module_only():
    own = own_attributes()
    for name in FILES.keys() - {"adapt.torch_internals"}:
        tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
        found = {other for other in torch_names(tree) if any(map(is_private, other.split(".")))}
        assert not found, f"{name} uses {sorted(found)}: go through adapt/torch_internals.py"
        if not name.startswith("adapt.lightning."):  # Lightning has private attributes of its own
            attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            unknown = {attribute for attribute in attributes - own - OBJECTS - DOCUMENTED if is_private(attribute)}
            assert not unknown, f"{name} uses {sorted(unknown)}: go through adapt/torch_internals.py"


def test_tests_speak_through_public_faces():
    own = set(filter(is_private, own_attributes())) - OBJECTS - DOCUMENTED
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {(node.attr, node.ctx) for node in nodes if isinstance(node, ast.Attribute)}
        defined = {attribute for attribute, context in found if isinstance(context, ast.Store)}
        defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        named = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        patched = {
            node.args[1].value
            for node in nodes
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr" and len(node.args) > 1
            if isinstance(node.args[1], ast.Constant)
        }
        private = ({attribute for attribute, _ in found} | named | patched) & own - defined
        assert not private, f"{path} reaches {sorted(private)} of the package"
