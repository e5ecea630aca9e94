"""What a run's rows say: of which episodes, of which seed, and after it was cut and went on."""

import numpy as np
import pandas as pd
import pytest
import torch
from run_checks import SHORT, TINY, rows_of

from softpolicy import envs, runs
from softpolicy import streams as rng
from softpolicy.agents import sac
from softpolicy.train import train
from softpolicy.train.loop import Loop


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_row_says_what_its_episodes_were(tmp_path, n_envs):
    """Returns and lengths by a plain loop over single environments, training returns from the replay; lr 0 and a
    policy that leaves the line, so that episodes end at different steps."""
    seeds, config = [0, 3], sac.Config(width=16, batch=8, lr=0.0)
    loop, run = Loop(config, "Line-v0", seeds, 120, 3, "cpu", n_envs), runs.Run(tmp_path, {"agent": "sac"})
    loop.open(run)
    loop.agent.actor.body.layers[-1].bias.data[..., 0] = torch.tensor([[0.5], [5.0]])  # seed 3 pushes harder
    loop.run(20, 60, 1000)
    rows, env = pd.read_csv(tmp_path / "rows.csv").set_index(["step", "seed"]), envs.make("Line-v0")
    lengths = set()
    for (step, seed), row in rows.iterrows():
        place, found = seeds.index(seed), []
        for j in range(3):
            (obs, _), rewards, over = env.reset(seed=rng.derive(seed, "evaluation", step, j)), [], False
            while not over:
                both = torch.as_tensor(obs, dtype=torch.float32).expand(2, 1, -1)
                obs, reward, terminated, truncated, _ = env.step(loop.agent.act(both)[place, 0].numpy())
                over = terminated or truncated
                rewards.append(reward)
            found.append((sum(rewards), len(rewards)))
            lengths.add(len(rewards))
        assert (row["return"], row["length"]) == pytest.approx(tuple(np.mean(found, 0)), rel=1e-5)
        ended = []
        for j in range(n_envs):
            mine = loop.replay.rows[place, j:120:n_envs]  # obs (x, clock), action, reward, next obs, terminated
            total = 0.0
            for t in range(len(mine)):
                total += mine[t, 3].item()
                if t + 1 == len(mine) or mine[t + 1, 1] == 0:
                    if t + 1 < len(mine) or mine[t, 5] == 1 or mine[t, 6] == 1:
                        ended.append(((t + 1) * n_envs, total))
                    total = 0.0
        mine = [r for at, r in ended if step - 60 < at <= step]
        assert row["train_return"] == pytest.approx(np.mean(mine), rel=1e-4)
    assert len(lengths) > 3
    loop.close(), run.close()


def test_a_seed_trains_the_same_alone_and_among_others_with_several_environments(tmp_path):
    kw = SHORT | dict(n_envs=2, warmup=10, eval_every=30)
    alone = train(TINY, "Line-v0", [3], 60, tmp_path / "a", **kw)
    among = train(TINY, "Line-v0", [1, 3, 5], 60, tmp_path / "b", **kw)
    among = among[among["seed"] == 3].reset_index(drop=True)
    for name in ("return", "train_return", "critic_loss", "q"):
        np.testing.assert_allclose(alone[name], among[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cut", [10, 60])
def test_a_run_with_a_diverged_seed_can_be_cut_in_the_warm_up_and_after_it(tmp_path, cut, poisoned_seed, monkeypatch):
    poisoned_seed(1, "reward")
    train(TINY, "Line-v0", [0, 1], 120, tmp_path / "whole", **SHORT)
    with monkeypatch.context() as m:  # the last step before the signal
        m.setattr(Loop, "out_of_time", lambda loop: loop.step == cut)
        train(TINY, "Line-v0", [0, 1], 120, tmp_path / "cut", **SHORT)
    assert runs.manifest(tmp_path / "cut")["status"] == "stopped"
    train(TINY, "Line-v0", [0, 1], 120, tmp_path / "cut", **SHORT)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert [runs.manifest(tmp_path / name)["diverged"] for name in ("cut", "whole")] == [{"1": 5}] * 2
    assert pd.read_csv(tmp_path / "cut/timing.csv")["seconds"].is_monotonic_increasing
