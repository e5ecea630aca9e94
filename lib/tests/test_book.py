"""The book around the library: stored chapters, links, the two lists of packages, and what ci/run refuses."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text())
REQUIREMENTS = (ROOT / "ci" / "requirements.txt").read_text().splitlines()
LISTED = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
METADATA = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True}}
chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    """(source, tags) of the cells of one kind."""
    stored = json.loads(path.read_text())["cells"]
    found = [cell for cell in stored if cell["cell_type"] == kind]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in found]


def ci(root, *command):
    """Run a script of ci/ in a repository; returns exit status, and everything it said."""
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


# --- stored chapters


@chapters
def test_notebook_is_valid_and_without_outputs(path):
    import nbformat

    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "store chapters without outputs"
        assert "papermill" not in cell["metadata"], "this is an executed copy"


@chapters
def test_metadata_selects_a_gpu_and_the_plain_kernel(path):
    metadata = json.loads(path.read_text())["metadata"]
    assert {name: metadata.get(name) for name in METADATA} == METADATA
    assert metadata["kernelspec"]["name"] == "python3"


@chapters
def test_inspection_finds_every_parameter(path):
    tagged = [source for source, tags in cells(path) if "parameters" in tags]
    assert len(tagged) == 1, "exactly one cell carries the tag `parameters`"
    assigned = [node.target.id for node in ast.parse(tagged[0]).body if isinstance(node, ast.AnnAssign)]
    assert len(assigned) == len(ast.parse(tagged[0]).body), "only annotated assignments in this cell"
    found = papermill.inspect_notebook(str(path))
    assert list(found) == assigned, "papermill drops a line with a second `=` or an annotation with `|` or a dot"
    assert all(record["help"] for record in found.values()), "each parameter has a comment"
    assert "SCALE" in found


@chapters
def test_cells_are_portable_and_short(path):
    for source, _ in cells(path):
        assert not re.search(r"""["'](/|~/|[A-Z]:\\)\w""", source), f"absolute path in:\n{source}"
        assert "myst_nb" not in source, "Colab has no Sphinx"
        assert len(source.splitlines()) <= 45, f"{len(source.splitlines())} lines in one cell:\n{source[:200]}"
    for source, _ in cells(path, "markdown"):
        assert not re.search(r"^\s*```\{", source, re.MULTILINE), "colon fences only: Colab shows backtick ones as code"


@chapters
@pytest.mark.parametrize("missing", [True, False])
def test_first_cell_installs_the_library_where_it_is_missing_and_never_torch(path, missing, monkeypatch, tmp_path):
    importlib.import_module("torch")  # looked for before the search is faked
    (source, _), commands, find = cells(path)[0], [], importlib.util.find_spec
    assert f'REPOSITORY = "{CONFIG["repository"]["url"]}"' in source
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPOLICY_EAGER", "")  # the cell leaves one that is set alone
    absent = ["softpolicy"] if missing else []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    exec(source, {})
    if not missing:
        assert not commands
        return
    (install,) = [command for command in commands if command[1:4] == ["-m", "pip", "install"]]
    assert str(tmp_path / "sampling-soft-policies" / "lib") in install
    assert not [word for word in install if word.startswith("torch")], "torch is the reader's own"


# --- links


@pytest.mark.parametrize("name", LISTED)
def test_toc_lists_files_that_exist_once(name):
    found = [path for path in (BOOK / f"{name}.md", BOOK / f"{name}.ipynb") if path.exists()]
    assert len(found) == 1, f"{name}: {len(found)} sources"


def test_every_chapter_is_listed():
    assert {path.stem for path in CHAPTERS} <= set(LISTED)


def known_files():
    """Files that git knows or would add; every file where there is no git repository."""
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    answer = shutil.which("git") and subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if not answer or answer.returncode:
        return {str(path.relative_to(ROOT)) for path in BOOK.rglob("*")}
    return set(answer.stdout.splitlines())


def colab_link(path):
    """Address that the launch button of a chapter leads to."""
    repository = CONFIG["repository"]
    place = f"{repository['url'].removeprefix('https://github.com/')}/blob/{repository['branch']}"
    return f"{CONFIG['launch_buttons']['colab_url']}/github/{place}/{repository['path_to_book']}/{path.name}"


@chapters
def test_colab_link_leads_to_a_stored_file(path):
    assert colab_link(path).split("/blob/main/")[1] in known_files()


@chapters
def test_built_page_has_that_link(path):
    page = ROOT / "_build" / "html" / f"{path.stem}.html"
    if not page.exists():
        pytest.skip("the site is not built; ci/build makes it")
    links = set(re.findall(r'href="(https://colab\.[^"]+)"', page.read_text()))
    assert links == {colab_link(path)}


def test_built_pages_need_no_network():
    pages = sorted((ROOT / "_build" / "html").glob("*.html"))
    if not pages:
        pytest.skip("the site is not built; ci/build makes it")
    for page in pages:
        remote = re.findall(r"""(?:src|href)=["'](https?://[^"']+\.(?:js|css|woff2?))["']""", page.read_text())
        assert not remote, f"{page.name} loads {remote}"
        for image in re.findall(r"<img [^>]*>", page.read_text()):
            described = re.search(r'alt="(?!_images/)[^"]', image) or "_static/" in image
            assert described, f"{page.name}: set metadata.mystnb.image.alt on the cell that draws {image}"


def test_a_page_keeps_the_order_of_what_a_cell_printed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "ci")
    joined = importlib.import_module("_notebooks").joined
    pieces = [("stdout", "a\n"), ("stdout", ["b", "c"]), None, ("stdout", "d"), ("stderr", "e"), ("stdout", "f")]
    table = {"output_type": "display_data", "data": {}}
    outputs = [{"output_type": "stream", "name": x[0], "text": x[1]} if x else table for x in pieces]
    wanted = [("stdout", "a\nbc"), None, ("stdout", "d"), ("stderr", "e"), ("stdout", "f")]
    assert [output is not table and (output["name"], output["text"]) or None for output in joined(outputs)] == wanted
    assert outputs[0]["text"] == "a\n"


# --- the repository's address


NAMED = ["_config.yml", "README.md", "CITATION.cff", "lib/pyproject.toml", "book/index.md", "book/running.md"]
NAMED += [f"book/{path.name}" for path in CHAPTERS]


def naming(root, url):
    """Files of a repository that contain an address."""
    files = {*(root / name for name in NAMED), *root.glob("book/*.md")}
    return {str(path.relative_to(root)) for path in files if url in path.read_text()}


def test_repository_address_agrees_everywhere():
    assert naming(ROOT, CONFIG["repository"]["url"]) == set(NAMED)


@pytest.fixture
def copy(tmp_path):
    """The scripts, pages and configuration of the repository, to be changed at will."""
    for name in ("ci", "book"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lib").mkdir()
    for name in ("_config.yml", "README.md", "CITATION.cff", "lib/pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_set_repository_changes_every_address(copy):
    assert ci(copy, "ci/set-repository", "https://github.com/someone/else.git")[0] == 0
    assert naming(copy, "https://github.com/someone/else") == set(NAMED)
    assert naming(copy, CONFIG["repository"]["url"]) == set()
    clone = "git clone https://github.com/someone/else \\\n    sampling-soft-policies\ncd sampling-soft-policies\n"
    assert all(clone in (copy / page).read_text() for page in ("README.md", "book/running.md"))


@pytest.mark.parametrize("url", ["https://gitlab.com/a/b", "github.com/a/b", "https://github.com/a", "nonsense"])
def test_set_repository_refuses_other_addresses(copy, url):
    status, said = ci(copy, "ci/set-repository", url)
    assert status == 2 and "https://github.com/ORG/REPO" in said and len(said.splitlines()) == 1
    assert naming(copy, CONFIG["repository"]["url"]) == set(NAMED)


# --- packages


def pins():
    """(name, version) of every pin that applies to this Python."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in REQUIREMENTS if line and not line.startswith("#")]
    assert all(len(line.specifier) == 1 and str(line.specifier).startswith("==") for line in lines)
    return [(r.name, str(r.specifier)[2:]) for r in lines if r.marker is None or r.marker.evaluate()]


@pytest.mark.parametrize("name, version", pins())
def test_pin_is_what_is_installed(name, version):
    assert importlib.metadata.version(name).split("+")[0] == version


def test_environment_uses_the_one_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"][0] == "conda-forge"
    assert environment["dependencies"] == [
        "python=3.12",
        "pip",
        {"pip": ["-r ci/requirements.txt", "-e ./lib"]},
    ]


def test_library_does_not_ask_for_torch():
    import tomllib

    project = tomllib.loads((ROOT / "lib" / "pyproject.toml").read_text())["project"]
    assert not [line for line in project["dependencies"] if line.startswith("torch") or "==" in line]
    assert {"mujoco", "dmc", "maze", "dev"} <= project["optional-dependencies"].keys()


# --- ci/run and its siblings


@pytest.fixture(scope="session")
def run():
    """Calls ci/run of this repository, where .venv is set up."""
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / "installed").exists():
        pytest.skip("ci/run would set up .venv first; run the tests with ci/test")
    return lambda *arguments: ci(ROOT, "ci/run", *arguments)


REFUSED = [
    (["soft_polices"], "Did you mean soft_policies?"),
    (["soft_policies", "-p", "SEED", "[0]"], "Did you mean SEEDS?"),
    (["soft_policies", "-p", "SCALE", "Full"], "Did you mean full?"),
    (["soft_policies", "-p", "STEPS", "1e5"], "STEPS expects int"),
    (["soft_policies", "-p", "STEPS", "many"], "STEPS expects int"),
    (["soft_policies", "-p", "SEEDS", "3"], "SEEDS expects list"),
    (["soft_policies", "-p", "SCALE", "demo", "-p", "SCALE", "full"], "given twice"),
    (["soft_policies", "--out", "book/soft_policies.ipynb"], "must not lie in book/"),
    (["soft_policies", "--out", "result.html"], "must end in .ipynb"),
]


@pytest.mark.skipif(not CHAPTERS, reason="no chapter yet")
@pytest.mark.parametrize("arguments, words", REFUSED)
def test_run_refuses_in_one_sentence(run, arguments, words):
    status, said = run(*arguments)
    assert status == 2 and words in said and len(said.splitlines()) == 1, said


@pytest.mark.skipif(not CHAPTERS, reason="no chapter yet")
def test_run_lists_parameters(run):
    status, said = run("--help-notebook", CHAPTERS[0].stem)
    assert status == 0 and "SCALE: str" in said


def test_setup_refuses_an_unsuitable_interpreter(copy):
    (copy / "old").write_text("#!/bin/sh\necho 3 9 18\n")
    (copy / "old").chmod(0o755)
    for python, words in ((str(copy / "old"), "Python 3.9.18 is not supported"), ("nowhere", "does not run")):
        done = subprocess.run(
            [sys.executable, "ci/build"],
            cwd=copy,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": python},
        )
        assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (copy / ".venv").exists()


@pytest.mark.skipif(not CHAPTERS, reason="no chapter yet")
def test_papermill_gives_the_rows_of_a_call_from_python(run, tmp_path):
    """The third way to start a run; test_train.py compares the other two."""
    from softpolicy import settings
    from softpolicy.agents import sac
    from softpolicy.train import SCALES, train

    given = ["-p", "SCALE", "smoke", "-p", "SEEDS", "[2, 5]", "-p", "ENV_ID", "Hopper-v5"]
    command = ["soft_policies", *given, "--out", str(tmp_path / "x.ipynb")]
    status, said = run(*command)
    assert status == 0, said
    folder = ROOT / re.search(r"its runs: (\S+)", said)[1]
    (rows,) = folder.rglob("rows.csv")
    written = rows.read_text()
    shutil.rmtree(folder)
    train(settings.sized(sac.Config, "small"), "Hopper-v5", [2, 5], out=tmp_path / "python", **SCALES["smoke"])
    assert written == (tmp_path / "python" / "rows.csv").read_text()
