"""The rules of the house: who imports whom, what is imported late, what libraries do not do, and shapes."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

from sam2_jax.ops.dense import dense

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sam2_jax", "checkpoints_convert")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BASE = {"structs", "config", "experiment", "files", "outputs", "module_like"}
AROUND = {"data", "parallel", "checkpoint"}
MODEL = {"ops", "model", "track"}
# What each part of sam2_jax may import of the house, itself apart; None = anything.
ALLOWED = {
    "structs": BASE,
    "config": BASE,
    "experiment": BASE | {"data"},
    "files": set(),
    "outputs": set(),
    "module_like": set(),
    "hydra": {"config"},
    "data": BASE | AROUND,
    "parallel": BASE | AROUND,
    "bench": BASE | AROUND | {"ops", "model", "track", "build", "predict"},
    "checkpoint": BASE | {"model"},
    "ops": {"structs"},
    "model": BASE | {"ops"},
    "track": BASE | {"ops", "model"},
    "predict": BASE | AROUND | MODEL | {"build"},
    "evaluate": BASE | AROUND | MODEL | {"build", "predict"},
    "train": BASE | AROUND | MODEL | {"train.preflight"},
    "train.loop": BASE | AROUND | MODEL | {"evaluate", "train.preflight"},
    "train.preflight": BASE | AROUND | MODEL | {"evaluate"},
    "serve": BASE | AROUND | {"predict", "__init__"},
    "build": BASE | AROUND | {"model", "track", "predict", "hydra"},
    # The original's names for what is above, which programs import.
    **dict.fromkeys(
        (
            "build_sam",
            "sam2_image_predictor",
            "sam2_video_predictor",
            "sam2_camera_predictor",
            "automatic_mask_generator",
            "utils",
            "as_sam2",
        ),
        BASE | AROUND | {"build", "predict", "utils"},
    ),
    "checkpoints_convert": {"config", "checkpoint", "commands"},  # a command itself
    # The command line and what is only reached from it.
    "__init__": None,
    "__main__": None,
    "cli": None,
    "commands": None,
}

PRINTING = {"cli", "commands", "__main__", "checkpoints_convert"}
HEAVY = {"av", "grain", "tensorflow_datasets", "ml_collections", "pycocotools", "orbax"}
NOTHING_TO_RETURN = {"__init__", "__post_init__"}
NEVER = {"torch", "torchvision", "tensorflow"}
MAY_IMPORT_TORCH = {"sam2_jax.bench.pytorch", "sam2_jax.outputs"}  # late


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The name under which a module of the house stands in ALLOWED."""
    package, *rest = module.split(".")
    if package != "sam2_jax":
        return package
    if not rest:
        return "__init__"
    return ".".join(rest) if ".".join(rest) in ALLOWED else rest[0]


def imported_modules(node: ast.stmt, package: str) -> list[str]:
    """Full names that an import statement may bind, submodules included."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements under `node` that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not is_type_checking(child):
            yield child
            yield from run_at_import(child)


def imports_of(path: Path, at_import: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = module_name(path)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    nodes = run_at_import(tree) if at_import else ast.walk(tree)
    return {name for node in nodes for name in imported_modules(node, package)}


def in_the_house(names: set[str]) -> set[str]:
    """Cuts imported names down to modules that exist here."""
    modules = {module_name(path) for path in FILES}
    found = {name if name in modules else name.rpartition(".")[0] for name in names}
    return found & modules


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_layers(path):
    part = part_of(module_name(path))
    assert part in ALLOWED, f"{path.relative_to(ROOT)} is in no layer: give it one in ALLOWED"
    allowed = ALLOWED[part]
    if allowed is None:
        return
    own = {part, part.partition(".")[0]}
    used = {part_of(name) for name in in_the_house(imports_of(path, at_import=False))}
    assert used - own <= allowed, f"{part} may not import {sorted(used - own - allowed)}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_are_imported_late(path):
    roots = {name.partition(".")[0] for name in imports_of(path, at_import=True)}
    assert not roots & (HEAVY | NEVER)
    if module_name(path) not in MAY_IMPORT_TORCH:
        assert not {name.partition(".")[0] for name in imports_of(path, at_import=False)} & NEVER


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other, by following every edge."""

    def reached(start: str) -> set[str]:
        seen, rest = set(), [start]
        while rest:
            for target in graph[rest.pop()] - seen:
                seen.add(target)
                rest.append(target)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(t for t in reach[name] if name in reach[t]) for name in graph}
    return [set(group) for group in groups if group]


def test_no_cycles():
    """Imports inside functions and for type checkers count."""
    graph = {module_name(p): in_the_house(imports_of(p, at_import=False)) for p in FILES}
    for name, targets in graph.items():
        # A package's __init__ re-exports its modules, and they may name the package they are in.
        graph[name] = {t for t in targets if t != name and not name.startswith(f"{t}.")}
    circles = [
        sorted(f"{name} -> {target}" for name in group for target in graph[name] & group)
        for group in strongly_connected(graph)
    ]
    assert not circles, f"modules import each other in circles: {circles}"


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert strongly_connected(graph) == [{"b", "c"}]


@pytest.mark.parametrize("path", [p for p in FILES if p.stem == "__init__"], ids=module_name)
def test_init_files_only_re_export(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        is_dunder = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
            "__all__",
            "__version__",
        )
        assert is_text or is_import or is_dunder, f"line {node.lineno} does more than re-export"


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of a module and methods of its classes, those that start with one underscore apart."""
    for node in ast.iter_child_nodes(tree):
        is_public = not re.match("_(?!_)", getattr(node, "name", ""))
        if isinstance(node, ast.ClassDef) and is_public:
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public:
            yield node


def missing_annotations(tree: ast.AST) -> list[str]:
    missing = []
    for function in public_functions(tree):
        a = function.args
        arguments = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
        names = [argument.arg for argument in arguments if argument and not argument.annotation]
        names += ["return"] * (function.returns is None and function.name not in NOTHING_TO_RETURN)
        missing += [f"{function.name}: {name}" for name in names if name not in ("self", "cls")]
    return missing


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_functions_are_annotated(path):
    assert not missing_annotations(ast.parse(path.read_text(encoding="utf-8")))


def test_missing_annotations_are_found():
    code = (
        "class A:\n  def f(self, x, *y: int, z): ...\n  def _g(self, x): ...\ndef f(x) -> int: ..."
    )
    assert missing_annotations(ast.parse(code)) == ["f: x", "f: z", "f: return", "f: x"]


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if part_of(module_name(p)) not in PRINTING],
    ids=module_name,
)
def test_libraries_do_not_print(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [f"line {c.lineno}" for c in calls if ast.unparse(c.func) == "print"]


def test_importing_touches_no_device():
    """With a platform that does not exist, the first use of a device is an error."""
    modules = [module_name(path) for path in FILES if path.stem != "__main__"]
    code = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)"
    environment = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "kernel", [jnp.zeros((2, 4)), jnp.zeros((3, 4, 1)), jnp.zeros((3, 4), int)]
)
def test_annotated_shapes_and_types_are_checked(kernel):
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'kernel'"):
        dense(jnp.zeros((5, 3)), kernel)
