"""The training loop: resumed, extended, shared by seeds and environments, poisoned; and the agent that comes back."""

import dataclasses
import gc
import importlib
import json
import pkgutil
import weakref

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from run_checks import SHORT, TINY, TINY_LSAC, call, rows_of

from softpolicy import agents, runs
from softpolicy import streams as rng
from softpolicy.agents import lql, nclql, sac
from softpolicy.device import captured
from softpolicy.settings import size_of, sized
from softpolicy.train import DEMO, SCALES, Loop, at_scale, train, trained


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
    loop.open(run)
    loop.agent.actor.body.layers[0].weight.data[1] = float("nan")
    loop.run(20, 30, 1000)
    assert loop.diverged == {"1": 20} and run.manifest["status"] == "complete"
    loop.agent.actor.body.layers[0].weight.data[0] = float("nan")
    loop.steps = 200
    loop.run(20, 30, 1000)
    assert loop.diverged == {"1": 20, "0": 90} and run.manifest["status"] == "diverged"
    assert loop.step == 91
    loop.close(), run.close()


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


def test_a_run_can_be_read_while_another_process_is_at_work_in_it(tmp_path):
    train(TINY, "Line-v0", [0], 60, tmp_path, **SHORT)
    run = runs.Run(tmp_path, runs.manifest(tmp_path)["identity"])
    try:
        assert trained(tmp_path).config == TINY
    finally:
        run.close()


def test_a_closed_loop_is_gone_with_its_replay():
    loop = Loop(TINY, "Line-v0", [0], 90, 1, "cpu")
    kept = weakref.ref(loop)
    gc.disable()
    try:
        loop.close()
        del loop
        assert kept() is None
    finally:
        gc.enable()


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
    """Weights and the metrics of every update; LSAC across its first fits."""
    config = importlib.import_module(f"softpolicy.agents.{agent}").Config(width=64, batch=32)
    config = dataclasses.replace(TINY_LSAC, width=64, batch=32) if agent == "lsac" else config
    eager = forty_updates(config, "cuda", lambda update, loop: update)
    graph = forty_updates(config, "cuda", captured)
    torch.testing.assert_close(graph, eager, atol=1e-5, rtol=1e-4)
