"""What a run refuses, in one sentence, and that nothing already there is touched."""

import io
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from run_checks import SHORT, TINY, call, command, rows_of, until

from softpolicy import runs
from softpolicy.agents import sac
from softpolicy.train import train, trained


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    p = subprocess.Popen(command(tmp_path, steps=10**6), stderr=subprocess.PIPE, text=True)
    until((tmp_path / "checkpoint.pt").exists, p)
    second = call(tmp_path, steps=10**6)
    p.kill(), p.wait(), p.stderr.close()
    assert second.returncode == 2 and "another process is at work" in second.stderr
    assert second.stderr.count("\n") == 1


@pytest.fixture
def finished(tmp_path):
    train(TINY, "Line-v0", [0], 60, tmp_path / "run", **SHORT)
    return tmp_path / "run"


def again(out, config=TINY, **changes):
    return train(config, "Line-v0", [0], 90, out, **(SHORT | changes))


def contents(out):
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"}


def zeros_in_the_middle(data):
    return data[: len(data) // 2] + bytes(400) + data[len(data) // 2 + 400 :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d[: len(d) // 2], "damaged or no checkpoint"),
        (lambda d: b"", "damaged or no checkpoint"),
        (lambda d: b"PK not a checkpoint", "damaged or no checkpoint"),
        (zeros_in_the_middle, "damaged or no checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_kept(finished, damage, says):
    path = finished / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    before = contents(finished)
    with pytest.raises(runs.RunError, match=says):
        again(finished)
    assert contents(finished) == before


def test_a_foreign_checkpoint_is_refused(finished):
    torch.save({"weights": torch.zeros(3)}, finished / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="not written by this library"):
        again(finished)


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(finished, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as m, pytest.raises(runs.RunError, match="does not fit into memory"):
        m.setattr(torch, "load", no_memory)
        again(finished)
    (finished / "checkpoint.pt").unlink()
    (finished / "checkpoint.pt").mkdir()
    with pytest.raises(runs.RunError, match=r"could not be read \(Is a directory\)"):
        again(finished)


def test_a_checkpoint_is_loaded_on_the_cpu(finished, monkeypatch):
    """Whatever the device, so that the replay is not on a GPU twice."""
    places, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, map_location, **k: places.append(map_location) or load(*a, **k))
    again(finished)
    trained(finished)
    assert places == ["cpu", "cpu"]


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """A short run that the command line made."""
    out = tmp_path_factory.mktemp("made") / "run"
    done = call(out, steps=100)
    assert done.returncode == 0, done.stderr
    return out


def foreign(_):
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def changed(change):
    """A function of a checkpoint's bytes: those of the checkpoint with `change` made to its content."""

    def spoil(data):
        state, buffer = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
        change(state)
        torch.save(state, buffer)
        return buffer.getvalue()

    return spoil


def renamed(state):
    nets = state["agent"]["nets"]
    nets.update({f"other.{name}": nets.pop(name) for name in list(nets)})


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        (lambda data: data[: len(data) // 2], {}, "damaged or no checkpoint"),
        (foreign, {}, "was not written by this library"),
        (
            changed(lambda state: state.pop("replay")),
            {},
            "does not fit this version of the library (KeyError: 'replay')",
        ),
        (changed(lambda state: state.pop("identity")), {}, "does not fit this version"),
        (changed(renamed), {}, "does not fit this version"),
        (None, dict(gamma=0.5), "sac.gamma is 0.99 there and 0.5 here"),
        (None, dict(seeds=(2, 2)), "seeds must be distinct"),
        (None, dict(env_id="Hoper-v5"), "unknown environment 'Hoper-v5'"),
        (None, dict(steps=-5), "steps"),
        (None, dict(device="cuda:7"), "device 'cuda:7' cannot be used"),
    ],
    ids=[
        "damaged",
        "foreign",
        "no replay",
        "no identity",
        "other networks",
        "settings",
        "seeds",
        "environment",
        "steps",
        "device",
    ],
)
def test_the_command_line_refuses_in_one_line_and_leaves_the_folder_alone(hopper, tmp_path, spoil, changes, says):
    out = tmp_path / "run"
    shutil.copytree(hopper, out)
    if spoil:
        (out / "checkpoint.pt").write_bytes(spoil((out / "checkpoint.pt").read_bytes()))
    before = contents(out)
    p = call(out, **(dict(steps=200) | changes))
    assert p.returncode == 2 and says in p.stderr and p.stderr.count("\n") == 1, p.stderr
    assert contents(out) == before


def test_a_checkpoint_never_runs_code(finished, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": runs.FORMAT, "x": Evil()}, finished / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="damaged or no checkpoint"):
        again(finished)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_line_among_the_rows_is_told(finished):
    rows = rows_of(finished)
    (finished / "rows.csv").write_text(rows.replace("\n30,", "\nthirty,", 1))
    before = contents(finished)
    with pytest.raises(runs.RunError, match=r"rows.csv cannot be read .*thirty"):
        again(finished)
    assert contents(finished) == before


def test_rows_without_their_checkpoint_are_not_overwritten(finished):
    (finished / "checkpoint.pt").unlink()
    before = contents(finished)
    with pytest.raises(runs.RunError, match="no checkpoint.pt to go on from"):
        again(finished)
    assert contents(finished) == before


def test_other_settings_are_refused_by_name(finished):
    before = contents(finished)
    with pytest.raises(runs.RunError, match=r"sac.gamma is 0.99 there and 0.5 here"):
        again(finished, sac.Config(width=16, batch=8, gamma=0.5))
    with pytest.raises(runs.RunError, match=r"warmup is 20 there and 21 here"):
        again(finished, warmup=21)
    assert contents(finished) == before


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"some": "thing"}')
    with pytest.raises(runs.RunError, match="not a manifest of this library"):
        again(tmp_path)


def test_fewer_steps_than_done_of_a_stopped_run_are_refused(finished):
    m = json.loads((finished / "manifest.json").read_text())
    (finished / "manifest.json").write_text(json.dumps(m | {"status": "stopped"}))
    with pytest.raises(runs.RunError, match="already at step 60"):
        train(TINY, "Line-v0", [0], 50, finished, **SHORT)


def test_a_full_disk_is_told_and_the_last_checkpoint_survives(hopper, tmp_path):
    """A real limit on file size stands for the full disk: the growing checkpoint hits it."""
    limit = int(1.5 * (hopper / "checkpoint.pt").stat().st_size)

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "run"
    p = subprocess.run(command(out, steps=1000), capture_output=True, text=True, preexec_fn=small_disk)
    assert p.returncode == 2 and "could not be written (File too large); make room" in p.stderr
    assert p.stderr.count("\n") == 1
    assert 0 < torch.load(out / "checkpoint.pt", weights_only=True)["step"] < 1000
    assert not list(out.glob("*.tmp"))
    p = call(out, steps=1000)
    assert p.returncode == 0, p.stderr


def test_a_disk_that_is_full_when_rows_are_appended_is_told_and_half_a_row_dropped(tmp_path):
    run, row = runs.Run(tmp_path, {"a": 1}), {"step": 10, "return": 1.5}
    run.append("rows.csv", [row])
    before = rows_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 4, hard))
    try:
        with pytest.raises(runs.RunError, match=r"rows\.csv could not be written \(File too large\)"):
            run.append("rows.csv", [row | {"step": 20}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rows_of(tmp_path) == before + "20,1"
    run.trim(20)
    assert rows_of(tmp_path) == before
    run.close()


as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


@pytest.mark.parametrize(
    "make",
    [lambda place: place.write_text("a file"), pytest.param(lambda place: place.mkdir(0o500), marks=as_root)],
    ids=["file", "permission"],
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, make):
    make(tmp_path / "place")
    p = call(tmp_path / "place" / "run")
    assert p.returncode == 2 and "cannot be written" in p.stderr and p.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(env_id="Hoper-v5"), "unknown environment 'Hoper-v5'"),
        (dict(steps=-5), "steps"),
        (dict(device="cuda:7"), "device 'cuda:7' cannot be used"),
        (dict(warmup=0), "warmup must be at least 1"),
        (dict(wdith=3), "unrecognized arguments: --wdith"),
        (dict(gamma="high"), "invalid float value: 'high'"),
        (dict(gamma=1.5), "sac.gamma must lie in [0, 1], got 1.5"),
        (dict(lr="nan"), "sac.lr must lie in [0, 1], got nan"),
        (dict(learn_alpha="perhaps"), "give True or False, not 'perhaps'"),
        (dict(steps=99), "no evaluation would happen"),
        (dict(agent="sacc"), "unknown agent 'sacc'"),
        (dict(size="huge"), "invalid choice: 'huge'"),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_written(tmp_path, changes, says):
    p = call(tmp_path / "run", **changes)
    assert p.returncode == 2 and says in p.stderr and "Traceback" not in p.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seeds", [[1, 1], [], [-1]])
def test_bad_seeds_are_refused(tmp_path, seeds):
    with pytest.raises(ValueError, match="distinct non-negative"):
        train(TINY, "Line-v0", seeds, 60, tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


def test_another_kind_of_device_is_refused(finished):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.save(state | {"device": "cuda"}, finished / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="device is 'cuda' there and 'cpu' here"):
        again(finished)
