"""LSAC and DSAC-T: the equations of one update. Numbers in docstrings are those of the chapter's list of checks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softpolicy import streams as rng
from softpolicy.agents import dsact, lsac
from softpolicy.replay import Batch


def agent(seeds=(0,), n_obs=5, n_act=2, **changes):
    settings = dict(width=16, batch=8, replicas=3, mix=0.0) | changes
    return lsac.Config(**settings).build(n_obs, n_act, list(seeds))


def rows_of(seeds, n, size, n_obs=5, n_act=2, dtype=torch.float32):
    """Transitions `[S, n, size, ...]` of n replicas."""
    g = rng.generators(seeds, "rows")
    draw = lambda *shape: rng.normal(g, n, size, *shape).to(dtype)  # noqa: E731
    return Batch(draw(5), draw(2).clamp(-1, 1), draw(), draw(5), (draw() > 1).to(dtype))


@pytest.mark.parametrize(
    ("n_obs", "n_act", "critic", "actor"),
    [(11, 3, 135_938, 136_198), (8, 2, 134_914, 134_916), (17, 6, 138_242, 139_276), (111, 8, 162_818, 164_368),
     (376, 17, 232_962, 236_834)],
)  # fmt: skip
def test_sizes_of_the_networks_are_those_of_the_released_code(n_obs, n_act, critic, actor):
    """1: Hopper, Swimmer, HalfCheetah and Walker2d, Ant, Humanoid, in version 3 of the tasks; twenty critics."""
    built = lsac.Config().build(n_obs, n_act, [0])
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(built.critic) == count(built.target) == 20 * critic
    assert count(built.actor) == actor


def test_surrogate_has_the_gradient_of_the_gaussian_log_likelihood():
    g = torch.Generator().manual_seed(0)
    mean, raw = (torch.randn(2, 3, 2, 7, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    std = raw.exp()
    y = torch.randn(2, 3, 7, generator=g, dtype=torch.float64)
    ours = lsac.return_loss(mean, std, y, y, torch.ones(2, 3, 2, dtype=torch.float64), 1e9, floor=0)
    exact = -torch.distributions.Normal(mean, std).log_prob(y[:, :, None]).mean(-1)
    for a, b in zip(
        *(torch.autograd.grad(x.sum(), (mean, raw), retain_graph=True) for x in (ours, exact)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_standard_deviation_is_trained_only_with_its_gradient():
    """2: the std row has a gradient with `sigma_grad` and none without; the mean row's is the same."""
    built, rows = agent(width=64), rows_of([0], 3, 64)
    mean, std = built.critic(rows.obs, rows.action)
    last, b = built.critic.body.layers[-1].weight, std.detach().mean(-1)
    y = rows.reward
    grads = [
        torch.autograd.grad(lsac.return_loss(mean, std, y, y + 3, b, 3, on).sum(), last, retain_graph=True)[0]
        for on in (True, False)
    ]
    assert grads[0][..., 1].norm() > 0.1 and not grads[1][..., 1].any()
    assert torch.equal(grads[0][..., 0], grads[1][..., 0])


@given(xi=st.floats(0.1, 5), shift=st.floats(-100, 100))
def test_sample_targets_beyond_the_boundary_count_as_at_it(xi, shift):
    mean, std = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2, 4), 0.7, requires_grad=True)
    b = torch.tensor([[[0.5, 2.0]]])
    grad = lambda y_z: torch.autograd.grad(lsac.return_loss(mean, std, mean[:, :, 0], y_z, b, xi).sum(), std)[0]  # noqa: E731
    for j in (0, 1):
        bound = xi * b[0, 0, j].item()
        given_, cut = (grad(torch.full((1, 1, 4), y))[0, 0, j] for y in (shift, max(-bound, min(bound, shift))))
        torch.testing.assert_close(given_, cut)


def test_targets_use_the_smaller_twin_and_end_with_the_episode():
    """4: y = y_z = reward at an end; the return sample is that of the twin with the smaller mean."""
    rows = rows_of([0, 1], 3, 8)
    mean, std = torch.randn(2, 3, 2, 8), torch.rand(2, 3, 2, 8) + 0.1
    z, log_pi, alpha = torch.randn(2, 3, 2, 8), torch.randn(2, 3, 8), torch.tensor([0.3, 2.0])
    y, y_z = lsac.soft_targets(rows, mean, std, z, log_pi, alpha, 0.9)
    for s in range(2):
        for i in range(3):
            for k in range(8):
                j = int(mean[s, i, 1, k] < mean[s, i, 0, k])
                go_on = 0.9 * (1 - rows.terminated[s, i, k])
                bonus, sample = alpha[s] * log_pi[s, i, k], mean[s, i, j, k] + z[s, i, j, k] * std[s, i, j, k]
                torch.testing.assert_close(y[s, i, k], rows.reward[s, i, k] + go_on * (mean[s, i, j, k] - bonus))
                torch.testing.assert_close(y_z[s, i, k], rows.reward[s, i, k] + go_on * (sample - bonus))
    over = rows.terminated == 1
    assert over.any() and torch.equal(y[over], rows.reward[over]) and torch.equal(y_z[over], rows.reward[over])


def test_targets_of_a_replica_come_from_its_own_networks():
    first, second = agent(), agent()
    with torch.no_grad():
        for p in second.target.parameters():
            p[:, 2] += 1.0  # replica 2
    rows = rows_of([0], 3, 8)
    (a, a_z), (b, b_z) = first.targets(rows), second.targets(rows)
    assert torch.equal(a[:, :2], b[:, :2]) and torch.equal(a_z[:, :2], b_z[:, :2])
    assert not torch.equal(a[:, 2], b[:, 2])


def test_running_standard_deviation_follows_its_rates():
    """5: the distance shrinks by 0.995 an update; shared by ten replicas, by 0.995^10."""
    start, x = torch.full((2, 10, 2), 3.0), torch.full((2, 10, 2), 1.0)
    torch.testing.assert_close(lsac.running_std(start, x, 0.005, False) - 1, torch.full_like(x, 2 * 0.995))
    torch.testing.assert_close(lsac.running_std(start, x, 0.005, True)[:, -1] - 1, torch.full((2, 2), 2 * 0.995**10))
    unset = torch.full((2, 10, 2), -1.0)
    assert torch.equal(lsac.running_std(unset, x, 0.005, False), x)


def test_shared_boundary_is_moved_by_each_replica_in_turn():
    means = torch.rand(1, 4, 2) + 0.1
    got, now = lsac.running_std(torch.full((1, 4, 2), 2.0), means, 0.1, True), torch.full((1, 2), 2.0)
    for i in range(4):
        now = 0.9 * now + 0.1 * means[:, i]
        torch.testing.assert_close(got[:, i], now)


@pytest.mark.parametrize("share", [True, False])
def test_a_diverged_replica_moves_no_boundary(share):
    """Its own stays, and with a shared one those of the replicas after it go on as if it were not there."""
    means, start = torch.rand(1, 4, 2) + 0.1, torch.full((1, 4, 2), 2.0)
    others = [0, 2, 3]
    kept = lsac.running_std(start[:, others], means[:, others], 0.1, share)
    for bad in (math.nan, math.inf):
        means[:, 1] = bad
        got = lsac.running_std(start, means, 0.1, share)
        assert got.isfinite().all() and torch.equal(got[:, others], kept)
    unset = lsac.running_std(-start, means, 0.1, share)
    assert (unset[:, 2:] > 0).all()


def test_pick_is_uniform_over_the_replicas_that_are_finite():
    """13: 10,000 draws among ten give 1,000 +- 120 each, and none to a replica that diverged."""
    coin = torch.rand(10_000, 10, generator=torch.Generator().manual_seed(0))
    values, alive = torch.zeros(10_000, 10), torch.ones(10_000, 10, dtype=torch.bool)
    counts = lsac.pick(values, alive, "uniform", coin).bincount(minlength=10)
    assert counts.min() > 880 and counts.max() < 1120
    alive[:, 3] = False
    counts = lsac.pick(values, alive, "uniform", coin).bincount(minlength=10)
    assert counts[3] == 0 and counts.sum() == 10_000


@pytest.mark.parametrize(
    ("values", "code", "safe"), [((100, 250, 400), 0, 2), ((10, 100, 20), 1, 1), ((1, 3, 2), 1, 1)]
)
def test_pick_as_released_overflows(values, code, safe):
    """13: raw exponentials overflow at 88, and the first replica beyond it wins whatever its value."""
    values = torch.tensor([values], dtype=torch.float32)
    alive, coin = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    assert lsac.pick(values, alive, "code_exp", coin).item() == code
    assert lsac.pick(values, alive, "argmax_safe", coin).item() == safe


def test_mean_of_one_replica_is_its_slice():
    built = agent(seeds=(0, 1))
    obs, action = torch.randn(2, 8, 5), torch.rand(2, 8, 2, requires_grad=True)
    everyone = built.critic(obs[:, None].expand(-1, 3, -1, -1), action[:, None].expand(-1, 3, -1, -1))[0]
    replica = torch.tensor([2, 0])
    got = built.critic.mean_of(replica, obs, action)
    torch.testing.assert_close(got, torch.stack([everyone[0, 2], everyone[1, 0]]))
    slope, exact = (torch.autograd.grad(x.sum(), action)[0] for x in (got, everyone[[0, 1], replica]))
    torch.testing.assert_close(slope, exact)


def test_standard_deviation_of_the_policy_is_bounded():
    """15: the log is cut at 0.5, so it is never above 1.6487."""
    built = agent()
    std = built.actor(1e3 * torch.randn(1, 500, 5))[1].exp()
    assert 1.6487 < std.max() < 1.64873


def test_temperature_rises_while_entropy_is_below_its_target():
    log_alpha = torch.zeros(1, requires_grad=True)
    slope = lambda log_pi: torch.autograd.grad(  # noqa: E731
        lsac.temperature_loss(log_alpha, torch.full((1, 4), log_pi), -2.0).sum(), log_alpha
    )[0].item()
    assert slope(3.0) == pytest.approx(-1) and slope(1.0) == pytest.approx(1)  # d/dlog_alpha = -(log_pi + H)


def test_step_sizes_fall_to_half():
    """15: factors at updates 0, 1e5, 2e5, 5e5, 1e6."""
    built = agent()
    for updates, factor in ((0, 1), (1e5, 1), (2e5, 0.944444), (5e5, 0.777778), (1e6, 0.5), (2e6, 0.5)):
        built.updates = int(updates)
        built.prepare(None)
        assert built.opts["critic"].param_groups[0]["lr"] == pytest.approx(1e-3 * factor, rel=1e-5)
        assert built.opts["policy"].param_groups[0]["lr"] == pytest.approx(1e-4 * factor, rel=1e-5)


def test_return_samples_of_the_target_are_cut_at_xi(monkeypatch):
    """z is a standard normal number cut at +-xi: in size at most xi, and that at a share of 2 (1 - Phi(xi))."""
    built, seen, compute = agent(xi=0.7), [], lsac.soft_targets

    def note(batch, mean, std, z, *others):
        seen.append(z)
        return compute(batch, mean, std, z, *others)

    monkeypatch.setattr(lsac, "soft_targets", note)
    built.targets(rows_of([0], 3, 4_000))
    (z,) = seen
    assert z.shape == (1, 3, 2, 4_000) and z.abs().max().item() == pytest.approx(0.7)
    assert (z.abs() == z.abs().max()).float().mean().item() == pytest.approx(math.erfc(0.7 / math.sqrt(2)), abs=0.02)


def test_policy_temperature_and_targets_move_every_second_update():
    built, batches = agent(), rows_of([0], 4, 24)
    slow = lambda: [*built.actor.parameters(), *built.target.parameters(), *built.target_actor.parameters()]  # noqa: E731
    moved = []
    for k in range(4):
        before = [p.clone() for p in slow()], [p.clone() for p in built.critic.parameters()], built.log_alpha.clone()
        built.prepare(None)
        built.update(Batch(*(x[:, k] for x in batches)))
        same = [torch.equal(p, q) for p, q in zip(slow(), before[0], strict=True)]
        assert all(same) or not any(same)
        assert all(same) == torch.equal(built.log_alpha, before[2])
        assert not any(torch.equal(p, q) for p, q in zip(built.critic.parameters(), before[1], strict=True))
        moved.append(not any(same))
    assert moved == [True, False, True, False]


def test_std_of_the_return_is_learnt():
    """17: one state, reward ~ N(1, 1), gamma 0.9: mean 10 and std 1/sqrt(1 - 0.81) = 2.294; without its gradient the
    standard deviation stays where it was."""
    g, runs = torch.Generator().manual_seed(0), 50
    for sigma_grad, low, high in ((True, 2.15, 2.35), (False, 0.69, 0.70)):
        mean, raw = torch.zeros(1, runs, 2, 1), torch.zeros(1, runs, 2, 1)
        targets, b = [mean.clone(), raw.clone()], torch.full((1, runs, 2), -1.0)
        for k in range(6_000):
            m, s = mean.requires_grad_(), torch.nn.functional.softplus(raw.requires_grad_())
            batch = Batch(None, None, 1 + torch.randn(1, runs, 64, generator=g), None, torch.zeros(1, runs, 64))
            z = torch.randn(1, runs, 2, 64, generator=g).clamp(-3, 3)
            there = (targets[0].expand(-1, -1, -1, 64), torch.nn.functional.softplus(targets[1]))
            y, y_z = lsac.soft_targets(batch, *there, z, torch.zeros(1, runs, 64), torch.zeros(1), 0.9)
            b = lsac.running_std(b, s.detach().mean(-1), 0.05, False)
            loss = lsac.return_loss(m.expand(-1, -1, -1, 64), s.expand(-1, -1, -1, 64), y, y_z, b, 3, sigma_grad)
            slopes = torch.autograd.grad(loss.sum(), (mean, raw), allow_unused=True)
            rate = 0.05 if k < 4_000 else 0.005
            mean = (mean - rate * slopes[0]).detach()
            raw = (raw - rate * (0 if slopes[1] is None else slopes[1])).detach()
            targets = [t + 0.05 * (x - t) for t, x in zip(targets, (mean, raw), strict=True)]
        assert abs(mean.mean() - 10) < 0.2
        assert low < torch.nn.functional.softplus(raw).mean() < high


def test_dsact_is_one_replica_with_adam_and_nothing_synthetic():
    built = dsact.Config(width=16, batch=8).build(5, 2, [0])
    assert isinstance(built.opts["critic"], torch.optim.Adam) and not built.config.mix and not built.config.diffusion
    assert len(built.critic.body.layers[0].weight.flatten(0, 2)) == 2
    assert not built.config.decay and built.config.refine == "off"
    info = built.update(Batch(*(x[:, 0] for x in rows_of([0], 1, 8))))
    assert math.isfinite(info["q"].item())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(replicas=0), "replicas must lie in"),
        (dict(optimizer="sgd"), "optimizer must be asgld or sgld or psgld or adam"),
        (dict(mix=1.5), "mix must lie in"),
        (dict(leak=True), "give refine adam"),
        (dict(diffusion="off"), "diffusion must be True or False, got 'off'"),
        (dict(writeback=1), "writeback must be True or False, got 1"),
        (dict(n_synth=11, synthetic_capacity=10), "n_synth must be at most synthetic_capacity, got 11 and 10"),
        (dict(mix=0.1, batch=4), "mix 0.1 is no row of a batch of 4"),
        (dict(init_log_alpha=math.nan), "init_log_alpha must lie in"),
        (dict(target_entropy=-math.inf), "target_entropy must lie in"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        lsac.Config(**changes)


def test_whole_numbers_do_for_settings():
    assert dsact.Config(init_log_alpha=0).build(2, 1, [0]).log_alpha.dtype == torch.float32


@pytest.mark.parametrize("name", ["init_log_alpha", "target_entropy", "xi"])
def test_numbers_of_dsact_are_finite(name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        dsact.Config(**{name: math.nan})
