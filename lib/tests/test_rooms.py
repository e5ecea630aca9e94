"""The library is built as its first docstring says."""

import ast
import graphlib
import re
from pathlib import Path

import softpolicy

ROOT = Path(softpolicy.__file__).parent
FLOOR = re.compile(r"^([a-z]+) {2,}(.*(?:\n {10}.*)*)", re.M)


def floors() -> dict[str, int]:
    """The number of the floor of each module that the docstring names; what it says of them is in parentheses."""
    lines = [re.sub(r"\([^)]*\)", "", text) for _, text in FLOOR.findall(softpolicy.__doc__)]
    names = [(name, number) for number, line in enumerate(lines) for name in re.findall(r"\w+", line)]
    assert len(dict(names)) == len(names)
    return dict(names)


def imported(path: Path) -> set[str]:
    """The library's modules that a file imports, by their last names."""
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    ours = [n for n in nodes if n.module and n.module.split(".")[0] == "softpolicy"]
    return {a.name if n.module in ("softpolicy", "softpolicy.agents") else n.module.split(".")[-1]
            for n in ours for a in n.names} - {"agents"}  # fmt: skip


def test_every_module_has_a_floor_and_imports_none_above_it():
    floor = floors()
    modules = {p.stem: imported(p) for p in ROOT.rglob("*.py") if p.stem != "__init__"}
    assert floor.keys() == modules.keys()
    for name, others in modules.items():
        assert all(floor[other] <= floor[name] for other in others), f"{name} imports {others}"
    graphlib.TopologicalSorter(modules).prepare()  # raises where they import each other in a circle


def test_agents_do_not_import_each_other():
    agents = {p.stem: imported(p) for p in (ROOT / "agents").glob("*.py")}
    pairs = {(a, b) for a, others in agents.items() for b in others & agents.keys()}
    assert pairs == {("dsact", "lsac")}
