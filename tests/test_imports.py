"""The import table: a module imports only from its own room and from rooms to its left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "gp_virl"
# One row a line, from the ground up. A row's rooms don't see each other; the first row is one room.
GROUND = ("types", "config_fields", "config", "sharding", "places", "metrics")
ROWS = (
    GROUND,
    ("model",),
    ("text",),
    ("envs",),
    ("io",),
    ("data",),
    ("rollout",),
    ("train", "evals"),
    ("plots",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
OUTSIDE = ("launch", "configs", "tests")
DRAWS_WITHOUT = ("jax", "jaxlib", "flax", "optax", "orbax")


def imported_names(source: str) -> list[str]:
    """Dotted names of every import in `source`, wherever it stands; relative ones as "."."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.append("." * node.level)
            else:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def complaint(room: str, name: str) -> str | None:
    """Why a module of `room` may not import `name`; None if it may."""
    head, *rest = name.split(".")
    if not head:
        return "relative imports are not used here"
    if head in OUTSIDE:
        return f"the library must not import {head}"
    if room == "plots" and head in DRAWS_WITHOUT:
        return f"plots must do without {head}"
    if head != PACKAGE or not rest:
        return None
    other = rest[0]
    if other not in ROW_OF:
        return f"{other} has no row in the table; rooms are {sorted(ROW_OF)}"
    mine, theirs = ROW_OF[room], ROW_OF[other]
    if other == room or theirs < mine or (room in GROUND and other in GROUND):
        return None
    return f"{room} (row {mine}) may not import {other} (row {theirs})"


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    names = imported_names(path.read_text(encoding="utf-8"))
    room = room_of(path)
    if room == "__init__":
        assert [name for name in names if name.startswith((".", PACKAGE))] == []
        return
    assert room in ROW_OF, f"{path} stands in no room of the table {sorted(ROW_OF)}"
    broken = {name: why for name in names if (why := complaint(room, name))}
    assert not broken, f"{path.relative_to(ROOT)}: {broken}"


@pytest.mark.parametrize(
    ("room", "source", "allowed"),
    [
        ("envs", "from gp_virl.types import Answer", True),
        ("envs", "from gp_virl.envs.cards import deal", True),
        ("config", "import gp_virl.types", True),
        ("envs", "from gp_virl import rollout", False),
        ("text", "import gp_virl.envs.cards", False),
        ("train", "from gp_virl.evals.flops import sft_flops", False),
        ("model", "def f():\n    from gp_virl.train import ppo", False),
        ("train", "from launch import study", False),
        ("model", "from .layers import Dense", False),
        ("plots", "import jax.numpy as jnp", False),
        ("plots", "from gp_virl.evals.scores import wilson", True),
        ("envs", "from gp_virl.extra import thing", False),
    ],
)
def test_the_rule_itself(room: str, source: str, allowed: bool) -> None:
    complaints = [complaint(room, name) for name in imported_names(source)]
    assert (complaints == [None] * len(complaints)) is allowed


def test_plots_load_no_jax() -> None:
    modules = [f"{PACKAGE}.plots.{p.stem}" for p in (ROOT / PACKAGE / "plots").glob("[a-z]*.py")]
    assert modules
    code = f"import sys, {', '.join(modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
