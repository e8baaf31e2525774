"""The rooms of the package and the order in which they may import (docs/architecture.md), held for every import statement."""

import ast
from pathlib import Path

import pytest

import uxnet

ORDER = [
    "errors", "events", "geometry", "labels", "volume", "machine", "devices", "networks", "jobs", "recipe", "io", "prepare", "model",
    "draw", "evaluation", "dataset", "synthesis", "inference", "convert", "cohort", "training", "quantise", "doctor", "planning",
    "crossval", "demo", "paper", "cli",
]  # fmt: skip
"""Each room may import itself and what stands before it."""

ONLY = {"networks": {"errors", "networks"}}
"""Rooms that may import less than the order allows."""

TORCHES_OWN = (
    "networks", "devices", "training", "inference/engines/torch.py", "inference/engines/graph.py",
    "convert/foreign.py", "convert/own.py", "convert/shapes.py", "planning/memory.py", "paper/networks.py",
)  # fmt: skip
"""Rooms whose import is an import of torch: others may name them inside functions only."""

# Where each library may be imported; a trailing "()" means inside functions only.
LIBRARIES = {
    "torch": [*TORCHES_OWN, "convert()", "quantise()", "doctor()", "planning()", "crossval()", "demo()", "paper()", "cli()"],
    "monai": ["networks"],
    "lightning_fabric": ["training/engine.py"],
    "tensorboard": ["training/board.py()"],
    "matplotlib": ["draw", "paper"],
    "nibabel": ["io"],
    "tyro": ["cli"],
    "rich": ["cli"],
    "openvino": ["inference/engines/quiet.py", "inference/engines/graph.py"],
    "nncf": ["quantise()"],
    "psutil": ["machine"],
    "ray": ["jobs()"],
}

SOURCE = Path(uxnet.__file__).parent


def files():
    return sorted(p for p in SOURCE.rglob("*.py") if p not in (SOURCE / "__init__.py", SOURCE / "__main__.py"))


def called(call):
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def imports(path, root=SOURCE):
    """(module, line, inside a function) of every import statement but those that only type checkers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ("uxnet", *path.relative_to(root).parts[:-1])

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(filter(None, (base, child.module)))
                # `from uxnet import io` names a room, `from uxnet.io import atomic` a thing in one.
                names = [f"{module}.{alias.name}" for alias in child.names] if module == "uxnet" else [module]
                yield from ((name, child.lineno, inside) for name in names)
            elif isinstance(child, ast.Call) and called(child) in ("import_module", "__import__"):
                given = child.args[0]
                text = given.value if isinstance(given, ast.Constant) else None
                if isinstance(given, ast.JoinedStr) and isinstance(given.values[0], ast.Constant):
                    text = str(given.values[0].value) + "?"
                assert text, f"{path}:{child.lineno}: an import that cannot be read"
                yield text, child.lineno, inside
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return list(visit(tree, False))


def type_checking_lines(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {line for node in guarded for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def named(path):
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", files(), ids=named)
def test_a_room_imports_itself_and_the_rooms_before_it(path):
    room = room_of(path)
    assert room in ORDER, f"{room} is no room; give it a place in docs/architecture.md and here"
    allowed = ONLY.get(room) or set(ORDER[: ORDER.index(room) + 1])
    for module, line, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "uxnet" or module in ("uxnet", "uxnet.__version__"):
            continue
        assert parts[1] in allowed, f"{named(path)}:{line} imports {module}; {room} may import {sorted(allowed, key=ORDER.index)}"


@pytest.mark.parametrize("path", files(), ids=named)
def test_libraries_are_imported_in_their_rooms_only(path):
    guarded = type_checking_lines(path)
    for module, line, inside in imports(path):
        library = module.split(".")[0]
        if library not in LIBRARIES or line in guarded:
            continue
        places = [room_of(path), named(path), *([f"{room_of(path)}()", f"{named(path)}()"] if inside else [])]
        assert set(places) & set(LIBRARIES[library]), f"{named(path)}:{line} imports {module}; {library} belongs in {LIBRARIES[library]}"


@pytest.mark.parametrize("path", files(), ids=named)
def test_the_spine_loads_without_torch(path):
    """Outside torch's own rooms, what imports torch is imported inside functions."""
    if {room_of(path), named(path)} & set(TORCHES_OWN):
        return
    guarded = type_checking_lines(path)
    for module, line, inside in imports(path):
        parts = module.split(".")
        if parts[0] != "uxnet" or inside or line in guarded:
            continue
        as_file = "/".join(parts[1:]) + ".py"
        own = parts[1:2] and (parts[1] in TORCHES_OWN or as_file in TORCHES_OWN)
        assert not own, f"{named(path)}:{line} imports {module}, and so torch, when it is imported itself; do it where it is needed"


def test_the_list_of_rooms_is_true():
    assert {room_of(path) for path in files()} <= set(ORDER)
    here = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if not p.name.startswith(("_", "."))}
    assert here - {"py.typed", "recipes", "models"} == set(ORDER)


def test_the_test_sees_what_it_should(tmp_path):
    path = tmp_path / "io" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import torch.nn\nfrom . import files\nfrom .. import cli\nfrom uxnet import model\n"
        "def f():\n    from uxnet.training.run import train\n    import_module(f'uxnet.cli.{f}')\n"
    )
    assert imports(path, tmp_path) == [
        ("torch.nn", 1, False),
        ("uxnet.io", 2, False),
        ("uxnet.cli", 3, False),
        ("uxnet.model", 4, False),
        ("uxnet.training.run", 6, True),
        ("uxnet.cli.?", 7, True),
    ]
