"""Runs that are killed, stopped by a signal or a time limit, and go on; most as real processes."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from run_checks import SHORT, TINY, call, command, rows_of, until

from softpolicy import runs
from softpolicy.train import Loop, train
from softpolicy.train.__main__ import main
from softpolicy.train.loop import stop_signals


@pytest.mark.parametrize("env_id", ["Hopper-v5", "dm_control/cheetah-run"])
def test_killed_at_random_moments_a_run_ends_with_exactly_the_rows_of_an_uninterrupted_one(tmp_path, env_id):
    """Each kill comes after a checkpoint of the slice it ends, at most some hundred steps later: while the run steps,
    evaluates, or writes."""
    steps, often = 700, dict(checkpoint_every=50)
    whole = call(tmp_path / "whole", env_id, steps, **often)
    assert whole.returncode == 0, whole.stderr
    clock = pd.read_csv(tmp_path / "whole/timing.csv").set_index("step")["seconds"]
    hundred = (clock.loc[700] - clock.loc[100]) / 6
    cut, g = tmp_path / "cut", np.random.default_rng()  # new random moments in every test run
    written = lambda: (cut / "checkpoint.pt").stat().st_mtime_ns if (cut / "checkpoint.pt").exists() else 0  # noqa: E731
    for kills in range(3):
        seen, wanted = {written()}, 2 if kills else 3  # a run begins with a checkpoint of step 0
        p = subprocess.Popen(command(cut, env_id, steps, **often), stderr=subprocess.PIPE, text=True)
        until(lambda seen=seen, wanted=wanted: len(seen | {written()}) == wanted or seen.add(written()), p)
        time.sleep(g.uniform(0, hundred))
        p.kill()
        p.wait()
        p.stderr.close()
    last = call(cut, env_id, steps, **often)
    assert last.returncode == 0, last.stderr
    found = runs.manifest(cut)
    resumed = [s["from_step"] for s in found["slices"]]
    assert found["status"] == "complete" and len(resumed) == 4 and resumed == sorted(set(resumed))
    assert rows_of(cut) == rows_of(tmp_path / "whole")


class Killed(BaseException):
    """Stands for a process that ends between two lines."""


@pytest.mark.parametrize("moment", ["before rows", "between rows and their times", "before a checkpoint is in place"])
def test_killed_while_it_writes_a_run_goes_on_to_the_same_rows(tmp_path, monkeypatch, moment):
    train(TINY, "Line-v0", [0, 3], 120, tmp_path / "whole", **SHORT)
    append, replace, left = runs.Run.append, os.replace, [2]  # the third time

    def count():
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    def killed_in_append(self, name, rows):
        if name == ("rows.csv" if moment == "before rows" else "timing.csv"):
            count()
        append(self, name, rows)

    def killed_in_replace(source, target):
        if Path(target).name == "checkpoint.pt":
            count()
        replace(source, target)

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(
            *((os, "replace", killed_in_replace) if "checkpoint" in moment else (runs.Run, "append", killed_in_append))
        )
        train(TINY, "Line-v0", [0, 3], 120, tmp_path / "cut", **SHORT)
    train(TINY, "Line-v0", [0, 3], 120, tmp_path / "cut", **SHORT)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    steps = [pd.read_csv(tmp_path / name / "timing.csv")["step"].tolist() for name in ("cut", "whole")]
    assert steps[0] == steps[1] and not (tmp_path / "cut/checkpoint.pt.tmp").exists()


def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_rows(tmp_path):
    assert call(tmp_path / "whole", steps=500).returncode == 0
    p = subprocess.Popen(command(tmp_path / "cut", steps=500), stderr=subprocess.PIPE, text=True)
    until((tmp_path / "cut/rows.csv").exists, p)
    p.terminate()
    assert p.wait() == 75
    p.stderr.close()
    stopped = runs.manifest(tmp_path / "cut")
    assert stopped["status"] == "stopped" and 100 <= stopped["step"] < 500
    assert call(tmp_path / "cut", steps=500).returncode == 0
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert [s["from_step"] for s in runs.manifest(tmp_path / "cut")["slices"]] == [0, stopped["step"]]


def test_time_limit_stops_with_a_checkpoint(tmp_path):
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **SHORT, max_seconds=2)
    first = runs.manifest(tmp_path)
    assert first["status"] == "stopped" and 0 < first["step"] < 10**6
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **SHORT, max_seconds=1)
    assert runs.manifest(tmp_path)["step"] > first["step"]


def test_a_time_limit_is_kept_where_another_round_would_pass_it(tmp_path, monkeypatch):
    """On a clock of our own. At second 85 of 95 the next checkpoint, step and evaluation would still fit, but not the
    last checkpoint after them."""
    clock = [0]

    def costing(seconds, work):
        def costly(*args):
            clock[0] += seconds
            work(*args)

        return costly

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for name, seconds in {"advance": 1, "evaluate": 5, "checkpoint": 3}.items():
        monkeypatch.setattr(Loop, name, costing(seconds, getattr(Loop, name)))
    every_step = dict(warmup=1, eval_every=1, eval_episodes=1, checkpoint_every=1)
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **every_step, max_seconds=95)
    found = runs.manifest(tmp_path)
    assert (found["status"], found["step"], found["seconds"]) == ("stopped", 10, 88)
    begun = clock[0]  # a second slice counts on, and knows what its work costs
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **every_step, max_seconds=13)
    assert 0 < clock[0] - begun <= 13 and runs.manifest(tmp_path)["seconds"] == 88 + clock[0] - begun
    clock[0], steps = 0, []
    monkeypatch.setattr(Loop, "advance", costing(200, Loop.advance))  # a stall ends its slice, and no other
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **every_step, max_seconds=95)
    monkeypatch.setattr(Loop, "advance", costing(-200, Loop.advance))
    for _ in range(2):
        steps.append(runs.manifest(tmp_path)["step"])
        train(TINY, "Line-v0", [0], 10**6, tmp_path, **every_step, max_seconds=95)
    assert np.diff([*steps, runs.manifest(tmp_path)["step"]]).min() > 5


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGTERM, None, "stopped"), (signal.SIGINT, KeyboardInterrupt, "stopped")]
)
def test_signals_stop_a_run_in_python_in_good_order_and_leave_the_old_handlers(tmp_path, number, name, status):
    before = signal.getsignal(number)

    def send():
        while not (tmp_path / "rows.csv").exists():  # by then the run listens
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(name) if name else contextlib.nullcontext():
        train(TINY, "Line-v0", [0], 10**6, tmp_path, **SHORT)
    assert signal.getsignal(number) is before
    found = runs.manifest(tmp_path)
    assert found["status"] == status
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == found["step"] > 0


def test_ctrl_c_before_the_loop_says_that_the_work_is_not_done(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def command_line(out):
        short = [f"--{k.replace('_', '-')}={v}" for k, v in (SHORT | dict(width=16, batch=8, steps=90)).items()]
        return main(["--agent", "sac", "--env-id", "Line-v0", "--seeds", "0", "--out", str(out), *short])

    train(TINY, "Line-v0", [0], 60, tmp_path / "done", **SHORT)
    with monkeypatch.context() as m:
        m.setattr("softpolicy.train.Loop", interrupt)
        assert command_line(tmp_path / "done") == command_line(tmp_path / "new") == 75
    assert "step 60 of 90" in capsys.readouterr().out
    assert command_line(tmp_path / "done") == 0


def test_sigterm_may_come_twice():
    with stop_signals() as came:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == {signal.SIGTERM}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_while_the_last_checkpoint_is_written_is_waited_out(tmp_path, monkeypatch):
    """Even if one came before it; a handler of the test's own would get those that the loop no longer catches."""
    late, checkpoint = [], Loop.checkpoint

    def interrupted(loop):
        if loop.step == 60:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        checkpoint(loop)

    monkeypatch.setattr(Loop, "checkpoint", interrupted)
    before = signal.signal(signal.SIGTERM, lambda *_: late.append(1))
    try:
        train(TINY, "Line-v0", [0], 60, tmp_path, **SHORT)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not late and runs.manifest(tmp_path)["status"] == "complete" and runs.saved(tmp_path)[1]["step"] == 60


def test_a_second_ctrl_c_ends_what_does_not_end():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background begin without one
    try:
        with pytest.raises(KeyboardInterrupt), stop_signals() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert came == {signal.SIGINT}
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_header_cut_short_leaves_no_file_that_cannot_be_read(tmp_path):
    run = runs.Run(tmp_path, {"agent": "sac", "env_id": "Line-v0", "size": "-", "n_envs": 1})
    run.write_manifest(step=0)
    (tmp_path / "rows.csv").write_text("step,se")
    run.trim(0)
    assert runs.load(tmp_path).empty
    run.close()


def test_a_line_cut_short_and_rows_after_the_checkpoint_are_dropped(tmp_path):
    run = runs.Run(tmp_path, {"a": 1})
    run.append("rows.csv", [{"step": 10, "return": 1.5}, {"step": 20, "return": 2.5}])
    with open(tmp_path / "rows.csv", "a") as f:
        f.write("20,3")
    run.trim(10)
    assert rows_of(tmp_path) == "step,return\n10,1.5\n"
    run.close()
