"""Chapters as papermill sees them: names, parameters, one execution in a process of its own, its outcome.

Run as a program this file is that process: `_notebooks.py SOURCE OUT PARAMETERS_AS_JSON`.
"""

import ast
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

from _setup import ROOT, plain, say, stop, tail

BOOK = ROOT / "book"
SCALES = ("smoke", "demo", "full")


def chapters():
    """Names of the notebooks listed in book/_toc.yml, in their order."""
    names = re.findall(r"^\s*(?:- )?(?:file|root):\s*(\S+)", (BOOK / "_toc.yml").read_text(), re.MULTILINE)
    return [name for name in names if (BOOK / f"{name}.ipynb").exists()]


def nearest(word, accepted):
    """The words "did you mean ...?" where one of the accepted names resembles `word`."""
    same = [name for name in accepted if name.lower() == word.lower()]
    close = same or difflib.get_close_matches(word, accepted, 1, 0.5)
    return f" Did you mean {close[0]}?" if close else ""


def chapter(name):
    """Path of a chapter, or one sentence with the accepted names."""
    name = re.sub(r"^book/|\.ipynb$", "", name)
    if name not in chapters():
        stop(f"unknown chapter '{name}'.{nearest(name, chapters())} Accepted: {', '.join(chapters())}.", 2)
    return BOOK / f"{name}.ipynb"


def parameters(path):
    """Parameters of a chapter: name -> papermill's record of type, default and comment."""
    import papermill

    return papermill.inspect_notebook(str(path))


def kind(parameter):
    """Type of a parameter: its annotation, else the type of its default."""
    if parameter["inferred_type_name"] != "None":
        return parameter["inferred_type_name"]
    return type(ast.literal_eval(parameter["default"])).__name__


def convert(name, text, parameter):
    """`text` as the type that parameter `name` expects, or one sentence saying what is accepted."""
    wanted = kind(parameter)
    if name == "SCALE" and text not in SCALES:
        stop(f"SCALE cannot be '{text}'.{nearest(text, SCALES)} Accepted: {', '.join(SCALES)}.", 2)
    if wanted == "str":
        return text
    base, _, element = wanted.rstrip("]").partition("[")
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError):
        value = text
    if base == "float" and type(value) is int:
        value = float(value)
    elements = value if element and isinstance(value, list) else []
    if type(value).__name__ != base or any(type(item).__name__ != element for item in elements):
        stop(f"{name} expects {wanted}, such as {parameter['default']}; it cannot be '{text}'.", 2)
    return value


def check(path, pairs):
    """Values for papermill from pairs of NAME and VALUE; stops at the first that is not accepted."""
    known, values = parameters(path), {}
    for name, text in pairs:
        if name not in known:
            stop(f"unknown parameter '{name}'.{nearest(name, known)} Accepted: {', '.join(known)}.", 2)
        if name in values:
            stop(f"parameter {name} is given twice; give it once.", 2)
        values[name] = convert(name, text, known[name])
    return values


def start(path, out, values, runs, log):
    """Start executing a chapter into `out`, with `runs` as the folder of the runs that it trains."""
    return subprocess.Popen(
        [sys.executable, __file__, str(path), str(out), json.dumps(values)],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "SOFTPOLICY_RUNS": str(runs)},
        start_new_session=True,  # Ctrl-C reaches the script only, which ends this process in good order
    )


def end(process):
    """End an execution that goes on, and its kernel with it."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def read(path):
    """A notebook as plain data; None while it is missing or half written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def code_cells(notebook):
    """Code cells that hold code."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if "".join(cell["source"]).strip()]


def progress(out):
    """(cells done, cells in all) of an execution, read from the notebook that it writes."""
    cells = code_cells(read(out) or {"cells": []})
    done = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("status") == "completed"]
    return len(done), len(cells)


def errors(cell):
    """Error outputs of a cell."""
    return [output for output in cell["outputs"] if output["output_type"] == "error"]


def problem(out):
    """What is wrong with an executed notebook, in words; None if every cell ran in order without an error."""
    notebook = read(out)
    if notebook is None:
        return "no notebook came out"
    for number, cell in enumerate(code_cells(notebook), 1):
        for error in errors(cell):
            reason = (error["evalue"].strip().splitlines() or [""])[0]
            return f"cell [{cell['execution_count']}] raised {error['ename']}: {reason}"
        if cell["execution_count"] != number:
            return f"code cell {number} did not run, or not in its turn"
    return None


def joined(outputs):
    """Outputs of a cell in their order, neighbouring pieces of one stream (they come as they were flushed) as one."""
    whole = []
    for output in outputs:
        piece = {**output, "text": "".join(output["text"])} if output["output_type"] == "stream" else output
        if piece is not output and whole and whole[-1].get("name") == piece["name"]:
            piece = {**piece, "text": whole.pop()["text"] + piece["text"]}
        whole.append(piece)
    return whole


def outcome(process, out, log):
    """`problem` of an execution that ended; prints the traceback of the cell, or else the end of the log."""
    wrong = problem(out)
    if not wrong and not process.returncode:
        return None
    failed = [(cell, error) for cell in code_cells(read(out) or {"cells": []}) for error in errors(cell)]
    cell, error = failed[0] if failed else ({}, {})
    if (cell.get("id"), error.get("ename")) != ("checks", "ValueError"):  # a bad parameter: one sentence says it
        say(plain("\n".join(error["traceback"])) if failed else tail(log, 3))
    return wrong or "papermill failed after the last cell"


def end_with(parent):
    """End this process as if asked to when its parent is gone, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def main(source, out, values):
    """Execute one chapter; its kernel ends with this process."""
    import papermill

    def interrupt(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    settings = {"kernel_name": "python3", "cwd": str(BOOK), "progress_bar": False}
    papermill.execute_notebook(source, out, json.loads(values), **settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
