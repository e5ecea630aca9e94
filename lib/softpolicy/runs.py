"""The run store. A run is a folder:

`rows.csv`       one row an evaluation and seed: step, seed, return, metrics; repeatable to the last digit on a CPU
`timing.csv`     step and the training seconds spent so far
`manifest.json`  settings, versions, machine, slices and status
`checkpoint.pt`  everything needed to go on; tensors and plain data only; not kept in git
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

import softpolicy

FORMAT = "softpolicy-run-1"
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "dm-control", "shimmy", "gymnasium-robotics")


class RunError(Exception):
    """A run folder that cannot be used as asked; the message is one sentence for a person."""


class Run:
    """One run's folder, held by one process at a time.

    `identity` says what makes two runs the same (agent, settings, task, seeds, protocol); a folder that holds
    another run is refused. Opening changes nothing that is there; the folder is made if need be.
    """

    def __init__(self, out, identity: dict):
        self.out, self.identity = Path(out), json.loads(json.dumps(identity))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.out / ".lock", "w")
        except OSError as e:
            raise RunError(f"the run folder {out} cannot be written ({e.strerror}); give a folder that can") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise RunError(f"another process is at work in {out}; wait until it ends, or give another folder") from None
        except OSError as e:
            self.lock.close()
            raise RunError(
                f"the run folder {out} cannot be locked ({e.strerror}); give a folder on another file system"
            ) from None
        try:
            self.manifest = self._read_manifest()
        except RunError:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes in."""
        self.lock.close()

    def _read_manifest(self) -> dict:
        if not (self.out / "manifest.json").exists():
            return {"format": FORMAT, "identity": self.identity, "status": "new", "diverged": {}, "slices": []}
        found = manifest(self.out)
        check_same(found["identity"], self.identity, self.out)
        return found

    def write_manifest(self, **changes) -> None:
        """Merge `changes` into the manifest and write it atomically."""
        self.manifest |= changes | {"updated": now()}
        write_json(self.out / "manifest.json", self.manifest)

    def append(self, name: str, rows: list[dict]) -> None:
        """Append rows to `name`, in the order of the columns that are there, flushed to disk before this returns.
        RunError if the columns are others."""
        path, columns = self.out / name, list(rows[0])
        there = []
        if path.exists() and path.stat().st_size:
            with open(path) as f:
                there = f.readline().strip().split(",")
        if there and set(there) != set(columns):
            odd = ", ".join(sorted(set(there) ^ set(columns)))
            raise RunError(f"{path} was begun by a library with other columns ({odd}); give another folder to run anew")
        text = io.StringIO()
        writer = csv.DictWriter(text, there or columns, lineterminator="\n")
        if not there:
            writer.writeheader()
        writer.writerows(rows)
        try:
            with open(path, "a") as f:
                f.write(text.getvalue())
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise not_written(path, e) from None

    def trim(self, step: int) -> None:
        """Drop rows later than `step` (they will be made again, equal) and a last line cut short."""
        for name in ("rows.csv", "timing.csv"):
            path = self.out / name
            if path.exists():
                try:
                    head, *lines = path.read_text().splitlines(keepends=True) or [""]
                    kept = [li for li in lines if li.endswith("\n") and int(li.split(",", 1)[0]) <= step]
                except (OSError, ValueError) as e:
                    raise RunError(f"{path} cannot be read ({e}); mend it, or give another folder") from None
                if head.endswith("\n"):
                    write_atomically(path, "".join([head, *kept]).encode())
                else:
                    path.unlink()

    def save_checkpoint(self, state: dict) -> None:
        """Write the checkpoint atomically: a crash at any moment leaves the old one or the new one."""
        state = {"format": FORMAT, "identity": self.identity, **state}
        write_atomically(self.out / "checkpoint.pt", lambda file: torch.save(state, file))

    def load_checkpoint(self, *kinds: str) -> dict | None:
        """`read_checkpoint` of this run."""
        return read_checkpoint(self.out, self.identity, *kinds)


def read_checkpoint(out: Path, identity: dict, *kinds: str) -> dict | None:
    """The checkpoint of the run `identity` in folder `out`, its tensors on the CPU, or None in a fresh folder. RunError
    if it is missing, unreadable, damaged or foreign, or was made on a kind of device not among `kinds` (of "cpu" and
    "cuda"; none given: any), as random streams cannot be carried over. Reading needs no lock: checkpoints are replaced
    atomically."""
    path = out / "checkpoint.pt"
    if not path.exists():
        if (out / "rows.csv").exists():
            raise RunError(
                f"{out} holds rows but no checkpoint.pt to go on from; bring the checkpoint back, or give"
                " another folder to run anew"
            )
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many types for a damaged file
        raise RunError(f"{path} {why_not_loaded(e)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path} was not written by this library ({FORMAT}); it was left as it is: give another folder")
    with of_this_version(path):
        found, device = complete(state["identity"]), state["device"]
    check_same(found, identity, path)
    if kinds and device not in kinds:
        check_same({"device": device}, {"device": kinds[0]}, path)
    return state


@contextlib.contextmanager
def of_this_version(path: Path):
    """RunError if what is taken from the checkpoint `path` in this block is not there or does not fit."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
        reason = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
        raise RunError(
            f"{path} does not fit this version of the library ({reason}); go on with the commit that the last slice in"
            " manifest.json names, or give another folder"
        ) from None


def saved(out) -> tuple[dict, dict]:
    """Identity and last checkpoint of the run in folder `out`; RunError if there is no run or no checkpoint (recorded
    runs come without)."""
    identity = manifest(out)["identity"]
    state = read_checkpoint(Path(out), identity)
    if state is None:
        raise RunError(f"{out} holds no checkpoint.pt yet; train there first")
    return identity, state


def why_not_loaded(e: Exception) -> str:
    """What an error of `torch.load` on a CPU says of a checkpoint, and what to do, in words that follow its path."""
    if isinstance(e, MemoryError) or "DefaultCPUAllocator" in str(e):
        return "does not fit into memory; free some, then start the same command again"
    if isinstance(e, OSError) and e.errno != errno.EINVAL:  # which is what seeking in a file cut short gives
        return f"could not be read ({e.strerror or e}); make it readable, then start the same command again"
    reason = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
    return (
        f"is damaged or no checkpoint ({reason}); it was left as it is: move it away together with"
        " rows.csv to run anew, or put a good copy in its place"
    )


def complete(identity: dict) -> dict:
    """An identity with what has become a setting since it was written, at the value it had before; in place."""
    identity.setdefault("n_envs", 1)
    if identity.get("agent") == "lql":
        identity.setdefault("lql.chains", 1)
    if identity.get("agent") == "s2ac":
        identity.setdefault("s2ac.start_layers", 3)
        identity.setdefault("s2ac.activation", "elu")
    return identity


def check_same(found: dict, given: dict, where) -> None:
    """RunError naming the first settings in which two identities differ."""
    differ = [k for k in sorted(found.keys() | given.keys()) if found.get(k) != given.get(k)]
    if differ:
        what = "; ".join(f"{k} is {found.get(k)!r} there and {given.get(k)!r} here" for k in differ[:3])
        raise RunError(f"{where} belongs to another run: {what}; give the same settings or another folder")


def write_atomically(path: Path, data) -> None:
    """Replace `path` in one step by `data`, bytes or what a function writes into a binary file; on failure the old file
    stays and RunError says why."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as f:
            data(f) if callable(data) else f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch raises the second kind where a checkpoint cannot be written
        tmp.unlink(missing_ok=True)
        raise not_written(path, e) from None


def not_written(path: Path, e: Exception) -> RunError:
    """Why `path` could not be written and what to do. The system's reason may stand behind an error of torch."""
    cause = e
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__
    reason = getattr(cause, "strerror", None) or str(e).splitlines()[0]
    full = getattr(cause, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "make room" if full else "mend that"
    return RunError(
        f"{path} could not be written ({reason}); {advice}, then start the same command again: what was written before"
        " is intact"
    )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV with five significant digits, atomically."""
    write_atomically(path, table.to_csv(index=False, float_format="%.5g").encode())


def write_json(path: Path, content: dict) -> None:
    """Plain data as JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def manifest(out) -> dict:
    """The manifest of a run folder; RunError if there is none or it is not ours."""
    path = Path(out) / "manifest.json"
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
        complete(found["identity"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RunError(f"{path} is not a manifest of this library ({e}); give another folder") from None
    return found


def load(*folders) -> pd.DataFrame:
    """The rows of runs as one tidy table: agent, env_id, size and every column of `rows.csv`, with
    `seconds` and `updates` (of each seed so far) joined.

    Also used on the folders below a root: `load(*find(root))`. A run that has no rows yet adds none. `seeds` is how
    many seeds the run was begun with; those that diverged have rows up to then.
    """
    tables = []
    for out in (Path(folder) for folder in folders if (Path(folder) / "rows.csv").exists()):
        identity = manifest(out)["identity"]
        rows = pd.read_csv(out / "rows.csv")
        if (out / "timing.csv").exists():
            rows = rows.merge(pd.read_csv(out / "timing.csv"), on="step", how="left")
        rows["updates"] = (rows["step"] - identity.get("warmup", 0)).clip(0) // identity["n_envs"]
        labels = {"agent": identity["agent"], "env_id": identity["env_id"], "size": identity["size"], "run": out.name,
                  "seeds": len(identity["seeds"])}  # fmt: skip
        tables.append(pd.concat([pd.DataFrame(labels, index=rows.index), rows], axis=1))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def find(root=None) -> list[Path]:
    """Every run folder below `root` (the recorded runs if none is given), sorted."""
    root = data_root() / "runs" if root is None else Path(root)
    return sorted(path.parent for path in root.rglob("manifest.json"))


def data_root() -> Path:
    """The repository's `data/`: the environment variable SOFTPOLICY_DATA, else beside the library in a checkout."""
    return Path(os.environ.get("SOFTPOLICY_DATA", Path(__file__).parents[2] / "data"))


def scratch_root() -> Path:
    """Where chapters put live runs: the environment variable SOFTPOLICY_RUNS, else `runs/` below the working folder."""
    return Path(os.environ.get("SOFTPOLICY_RUNS", "runs"))


def scratch(name: str, *settings) -> Path:
    """A folder of `scratch_root` for a live run, named by its settings too: a reader who changes one begins anew."""
    return scratch_root() / f"{name}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def provenance(device) -> dict:
    """What a slice of a run was made with: versions, commit, hash of the library, machine."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {
        "softpolicy": softpolicy.__version__,
        "commit": commit(),
        "library": library_hash(),
        "versions": versions,
        "device": machine(device),
        "threads": torch.get_num_threads(),
    }


def colophon(device) -> str:
    """`provenance` as the last lines of a page."""
    made = provenance(device)
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items() if number)
    about = f"softpolicy {made['softpolicy']}, commit {made['commit'] or 'unknown'}, library {made['library']}"
    return "\n".join([about, made["device"], *textwrap.wrap(versions, 80)])


def version(package: str) -> str:
    """The installed version of a package, `""` without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def library_hash() -> str:
    """The first 12 hex digits of a SHA-256 over the package's source."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit of the checkout that holds the library, `+changes` if it was changed, `""` outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def machine(device) -> str:
    """The accelerator's name, or the processor's with its number of cores."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def reported(name: str) -> pd.DataFrame:
    """Figures that papers and other projects report, with their sources: `data/reported/NAME.csv`."""
    return pd.read_csv(data_root() / "reported" / f"{name}.csv")
