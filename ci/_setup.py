"""Set-up shared by the scripts of this folder: make or update .venv, then go on inside it.

Standard library only, and readable by any Python 3: an unsuitable one gets a sentence, not a syntax error.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD = ROOT / "_build"
REQUIREMENTS = ROOT / "ci" / "requirements.txt"
STAMP = VENV / "installed"
SUPPORTED = ((3, 11), (3, 12), (3, 13))
AGAIN = "Then run the same command again."
HEARTBEAT = 20  # seconds between two signs of life of a long step


def say(text):
    """One line of progress, visible at once also through a pipe."""
    print(text, flush=True)


def stop(sentence, code=1):
    """End with one sentence for the reader."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


@contextlib.contextmanager
def only_one(folder, what):
    """Hold `folder` for this process; a second one waits, and says so."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting: another process {what}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def plain(text):
    """`text` without the codes that colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def tail(log, lines=25):
    """Last lines of a log, without pip's remarks on unused locations."""
    text = plain(Path(log).read_text(errors="replace"))
    kept = [line for line in text.splitlines() if line.strip() and "is ignored: it is neither" not in line]
    return "\n".join(kept[-lines:])


def step(title, command, advice):
    """Run `command`, its output in a log; say what runs, that it lives, how long it took, why it failed."""
    log = BUILD / "logs" / (re.sub(r"\W+", "-", title.split("(")[0].strip()) + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"- {title}")
    start = beat = time.monotonic()
    with open(log, "w") as out:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, **streams)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - beat > HEARTBEAT:
                    beat = time.monotonic()
                    say(f"  ... {beat - start:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        say(tail(log))
        where = log.relative_to(ROOT)
        stop(f"the step '{title}' failed (exit status {process.returncode}, log {where}). {advice}")
    say(f"  {time.monotonic() - start:.0f} s")


def version(python):
    """Version of an interpreter as a tuple of three numbers; None if it does not run."""
    try:
        code = "import sys; print(*sys.version_info[:3])"
        answer = subprocess.check_output([str(python), "-c", code], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in answer.split())


def choose():
    """Interpreter for .venv: $PYTHON, else that of the present .venv, else the one running this script."""
    wanted = os.environ.get("PYTHON")
    if not wanted and (version(PYTHON) or ())[:2] in SUPPORTED:
        return PYTHON
    python = wanted or getattr(sys, "_base_executable", None) or sys.executable
    found = version(python)
    if found is None:
        stop(f"PYTHON={python} does not run; give the path of a Python 3.11, 3.12 or 3.13.")
    if found[:2] not in SUPPORTED:
        number = ".".join(map(str, found))
        stop(
            f"Python {number} is not supported; install Python 3.11, 3.12 or 3.13 and name it, "
            f"for example: PYTHON=python3.12 ci/{Path(sys.argv[0]).name}"
        )
    return python


def fingerprint(number):
    """What .venv depends on: the pins, the package's metadata, Python, and where the repository lies."""
    parts = REQUIREMENTS.read_text(), (ROOT / "lib" / "pyproject.toml").read_text(), number, str(ROOT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def pin(name):
    """The line of requirements.txt that pins `name`, without its marker."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.split(";")[0].strip() for line in lines if line.startswith(name + "=="))


def create(source, number):
    """A new, empty .venv in place of an unusable one."""
    if VENV.exists() and not (VENV / "pyvenv.cfg").exists():
        stop(f"{VENV} exists but is not a virtual environment; move it away and run the same command again.")
    source = Path(source).resolve() if source == PYTHON else source
    shutil.rmtree(VENV, ignore_errors=True)
    step(
        f"make .venv with Python {number[0]}.{number[1]}",
        [str(source), "-m", "venv", str(VENV)],
        f"Is Python's venv module there (Debian and Ubuntu: apt install python3-venv)? {AGAIN}",
    )


def current(number):
    """Whether the stamp of .venv says that nothing is to be done."""
    same = (version(PYTHON) or ())[:2] == number
    return same and STAMP.exists() and STAMP.read_text() == fingerprint(number)


def install():
    """Bring .venv in line with the pins."""
    source = choose()
    number = version(source)[:2]
    if current(number):  # looked at before waiting for others, so that they need not be waited for
        return
    with only_one(ROOT / "ci", "is setting up .venv"):
        if not current(number):
            fill(source, number)


def fill(source, number):
    """Install everything into .venv, which is made first where it cannot be used."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    usable = (version(PYTHON) or ())[:2] == number
    if not usable or subprocess.run([str(PYTHON), "-m", "pip", "--version"], **quiet).returncode:
        create(source, number)
    STAMP.unlink(missing_ok=True)  # from here to the end, an interruption means: install again
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    network = f"It needs a network or a package mirror, and 8 GB of free disk. {AGAIN}"
    step("install the pinned packages (2 GB or more, some minutes)", [*pip, "-r", str(REQUIREMENTS)], network)
    if number >= (3, 13):  # requirements.txt says why
        step("install dm-control without labmaze", [*pip, "--no-deps", pin("dm-control")], network)
    step("install softpolicy", [*pip, "-e", str(ROOT / "lib")], network)
    check = "import torch, mujoco, dm_control.suite, papermill, jupyter_book, matplotlib.font_manager"
    step("import what was installed", [str(PYTHON), "-c", check], f"Delete .venv. {AGAIN}")
    STAMP.write_text(fingerprint(number))


def enter():
    """Go on with this script inside .venv, made or updated first, without the caller's Python settings."""
    signal.signal(signal.SIGTERM, lambda *_: stop("stopped; run the same command again to go on.", 143))
    foreign = [name for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV") if os.environ.pop(name, None)]
    install()
    if Path(sys.prefix) != VENV or "PYTHONPATH" in foreign or "PYTHONHOME" in foreign:
        os.execv(PYTHON, [str(PYTHON), str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])
    os.environ.update(
        PYTHONNOUSERSITE="1",
        OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),  # small networks: more threads only wait
        JUPYTER_PREFER_ENV_PATH="1",  # the kernel of .venv, not the caller's
        IPYTHONDIR=str(BUILD / "ipython"),  # no start-up files of the caller
        SOFTPOLICY_DATA=str(ROOT / "data"),
    )


@contextlib.contextmanager
def guard(sentence):
    """Answer Ctrl-C with `sentence`, and a refusal of the file system in its own words: no traceback."""
    try:
        yield
    except KeyboardInterrupt:
        stop(sentence, 130)
    except OSError as error:
        stop(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
