"""LSAC's whole update: synthetic data, refinement, what is written back, and that runs go on exactly."""

import contextlib
import copy
import math
import warnings

import numpy as np
import pytest
import torch
from agent_checks import random_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from softpolicy import agents, diffusion, nets
from softpolicy import streams as rng
from softpolicy.agents import lsac
from softpolicy.optim import AdaptiveLangevin, follow
from softpolicy.replay import Batch, Replay
from softpolicy.train import train

N_OBS, N_ACT = 5, 2


def replay_of(seeds, rows=40):
    """A replay of random transitions, each seed's slice depending on the seed alone."""
    filled = Replay(100, len(seeds), N_OBS, N_ACT)
    for batch in random_batches(seeds, 1, rows, N_OBS, N_ACT):
        filled.add(*(x if x.dim() == 3 else x[..., None] for x in batch))
    return filled


def agent(seeds=(0,), **changes):
    given_ = dict(width=16, batch=8, replicas=3, diffusion_width=8, diffusion_blocks=1, diffusion_steps=4)
    given_ |= dict(refit_every=1, n_synth=30, sampler_steps=4, synthetic_capacity=200) | changes
    return lsac.Config(**given_).build(N_OBS, N_ACT, list(seeds))


def steps(built, replay, count, seeds=(0,)):
    """`count` updates with the agent's own schedule; the last metrics."""
    for batch in random_batches(seeds, count, built.config.transitions, N_OBS, N_ACT):
        built.prepare(replay)
        info = built.update(batch)
    return info


def real(built, seeds=(0,)):
    """A real batch as every replica sees it, `[S, n, B, ...]`."""
    shape = (built.config.replicas, built.config.batch)
    return Batch(*(x.unflatten(1, shape) for x in random_batches(seeds, 1, built.config.transitions, N_OBS, N_ACT)[0]))


def test_ascent_follows_the_gradient_of_the_smaller_twin():
    """The gradient is that of finite differences, in float64, and no critic's gradient is touched."""
    built = agent().double()
    obs, action = torch.randn(1, 3, 8, N_OBS).double(), 0.5 * torch.rand(1, 3, 8, N_ACT).double()
    moved = lsac.ascend(built.critic, obs, action, "ascent", 1e-3)
    value = lambda a: built.critic(obs, a)[0].amin(2)  # noqa: E731
    for k in range(N_ACT):
        h = torch.zeros(N_ACT).double()
        h[k] = 1e-6
        slope = (value(action + h) - value(action - h)) / 2e-6
        torch.testing.assert_close(moved[..., k] - action[..., k], 1e-3 * slope, rtol=1e-5, atol=1e-9)
    assert all(p.grad is None for p in built.critic.parameters())
    assert (value(moved) >= value(action)).all()


def test_released_step_is_a_sign():
    """10: each coordinate moves by 3e-4 in the direction of its gradient, and stays in the box."""
    built = agent(width=64)
    obs, action = torch.randn(1, 3, 64, N_OBS), 2 * torch.rand(1, 3, 64, N_ACT) - 1
    direction = lsac.ascend(built.critic, obs, action, "ascent", 1.0) - action
    moved = lsac.ascend(built.critic, obs, action, "adam", 1.0)
    clear = (direction.abs() > 2e-3) & (action.abs() < 0.99)
    torch.testing.assert_close((moved - action)[clear], 3e-4 * direction[clear].sign(), rtol=0.01, atol=1e-7)
    assert clear.any() and moved.abs().max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    coins=st.lists(st.sampled_from([0.0, 1 - 2**-24]) | st.floats(0, 1, exclude_max=True, width=32), min_size=2,
                   max_size=2),
)  # fmt: skip
def test_new_actions_are_moved_by_a_replica_that_exists(n, coins):
    """13: the replica is n times the coin, rounded down, in 0..n-1; the code's could be n."""
    built, coin = agent((0, 1), width=4, replicas=n, refine_lr=1.0), torch.tensor(coins)
    obs, action = torch.randn(2, 5, N_OBS), torch.rand(2, 5, N_ACT) - 0.5
    moved = built.improve(obs, action, coin)
    by_all = lsac.ascend(built.critic, *(x[:, None].expand(-1, n, -1, -1) for x in (obs, action)), "ascent", 1.0)
    for s in range(2):
        replica = math.floor(float(coin[s]) * n)
        assert 0 <= replica < n
        torch.testing.assert_close(moved[s], by_all[s, replica])


def test_dipo_moves_furthest_and_all_stay_in_the_box():
    built = agent(width=64)
    obs, action = torch.randn(1, 3, 64, N_OBS), 2 * torch.rand(1, 3, 64, N_ACT) - 1
    gain = {}
    for kind in ("ascent", "adam", "dipo"):
        moved = lsac.ascend(built.critic, obs, action, kind, 1e-3)
        assert moved.abs().max() <= 1
        gain[kind] = (built.critic(obs, moved)[0].amin(2) - built.critic(obs, action)[0].amin(2)).mean().item()
    assert 0 < gain["adam"] < gain["dipo"] and gain["ascent"] > 0


def test_dipo_is_twenty_steps_of_torchs_adam_with_the_gradient_of_a_batch_cut():
    built = agent(width=64).double()
    obs, action = torch.randn(1, 3, 8, N_OBS).double(), 2 * torch.rand(1, 3, 8, N_ACT).double() - 1
    moved = lsac.ascend(built.critic, obs, action, "dipo", 0.0)
    for i in range(3):
        leaf = action[0, i].clone().requires_grad_()
        opt = torch.optim.Adam([leaf], lr=0.03, eps=1e-5)
        for _ in range(20):
            value = built.critic.mean_of(torch.tensor([i]), obs[:, i], leaf[None]).amin(1).sum()
            leaf.grad = -torch.autograd.grad(value, leaf)[0]
            torch.nn.utils.clip_grad_norm_([leaf], 0.1 * N_ACT)
            opt.step()
            leaf.data.clamp_(-1, 1)
        torch.testing.assert_close(moved[0, i], leaf.detach())


@pytest.mark.parametrize("writeback", [True, False])
def test_write_back_changes_the_drawn_rows_only(writeback):
    """11: `writeback` changes exactly the distinct rows drawn, and their actions only; without it none."""
    built = agent(writeback=writeback, refine_lr=1.0)
    built.prepare(replay_of([0]))
    before = built.synthetic.data.rows[:, :30].clone()
    generators = copy.deepcopy(rng.save(built.noise))
    built.critic_batch(real(built))
    rng.restore(built.noise, generators)
    drawn = built.synthetic.data.slots(3 * 4, built.noise)[0].unique()
    changed = (built.synthetic.data.rows[0, :30] != before[0]).any(1).nonzero().squeeze(1)
    assert torch.equal(changed, drawn if writeback else torch.tensor([], dtype=torch.long))
    rest = [*range(N_OBS), *range(N_OBS + N_ACT, 2 * N_OBS + N_ACT + 2)]
    assert torch.equal(built.synthetic.data.rows[:, :30, rest], before[..., rest])


@pytest.mark.parametrize(("mix", "count"), [(0.5, 4), (0.25, 2), (1.0, 8), (0.0, 0)])
def test_batches_are_mixed_as_asked(mix, count):
    """12: of 8 rows of each replica `count` are from the synthetic buffer, with refined actions, the others real."""
    built, replay = agent(mix=mix, refine_lr=1.0), replay_of([0])
    built.prepare(replay)
    batch = real(built)
    rows, before = built.critic_batch(batch)
    assert torch.equal(rows.obs[:, :, count:], batch.obs[:, :, : 8 - count])
    assert rows.obs.shape == batch.obs.shape
    if count:
        stored = built.synthetic.data.rows[0, :30, :N_OBS]
        found = (rows.obs[0, :, :count, None] == stored).all(-1).any(-1)
        assert found.all() and not torch.equal(rows.action[:, :, :count], before.action)


def test_before_the_first_fit_everything_is_real():
    built = agent(refit_every=5)
    built.prepare(replay_of([0]))
    batch = real(built)
    assert built.critic_batch(batch) == (batch, None) and not built.phase[1]
    assert steps(built, replay_of([0]), 3)["generated"] == 0
    assert steps(built, replay_of([0]), 1)["generated"] == 0.5


def test_copies_of_real_transitions_enter_once_each():
    built, replay = agent(diffusion=False, refine="off"), replay_of([0], 40)
    built.prepare(replay)
    built.prepare(replay)
    assert built.synthetic.data.added == 40 and torch.equal(built.synthetic.data.rows[:, :40], replay.rows[:, :40])
    more = random_batches([0], 2, 70, N_OBS, N_ACT)[1]
    replay.add(*(x if x.dim() == 3 else x[..., None] for x in more))
    built.prepare(replay)
    assert built.synthetic.data.added == 110
    assert torch.equal(built.synthetic.data.rows[0, 40:110], replay.rows[0, (40 + np.arange(70)) % 100])


def test_what_enters_the_buffer_is_generated_by_a_fit_to_all_rows_and_refined():
    built, replay = agent((0, 1), refine_lr=1.0, churn=40.0), replay_of([0, 1])
    streams = rng.generators([0, 1], "diffusion")
    training = diffusion.Training(8, 1, 4, lr=built.config.diffusion_lr, average_every=1)
    end = 2 * N_OBS + N_ACT + 1
    model = diffusion.fit(replay.rows[:, :40], streams, training, diffusion.EDM(s_churn=40.0), keep=[end])
    obs, action, *rest = diffusion.transitions(diffusion.generate(model, 30, streams, 4), replay.widths)
    moved = built.improve(obs, action, rng.uniform(streams, 1)[:, 0])
    assert (moved != action).any()
    built.prepare(replay)
    torch.testing.assert_close(built.synthetic.data.rows[:, :30], torch.cat((obs, moved, *rest), -1))


def test_as_released_all_real_rows_and_few_generated_ones_are_kept_and_the_critics_see_real_ones():
    """21: the buffer holds each real row once and those of the fits; no row of a batch is synthetic, none changes."""
    with pytest.warns(UserWarning, match="rounded away"):
        built = agent(refit_every=2, **lsac.RELEASE | dict(n_synth=5))
    replay = replay_of([0], 40)
    steps(built, replay, 5)  # fits at updates 2 and 4
    kept, here = built.synthetic.data, replay.rows[0, :40]
    before = kept.rows[0, :50].clone()
    same = (before[:, None] == here).all(-1)  # [50, 40]
    assert kept.added == 50 and same.any(0).all() and same.any(1).sum() == 40
    batch = real(built)
    rows, leaked = built.critic_batch(batch)
    assert rows is batch and leaked.obs.shape == batch.obs.shape
    assert torch.equal(kept.rows[0, :50], before)


def test_policies_follow_every_replica_equally_often():
    """21, uniform selection in training: of 600 policy steps each of 3 replicas gets a third, to five deviations."""
    built = agent(mix=0.0, delay=1, width=4)
    followed = torch.tensor([steps(built, None, 1)["replica"].item() for _ in range(600)])
    assert (followed.long().bincount(minlength=3) - 200).abs().max() < 5 * math.sqrt(600 * 2 / 9)


def test_share_of_generated_transitions_counts_the_copies():
    """21: with the copies of the released code 30 of 70 rows are generated, so 3/14 of a batch mixed half and half."""
    built = agent(copies=True)
    assert steps(built, replay_of([0]), 1)["generated"].item() == pytest.approx(0.5 * 30 / 70)


def test_leak_adds_the_gradient_of_the_summed_value():
    """10: with `leak` the critics' gradient is that of the loss minus that of the sum of the smaller twins."""
    release = lsac.RELEASE | dict(l2_norm=0.0, n_synth=30, noise_scale=0.0)
    grads = {}
    for leak in (True, False):
        built = agent(**release | dict(leak=leak, mix=0.0, clip=0.0))
        batch = real(built)
        synthetic = Batch(*(x.flip(1) for x in batch))
        built.critic_step(batch, synthetic)
        grads[leak] = [p.grad.clone() for p in built.critic.parameters()]
    fresh = agent(**release | dict(mix=0.0))
    value = fresh.critic(synthetic.obs, synthetic.action)[0].amin(2).sum()
    for with_, without, extra in zip(
        grads[True], grads[False], torch.autograd.grad(value, list(fresh.critic.parameters())), strict=True
    ):
        torch.testing.assert_close(with_ - without, -extra, rtol=1e-3, atol=1e-4)


def network_lengths(grads):
    """The length of each network's gradient, `[S, n, 2]`."""
    return torch.cat([g.flatten(3) for g in grads], -1).norm(dim=-1)


def test_leaked_gradient_is_hundreds_of_times_that_of_the_loss():
    """10: of a pair of fresh networks at batch 256, with targets of the size of a reward (at the temperature e, with
    which training starts, targets are larger and the ratio is tens)."""
    n_obs, n_act, n = 11, 3, 3
    built = lsac.Config(replicas=n, mix=0.0, init_log_alpha=-20.0).build(n_obs, n_act, [0])
    rows = random_batches([0], 1, n * built.config.batch, n_obs, n_act)[0]
    rows = Batch(*(x.unflatten(1, (n, -1)) for x in rows))
    (mean, std), params = built.critic(rows.obs, rows.action), list(built.critic.parameters())
    loss = lsac.return_loss(mean, std, *built.targets(rows), std.detach().mean(-1), 3.0).sum()
    leak = -mean.amin(2).sum()
    sizes = [network_lengths(torch.autograd.grad(x, params, retain_graph=True)).norm(dim=2) for x in (leak, loss)]
    ratio = sizes[0] / sizes[1]
    assert 100 < ratio.min() and ratio.max() < 2000


@pytest.mark.parametrize(("b", "offset"), [(0.7, 32.0), (0.2, 32.0 * 0.59 / 0.14), (5.0, 32.0 * 0.59 / 25.1)])
def test_leak_raises_a_twin_by_half_the_batch_over_its_weight(b, offset):
    """18: (B / 2) (sigma^2 + 0.1) / (b^2 + 0.1) above the target, sigma 0.7 and B 64: B / 2 where b is sigma."""
    mean, std, y = torch.zeros(1, 1, 2, 1), torch.full((1, 1, 2, 64), 0.7), torch.full((1, 1, 64), 3.0)
    for _ in range(3_000):
        m = mean.requires_grad_()
        loss = lsac.return_loss(m.expand(std.shape), std, y, y, torch.full((1, 1, 2), b), 3.0).sum()
        leak = m.expand(std.shape).amin(2).sum()
        mean = (mean - 0.02 * torch.autograd.grad(loss - leak, mean)[0]).detach()
    torch.testing.assert_close(mean - 3.0, torch.full_like(mean, offset), rtol=0.02, atol=0.01)


def test_leak_offset_of_a_regression():
    """18: twins learning y = 10 sin(s + a) by aSGLD end B / 2 too high with the leak, and right without; it widens the
    error and leaves gradients that never become small."""
    found, batch = {}, 64
    for leak in (False, True):
        g, critic = rng.generators([0], "leak"), nets.GaussianCritic(3, 1, (64,) * 3, rng.generators([0], "c"))
        params = list(critic.parameters())
        opt = AdaptiveLangevin(params, rng.generators([0], "none"), lead=3, noise=0.0)
        for step in range(301):
            size = batch if step < 300 else 2_000
            obs, action = rng.normal(g, 1, size, 3), 2 * rng.uniform(g, 1, size, 1) - 1
            mean, y = critic(obs, action)[0], 10 * torch.sin(obs[..., :1] + action)[:, :, None, :, 0]
            if step < 300:
                loss = 0.5 * (mean - y).square().mean(-1).sum() - leak * mean.amin(2).sum()
                grads = torch.autograd.grad(loss, params)
                follow(opt, grads)
        error, length = (mean - y).detach(), torch.cat([x.flatten() for x in grads]).norm()
        found[leak] = error.mean(), error.std(-1).mean(), length
    (bias, std, length), (offset, wide, long) = found[False], found[True]
    assert abs(bias) < 0.1 and abs(offset - batch / 2) < 0.1 * batch / 2
    assert wide > 4 * std and long > 100 * length


def test_share_at_the_edge_is_of_the_stored_actions():
    """Every update has the metric, 0 before the first fit; then it is of the rows drawn, as they were stored."""
    built = agent(refit_every=2, refine="off")
    first = steps(built, replay_of([0]), 1)
    assert first["synthetic_edge"] == 0
    steps(built, replay_of([0]), 1)
    built.synthetic.follow = lambda *_: None  # no new rows: all stored ones have one coordinate of two at the edge
    built.synthetic.data.rows[..., N_OBS], built.synthetic.data.rows[..., N_OBS + 1] = -1.0, 0.3
    for _ in range(2):
        info = steps(built, replay_of([0]), 1)
        assert info["synthetic_edge"] == 0.5 and info.keys() == first.keys()


def test_pull_is_a_unit_vector_for_each_network_and_tensor():
    built = agent()
    for p in built.critic.parameters():
        pull = built._pull(p)
        torch.testing.assert_close(pull.flatten(3).norm(dim=-1), torch.ones(1, 3, 2), rtol=1e-4, atol=1e-4)
        if p.shape[-2] > 1:
            torch.testing.assert_close(pull, p / p.flatten(3).norm(dim=-1)[..., None, None], rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{}, dict(optimizer="sgld"), lsac.RELEASE | dict(n_synth=30), dict(optimizer="psgld", copies=True)],
)
def test_restored_agent_goes_on_exactly(changes):
    """16: counters, synthetic data and streams included."""
    with pytest.warns(UserWarning) if "leak" in changes else contextlib.nullcontext():
        first, second = agent(refit_every=2, **changes), agent(refit_every=2, **changes)
    replay = replay_of([0])
    steps(first, replay, 3)
    agents.restore(second, copy.deepcopy(agents.save(first)))
    infos = [steps(x, replay, 4) for x in (first, second)]
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(infos[0][name], infos[1][name]) for name in infos[0])


def test_policy_metrics_stay_in_the_same_tensors():
    """A CUDA graph of an update without a policy step returns them: they must be where it found them, and up to date.

    Updates of both phases, the first fit at update 4, and a restored agent.
    """
    built, replay = agent(refit_every=4), replay_of([0])
    steps(built, replay, 1)
    where, seen = {name: x.data_ptr() for name, x in built.policy_info.items()}, []
    for k in range(2, 9):
        info = steps(built, replay, 1)
        assert built.phase == (k % 2 == 1, k >= 4)
        assert {name: info[name].data_ptr() for name in where} == where
        seen.append(info["entropy"].item())
    assert [a == b for a, b in zip(seen, seen[1:], strict=False)] == [False, True] * 3
    kept = {name: x.clone() for name, x in built.policy_info.items()}
    saved = copy.deepcopy(agents.save(built))
    steps(built, replay, 1)
    agents.restore(built, saved)
    assert {name: x.data_ptr() for name, x in built.policy_info.items()} == where
    assert all(torch.equal(x, kept[name]) for name, x in built.policy_info.items())


def test_each_seed_is_trained_as_if_alone():
    alone, among = agent([3]), agent([1, 3, 5])
    info = steps(alone, replay_of([3]), 3, [3]), steps(among, replay_of([1, 3, 5]), 3, [1, 3, 5])
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], rtol=2e-4, atol=2e-5)
    for name in info[0]:
        torch.testing.assert_close(info[0][name][0], info[1][name][1], rtol=2e-3, atol=2e-4)


def test_spread_of_replicas_is_exact_where_it_is_small_beside_the_values():
    built = agent(mix=0.0, diffusion=False, refine="off")
    with torch.no_grad():
        built.critic.body.layers[-1].bias[..., 0] += 3_000
    info, value, _ = built.critic_step(real(built), None)
    assert value.std() < 1 and info["q_spread"] == pytest.approx(value.double().std(correction=0).item(), rel=1e-3)


def test_a_diverged_replica_is_counted_and_left_alone():
    """The others go on, the policy is never trained on it, and the metrics are those of the finite ones."""
    built = agent(mix=0.5)
    built.prepare(replay_of([0]))
    with torch.no_grad():
        for p in built.critic.parameters():
            p[:, 1] = float("nan")
    info = steps(built, replay_of([0]), 6)
    assert info["replicas"] == 2 and all(x.isfinite().all() for x in info.values())
    assert all(p.isfinite().all() for p in built.actor.parameters())
    assert built.synthetic.data.rows[:, : built.synthetic.data.added].isfinite().all()
    metrics = {name: x.tolist() for name, x in info.items()}
    with pytest.warns(UserWarning, match="seed number 1 of the run has 2 of 3 critic replicas left"):
        built.notice(metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.notice(metrics)  # once is enough
        agent().notice(metrics | {"replicas": [3.0]})
        agent().notice(metrics | {"replicas": [0.0]})  # the next evaluation ends that seed


@pytest.mark.parametrize("optimizer", ["asgld", "adam"])
def test_a_replica_that_diverges_in_this_very_step_does_not_reach_the_policy(optimizer):
    """Its values are finite, its loss overflows; in some of the seeds it would have been the one picked."""
    seeds = list(range(8))
    built = agent(seeds, mix=0.0, diffusion=False, refine="off", optimizer=optimizer)
    with torch.no_grad():
        for critic in (built.critic, built.target):
            critic.body.layers[-1].bias[:, 1] += 3e19
    info = steps(built, replay_of(seeds), 1, seeds)
    assert not built.critic.body.layers[-1].bias[:, 1].isfinite().any() and (info["replicas"] == 2).all()
    assert all(p.isfinite().all() for p in built.actor.parameters())


def test_the_first_copy_takes_no_more_than_the_buffer_holds():
    built, replay = agent(diffusion=False, refine="off", synthetic_capacity=25), replay_of([0], 40)
    built.prepare(replay)
    assert built.synthetic.data.added == 25 and torch.equal(built.synthetic.data.rows, replay.rows[:, 15:40])


def test_training_with_synthetic_data_runs_and_resumes(tmp_path):
    """Through the loop, with fits on the way; cut in two it gives the rows of an uninterrupted run."""
    config = lsac.Config(width=16, batch=8, replicas=2, refit_every=40, n_synth=50, diffusion_width=8,
                         diffusion_blocks=1, diffusion_steps=5, sampler_steps=3)  # fmt: skip
    given = dict(env_id="InvertedPendulum-v5", seeds=[0, 1], warmup=50, eval_every=50, eval_episodes=1,
                 checkpoint_every=100)  # fmt: skip
    whole = train(config, steps=200, out=tmp_path / "whole", **given)
    train(config, steps=130, out=tmp_path / "cut", **given)
    cut = train(config, steps=200, out=tmp_path / "cut", **given)
    assert (whole["generated"] == 0.5).all()
    assert whole.drop(columns=["run", "seconds"]).equals(cut.drop(columns=["run", "seconds"]))
