"""Runs that are killed, stopped, damaged, poisoned or asked for the impossible; most as real processes."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from softpolicy import agents, runs
from softpolicy import streams as rng
from softpolicy.agents import lql, lsac, nclql, sac
from softpolicy.device import captured
from softpolicy.settings import size_of, sized
from softpolicy.train import DEMO, SCALES, Loop, at_scale, train, trained

TINY = sac.Config(width=16, batch=8)
SHORT = dict(warmup=20, eval_every=30, eval_episodes=2, checkpoint_every=40)
# An LSAC whose first two fits come at updates 20 and 40.
TINY_LSAC = lsac.Config(width=16, batch=8, replicas=2, refit_every=20, n_synth=30, diffusion_width=8,
                        diffusion_blocks=1, diffusion_steps=4, sampler_steps=3)  # fmt: skip


def command(out, env_id="Hopper-v5", steps=1500, seeds=(2, 5), **more):
    settings = dict(agent="sac", env_id=env_id, steps=steps, out=out, width=16, batch=8, warmup=50, eval_every=100,
                    eval_episodes=1, checkpoint_every=130) | more  # fmt: skip
    flags = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    return [sys.executable, "-m", "softpolicy.train", "--seeds", *map(str, seeds), *flags]


def call(*args, **kw):
    return subprocess.run(command(*args, **kw), capture_output=True, text=True)


def rows_of(out):
    return (Path(out) / "rows.csv").read_text()


def until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the run made no progress"
        time.sleep(0.02)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "dm_control/cheetah-run"])
def test_killed_at_random_moments_a_run_ends_with_exactly_the_rows_of_an_uninterrupted_one(tmp_path, env_id):
    steps = 1500
    whole = call(tmp_path / "whole", env_id, steps)
    assert whole.returncode == 0, whole.stderr
    cut, g = tmp_path / "cut", np.random.default_rng()  # new random moments in every test run
    for kills in range(3):
        p = subprocess.Popen(command(cut, env_id, steps), stderr=subprocess.PIPE, text=True)
        ahead = g.integers(200, 350)  # steps past those of the last checkpoint

        def far_enough(kills=kills, ahead=ahead):
            if not (cut / "manifest.json").exists():
                return False
            m = runs.manifest(cut)
            return len(m["slices"]) > kills and m["step"] >= m["slices"][-1]["from_step"] + ahead

        until(far_enough, p)
        time.sleep(g.uniform(0, 0.2))
        p.kill()
        p.wait()
        p.stderr.close()
    last = call(cut, env_id, steps)
    assert last.returncode == 0, last.stderr
    found = runs.manifest(cut)
    resumed = [s["from_step"] for s in found["slices"]]
    assert found["status"] == "complete" and len(resumed) == 4 and resumed == sorted(set(resumed))
    assert rows_of(cut) == rows_of(tmp_path / "whole")


def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on_to_the_same_rows(tmp_path):
    assert call(tmp_path / "whole", steps=1000).returncode == 0
    p = subprocess.Popen(command(tmp_path / "cut", steps=1000), stderr=subprocess.PIPE, text=True)
    until((tmp_path / "cut/rows.csv").exists, p)
    p.terminate()
    assert p.wait() == 75
    p.stderr.close()
    stopped = runs.manifest(tmp_path / "cut")
    assert stopped["status"] == "stopped" and 100 <= stopped["step"] < 1000
    assert call(tmp_path / "cut", steps=1000).returncode == 0
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert [s["from_step"] for s in runs.manifest(tmp_path / "cut")["slices"]] == [0, stopped["step"]]


def test_time_limit_stops_with_a_checkpoint(tmp_path):
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **SHORT, max_seconds=2)
    first = runs.manifest(tmp_path)
    assert first["status"] == "stopped" and 0 < first["step"] < 10**6
    train(TINY, "Line-v0", [0], 10**6, tmp_path, **SHORT, max_seconds=1)
    assert runs.manifest(tmp_path)["step"] > first["step"]


def test_python_and_command_line_give_the_same_rows(tmp_path):
    steps = dict(warmup=50, eval_every=100, eval_episodes=1, checkpoint_every=130)
    train(TINY, "Hopper-v5", [2, 5], 300, tmp_path / "python", **steps)
    assert call(tmp_path / "shell", steps=300).returncode == 0
    assert rows_of(tmp_path / "python") == rows_of(tmp_path / "shell")


def test_a_complete_run_is_left_alone_and_can_be_extended(tmp_path):
    train(TINY, "Line-v0", [0, 1], 120, tmp_path / "long", **SHORT)
    train(TINY, "Line-v0", [0, 1], 70, tmp_path / "grown", **SHORT)
    before = (tmp_path / "grown/manifest.json").read_text()
    rows = train(TINY, "Line-v0", [0, 1], 70, tmp_path / "grown", **SHORT)
    assert (tmp_path / "grown/manifest.json").read_text() == before and set(rows["step"]) == {30, 60}
    train(TINY, "Line-v0", [0, 1], 120, tmp_path / "grown", **SHORT)
    assert rows_of(tmp_path / "grown") == rows_of(tmp_path / "long")


def test_rows_go_under_the_columns_that_are_there_in_whatever_order_they_come(tmp_path):
    run = runs.Run(tmp_path, {"agent": "sac"})
    run.append("rows.csv", [{"step": 1, "loss": 0.5, "q": 2.0}])
    run.append("rows.csv", [{"step": 2, "q": 3.0, "loss": 0.25}])
    assert pd.read_csv(tmp_path / "rows.csv").to_dict("list") == {"step": [1, 2], "loss": [0.5, 0.25], "q": [2.0, 3.0]}
    with pytest.raises(runs.RunError, match=r"other columns \(alpha, q\)"):
        run.append("rows.csv", [{"step": 3, "alpha": 3.0, "loss": 0.25}])
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 2
    run.close()


def test_a_run_made_before_a_setting_existed_goes_on_with_what_it_was(tmp_path):
    """`n_envs` and LQL's `chains` came later than the first recorded runs, which had one of each."""
    config, out = lql.Config(width=8, batch=4, langevin_steps=2), tmp_path / "old"
    for steps in (70, 120):
        train(config, "Line-v0", [0, 1], steps, out, **SHORT)
        manifest = json.loads((out / "manifest.json").read_text())
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        for place in (manifest, state):
            del place["identity"]["n_envs"], place["identity"]["lql.chains"]
        (out / "manifest.json").write_text(json.dumps(manifest))
        torch.save(state, out / "checkpoint.pt")
    train(config, "Line-v0", [0, 1], 120, tmp_path / "new", **SHORT)
    assert rows_of(out) == rows_of(tmp_path / "new")
    several = lql.Config(width=8, batch=4, langevin_steps=2, chains=2)
    with pytest.raises(runs.RunError, match="lql.chains is 1 there and 2 here"):
        train(several, "Line-v0", [0, 1], 120, out, **SHORT)


def test_several_environments_a_seed_step_together_with_one_update(tmp_path):
    """Updates, stored transitions and rows count as they should, and the run can be cut; each copy starts elsewhere."""
    kw = SHORT | dict(n_envs=5)
    rows = train(TINY, "Line-v0", [0, 1], 120, tmp_path / "long", **kw)
    assert rows.groupby("step")["updates"].first().to_dict() == {30: 2, 60: 8, 90: 14, 120: 20}
    train(TINY, "Line-v0", [0, 1], 70, tmp_path / "grown", **kw)
    train(TINY, "Line-v0", [0, 1], 120, tmp_path / "grown", **kw)
    assert rows_of(tmp_path / "grown") == rows_of(tmp_path / "long")
    state = torch.load(tmp_path / "long/checkpoint.pt", weights_only=True)
    assert state["replay"]["rows"].shape[:2] == (2, 120)
    assert {int(s["step"]) for s in state["agent"]["opts"]["critic"]["state"].values()} == {20}
    starts = state["replay"]["rows"][:, :5, 0]
    assert len(starts.unique()) == 10


def test_counts_that_environments_stepped_together_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_every 30: give multiples of n_envs"):
        train(TINY, "Line-v0", [0], 120, tmp_path, **SHORT, n_envs=4)


@pytest.mark.parametrize("agent", [lql, nclql])
@pytest.mark.filterwarnings("ignore:more than half of the coordinates")
def test_langevin_agents_run_through_the_same_loop_and_can_be_cut(tmp_path, agent):
    config = agent.Config(width=16, batch=8)
    train(config, "Line-v0", [0, 1], 120, tmp_path / "long", **SHORT)
    train(config, "Line-v0", [0, 1], 70, tmp_path / "grown", **SHORT)
    rows = train(config, "Line-v0", [0, 1], 120, tmp_path / "grown", **SHORT)
    assert rows_of(tmp_path / "grown") == rows_of(tmp_path / "long")
    assert rows["saturated"].between(0, 1).all()


def test_a_seed_trains_the_same_alone_and_among_others(tmp_path):
    """Also its episodes, replay and evaluation: rows of the first evaluations agree to rounding."""
    kw = SHORT | dict(eval_every=25)
    alone = train(TINY, "Line-v0", [3], 50, tmp_path / "a", **kw)
    among = train(TINY, "Line-v0", [1, 3, 5], 50, tmp_path / "b", **kw)
    among = among[among["seed"] == 3].reset_index(drop=True)
    for name in ("return", "train_return", "critic_loss", "q", "entropy", "alpha"):
        np.testing.assert_allclose(alone[name], among[name], rtol=1e-4, atol=1e-4)


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


def test_another_kind_of_device_is_refused(finished):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.save(state | {"device": "cuda"}, finished / "checkpoint.pt")
    with pytest.raises(runs.RunError, match="device is 'cuda' there and 'cpu' here"):
        again(finished)


def test_nan_in_evaluation_episodes_is_divergence_too(tmp_path):
    """Seed 1 falls ill only where it is evaluated for the first time, at step 30."""
    bad = rng.derive(rng.derive(1, "evaluation", 30, 0), "episode", 0)
    line = gym.make("Line-v0").unwrapped.__class__
    line.poison, line.poisoned_part = (bad,), "reward"
    rows = train(TINY, "Line-v0", [0, 1], 60, tmp_path, **SHORT)
    line.poison = ()
    assert runs.manifest(tmp_path)["diverged"] == {"1": 30} and set(rows["seed"]) == {0}


@pytest.mark.parametrize("part", ["reward", "obs"])
def test_a_seed_that_turns_nan_is_marked_and_the_others_finish_unharmed(tmp_path, poisoned_seed, part):
    clean = train(TINY, "Line-v0", [0, 1, 2], 90, tmp_path / "clean", **SHORT)
    poisoned_seed(1, part)
    rows = train(TINY, "Line-v0", [0, 1, 2], 90, tmp_path / "ill", **SHORT)
    assert runs.manifest(tmp_path / "ill")["diverged"] == {"1": 5}
    assert runs.manifest(tmp_path / "ill")["status"] == "complete"
    pd.testing.assert_frame_equal(
        rows.drop(columns=["run", "seconds"]),
        clean[clean["seed"] != 1].drop(columns=["run", "seconds"]).reset_index(drop=True),
    )


def test_nan_weights_of_one_seed_are_found_and_a_run_without_any_healthy_seed_ends(tmp_path, monkeypatch):
    loop = Loop(TINY, "Line-v0", [0, 1], 90, 1, "cpu")
    run = runs.Run(tmp_path, {"agent": "sac", "env_id": "Line-v0", "size": "-"})
    loop.open(run, 0)
    loop.agent.actor.body.layers[0].weight.data[1] = float("nan")
    loop.run(20, 30, 1000)
    assert loop.diverged == {"1": 20} and run.manifest["status"] == "complete"
    loop.agent.actor.body.layers[0].weight.data[0] = float("nan")
    loop.steps = 200
    loop.run(20, 30, 1000)
    assert loop.diverged == {"1": 20, "0": 90} and run.manifest["status"] == "diverged"
    assert loop.step == 91
    loop.close(), run.close()


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


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        (lambda data: data[: len(data) // 2], {}, "damaged or no checkpoint"),
        (foreign, {}, "was not written by this library"),
        (None, dict(gamma=0.5), "sac.gamma is 0.99 there and 0.5 here"),
        (None, dict(seeds=(2, 2)), "seeds must be distinct"),
    ],
    ids=["damaged", "foreign", "settings", "seeds"],
)
def test_the_command_line_refuses_in_one_line_and_leaves_the_folder_alone(hopper, tmp_path, spoil, changes, says):
    out = tmp_path / "run"
    shutil.copytree(hopper, out)
    if spoil:
        (out / "checkpoint.pt").write_bytes(spoil((out / "checkpoint.pt").read_bytes()))
    before = contents(out)
    p = call(out, steps=200, **changes)
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


def test_a_full_disk_is_told_and_the_last_checkpoint_survives(tmp_path):
    """A real limit on file size stands for the full disk: the growing checkpoint hits it."""
    assert call(tmp_path / "probe", steps=100).returncode == 0
    limit = int(1.5 * (tmp_path / "probe/checkpoint.pt").stat().st_size)

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "run"
    p = subprocess.run(command(out, steps=3000), capture_output=True, text=True, preexec_fn=small_disk)
    assert p.returncode == 2 and "could not be written" in p.stderr and p.stderr.count("\n") == 1
    assert 0 < torch.load(out / "checkpoint.pt", weights_only=True)["step"] < 3000
    assert not list(out.glob("*.tmp"))
    p = call(out, steps=3000)
    assert p.returncode == 0, p.stderr


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("here is a file, not a folder")
    p = call(tmp_path / "file" / "run")
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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("agent", ["sac", *DEMO])
def test_a_scale_has_time_for_an_evaluation_and_steps_given_win(scale, agent):
    steps, protocol = at_scale(scale, agent)
    first = protocol["warmup"] + protocol["eval_every"]
    assert steps >= first and at_scale(scale, agent, first) == (first, protocol)
    assert set(protocol) == {"warmup", "eval_every", "eval_episodes", "checkpoint_every"}
    assert steps % 5 == 0 and all(v % 5 == 0 for k, v in protocol.items() if k != "eval_episodes")  # five environments
    with pytest.raises(ValueError, match=f"STEPS is {protocol['warmup']}; scale {scale} needs at least"):
        at_scale(scale, agent, protocol["warmup"])
    with pytest.raises(ValueError, match="SCALE is 'huge'; accepted are smoke, demo, full"):
        at_scale("huge", agent)


def test_sizes_are_the_same_for_every_agent_and_named():
    assert size_of(sized(sac.Config, "small")) == "small" and size_of(sac.Config()) == "paper"
    assert size_of(TINY) == "width 16, batch 8"
    with pytest.raises(ValueError, match="unknown size"):
        sized(sac.Config, "huge")
    with pytest.raises(ValueError, match="unknown setting wdith of sac"):
        sized(sac.Config, "small", wdith=3)


def test_the_trained_agent_of_a_run_comes_back(tmp_path):
    with pytest.raises(runs.RunError, match="manifest"):
        trained(tmp_path)
    config = sac.Config(width=16, batch=8, init_alpha=0.3)
    train(config, "Line-v0", [4, 2], 60, tmp_path, **SHORT)
    agent, state = trained(tmp_path), torch.load(tmp_path / "checkpoint.pt", weights_only=True)["agent"]["nets"]
    assert agent.config == config
    assert all(torch.equal(value, state[name]) for name, value in agent.state_dict().items())
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(runs.RunError, match="checkpoint"):
        trained(tmp_path)


@pytest.mark.parametrize("config", [TINY, TINY_LSAC], ids=["sac", "lsac"])
def test_the_networks_of_a_run_made_on_a_gpu_can_be_had_on_a_cpu(tmp_path, config):
    """Its random streams cannot: a generator of CUDA has a state of 16 bytes."""
    train(config, "Line-v0", [0], 60, tmp_path, **SHORT)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    there, streams = state["agent"]["nets"], [torch.zeros(16, dtype=torch.uint8)]
    state["agent"]["noise"] = streams
    if "_extra_state" in there:
        there["_extra_state"]["synthetic"]["streams"] = streams
    torch.save(state | {"device": "cuda"}, tmp_path / "checkpoint.pt")
    nets = trained(tmp_path).state_dict()
    assert len(nets) == len(there)
    assert all(torch.equal(x, there[name]) for name, x in nets.items() if name != "_extra_state")


def test_a_line_cut_short_and_rows_after_the_checkpoint_are_dropped(tmp_path):
    run = runs.Run(tmp_path, {"a": 1})
    run.append("rows.csv", [{"step": 10, "return": 1.5}, {"step": 20, "return": 2.5}])
    with open(tmp_path / "rows.csv", "a") as f:
        f.write("20,3")
    run.trim(10)
    assert rows_of(tmp_path) == "step,return\n10,1.5\n"
    run.close()


def forty_updates(config, device, wrap):
    """The weights after 40 updates of two seeds, `wrap(update, loop)` being the update, and the metrics of each."""
    loop, metrics = Loop(config, "Line-v0", [0, 1], 500, 1, device), []
    rows = getattr(config, "transitions", config.batch)
    loop.update = wrap(lambda: loop.agent.update(loop.replay.sample(rows, loop.streams["sample"])), loop)
    loop.obs, _ = loop.envs.reset(seed=[0, 1])
    for _ in range(60):
        loop.advance(20)
        metrics.append({name: x.clone() for name, x in loop.metrics.items()})
    loop.close()
    return [p.detach().clone() for p in loop.agent.parameters()], metrics[20:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("agent", [module.name for module in pkgutil.iter_modules(agents.__path__)])
def test_captured_update_equals_eager_on_cuda(agent):
    """Weights and the metrics of every update; LSAC across its first fits. Capturing warns of nothing."""
    config = importlib.import_module(f"softpolicy.agents.{agent}").Config(width=64, batch=32)
    config = dataclasses.replace(TINY_LSAC, width=64, batch=32) if agent == "lsac" else config
    eager = forty_updates(config, "cuda", lambda update, loop: update)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*capturable=True")
        graph = forty_updates(config, "cuda", captured)
    torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-4)
