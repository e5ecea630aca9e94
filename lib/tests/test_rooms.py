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


def room(*parts: str) -> str:
    """What the list calls a module: an agent has a name of its own, the parts of another package share one."""
    return parts[-1] if parts[0] == "agents" else parts[0]


def imported(path: Path) -> set[str]:
    """The library's modules that a file imports, as the list calls them."""
    found = set()
    for n in ast.walk(ast.parse(path.read_text())):
        if isinstance(n, ast.ImportFrom) and n.module and n.module.split(".")[0] == "softpolicy":
            parts = n.module.split(".")[1:]
            found |= {room(*parts)} if parts and parts != ["agents"] else {room(*parts, a.name) for a in n.names}
    return found - {"agents"}


def modules() -> dict[str, set[str]]:
    """What each module of the list imports."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts not in (("__init__",), ("agents", "__init__")):
            found.setdefault(room(*parts), set()).update(imported(path))
    return {name: others - {name} for name, others in found.items()}


def test_every_module_has_a_floor_and_imports_none_above_it():
    floor, found = floors(), modules()
    assert floor.keys() == found.keys()
    for name, others in found.items():
        assert all(floor[other] <= floor[name] for other in others), f"{name} imports {others}"
    graphlib.TopologicalSorter(found).prepare()  # raises where they import each other in a circle


def test_agents_do_not_import_each_other():
    agents = {p.stem: imported(p) for p in (ROOT / "agents").glob("*.py")}
    assert len(agents) > 7
    pairs = {(a, b) for a, others in agents.items() for b in others & agents.keys()}
    assert pairs == {("dsact", "lsac")}
