"""S2AC: its landscape, start law, score and losses against plain versions, autograd and closed forms; SAC inside it."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from agent_checks import random_batches
from scipy import stats

from softpolicy import nets
from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.agents import s2ac, sac
from softpolicy.optim import descend
from softpolicy.svgd import pairs, velocity

O, A, B, M = 5, 2, 8, 4
SMALL = dict(width=16, batch=B, particles=M)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def agent(seeds=(0,), **kw):
    return s2ac.Config(**{**SMALL, **kw}).build(O, A, list(seeds)).double()


def test_entropy_of_a_narrow_start_law_is_that_of_its_gaussian():
    """Without steps, at std 0.01, tanh changes nothing: A log(std sqrt(2 pi e)) nats in every state."""
    a = agent((0, 1), start="none", std_fixed=0.01, svgd_steps=0, truncation="none", particles=2_000)
    h = a.entropy(numbers(0, 2, 3, O), rng.generators([0, 1], "test"))
    assert h.shape == (2, 3)
    # sampling error: the mean of log N has standard deviation sqrt(A / 2 M)
    assert (h - A * math.log(0.01 * math.sqrt(2 * math.pi * math.e))).abs().max() < 5 * math.sqrt(A / 4_000)


# --- the score


@pytest.mark.parametrize("score_temp", ["alpha", "one"])
@pytest.mark.parametrize("score_at", ["density", "squashed", "raw"])
def test_score_is_the_gradient_of_the_density_it_names(score_temp, score_at):
    a = agent(score_temp=score_temp, score_at=score_at, alpha=0.3)
    obs, u = numbers(0, 1, 3, O), numbers(1, 1, 3, M, A).requires_grad_()
    action = u if score_at == "raw" else u.tanh()
    q = a.critic(obs.repeat_interleave(M, 1), action.flatten(1, 2)).amin(1).view(1, 3, M)
    log_p = q / (0.3 if score_temp == "alpha" else 1.0)
    if score_at == "density":
        log_p = log_p + torch.log(1 - u.tanh() ** 2).sum(-1)
    (expected,) = torch.autograd.grad(log_p.sum(), u)
    torch.testing.assert_close(a.score(sp.Landscape(a.critic, obs, M))(u), expected)


class Bowl:
    """Stands in for the landscape Q = -36 |u|^2, of curvature 72 as in the multi-goal tasks."""

    def gradient(self, u):
        return -72 * u


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize(("score_temp", "std"), [("alpha", 0.053), ("one", 0.118)])
def test_particles_have_the_spread_of_their_temperature(d, score_temp, std):
    config = s2ac.Config(
        particles=200, score_temp=score_temp, score_at="raw", start="none", truncation="none", svgd_steps=2000,
        sigma=std, svgd_lr=0.5 * std**2,
    )  # fmt: skip
    a = config.build(1, d, [0])
    obs = torch.zeros(1, 1, 1)
    with torch.no_grad():
        u = a.sample(Bowl(), obs, sp.Draws(obs, rng.generators([0], "particles")), density=False).u
    assert math.sqrt((0.2 if score_temp == "alpha" else 1.0) / 72) == pytest.approx(std, rel=0.01)
    torch.testing.assert_close(u.std(2).flatten(), torch.full((d,), std), rtol=0.05, atol=0)


# --- the loss of the start law


def loss_of(a, obs, landscape, states):
    rng.restore(a.noise, states)
    s = a.sample(landscape, obs, sp.Draws(obs, a.noise))
    return -s2ac.soft_value(landscape.value(s.u.tanh()), s.log_pi, s.weight, a.config.alpha).mean(-1).sum()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_gradient_of_the_loss_passes_through_all_steps(steps, kind):
    """Against central differences along random directions in the start law's parameters; the bandwidth is fixed."""
    a = agent(start=kind, svgd_steps=steps, sigma=0.8, svgd_lr=0.2, std_min=1e-6, std_max=1e3)
    obs, states = numbers(0, 1, B, O), rng.save(a.noise)
    landscape, params, h = sp.Landscape(a.critic, obs, M), list(a.start.parameters()), 1e-5
    grads = torch.autograd.grad(loss_of(a, obs, landscape, states), params)
    for seed in range(3):
        direction = [numbers(10 * seed + i, *p.shape) for i, p in enumerate(params)]
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(a)
            moved.noise = a.noise
            with torch.no_grad():
                for p, v in zip(moved.start.parameters(), direction, strict=True):
                    p.add_(sign * h * v)
                ends.append(loss_of(moved, obs, landscape, states))
        slope = sum((g * v).sum() for g, v in zip(grads, direction, strict=True))
        assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=1e-4)


def test_without_steps_it_is_sac():
    """log pi, actor loss and critic target at the same noise; one particle."""
    a = agent(
        start="diagonal", svgd_steps=0, truncation="none", particles=1, std_min=math.exp(-20), std_max=math.exp(2)
    )
    actor = nets.GaussianActor(O, A, (16, 16, 16), rng.generators([0], "any"), F.elu).double()
    actor.load_state_dict(a.start.state_dict())
    batch, alpha = random_batches([0], 1, B, dtype=torch.float64)[0], torch.tensor([0.2]).double()
    states = rng.save(a.noise)
    noise = rng.normal(a.noise, B, 1, A)[:, :, 0]
    action, log_pi = actor.sample(batch.obs, noise)
    theirs = sac.actor_loss(a.critic(batch.obs, action), log_pi, alpha)[0]
    rng.restore(a.noise, states)
    landscape = sp.Landscape(a.critic, batch.obs, 1)
    s = a.sample(landscape, batch.obs, sp.Draws(batch.obs, a.noise))
    torch.testing.assert_close(s.log_pi[:, :, 0], log_pi, atol=1e-6, rtol=0)
    torch.testing.assert_close(loss_of(a, batch.obs, landscape, states), theirs, atol=1e-6, rtol=0)
    q_next = a.target(batch.obs, action)
    target = sac.soft_target(batch, q_next, log_pi, alpha, 0.99)
    ours = s2ac.soft_value(q_next.amin(1)[..., None], s.log_pi, s.weight, 0.2)
    torch.testing.assert_close(sp.backup(batch, ours, 0.99), target)


# --- selection and truncation


@pytest.mark.parametrize("select", ["random", "best", "softmax"])
def test_selection_has_the_frequencies_it_says(select):
    """Two kinds of states in one batch; the last particle must not be taken."""
    n, q = 10_000, torch.tensor([[0.3, 1.0, -0.5, 0.9, 2.0], [2.0, 0.0, 1.9, 0.1, 5.0]]).double()
    weight, u = (
        torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]),
        torch.rand(1, 2 * n, generator=torch.Generator().manual_seed(0)),
    )
    particles = torch.arange(5.0)[:, None].expand(1, 2 * n, 5, 1)
    taken = sp.choose(select, particles, q.repeat(n, 1)[None], 0.7, u, weight.expand(1, 2 * n, 5))
    assert taken.shape == (1, 2 * n, 1)
    for state, row in enumerate(q[:, :4]):
        counts = torch.bincount(taken[0, state::2, 0].long(), minlength=5)
        if select == "best":
            assert counts[row.argmax()] == n
        else:
            p = (row / 0.7).softmax(0) if select == "softmax" else torch.full((4,), 0.25)
            assert counts[4] == 0 and stats.chisquare(counts[:4].numpy(), n * p.double().numpy()).pvalue > 1e-3


@pytest.mark.filterwarnings("ignore:SVGD")
def test_the_best_particle_is_ranked_at_the_action_that_it_becomes():
    a = agent((0, 1), truncation="none", svgd_lr=0.5)
    obs = numbers(0, 2, 6, O)
    s = a.sample(sp.Landscape(a.critic, obs, M), obs, sp.Draws(obs), density=False)
    q = torch.stack([a.critic(obs, s.u[:, :, m].tanh()).amin(1) for m in range(M)], -1)
    best = s.u.tanh().gather(2, q.argmax(-1)[..., None, None].expand(-1, -1, 1, A)).squeeze(2)
    torch.testing.assert_close(a.act(obs, select="best"), best)
    chosen = a.act(obs, rng.generators([0, 1], "act"), "random")
    assert chosen.shape == (2, 6, A)


def test_particles_that_left_do_not_count_unless_all_left():
    """Two steps: state 0 keeps all particles, in state 1 those with a positive start go and come back, in 2 all go."""
    a = agent(start="none", svgd_steps=2, sigma=1e-3, svgd_lr=0.1, std_fixed=0.5, score_at="raw")
    obs = torch.zeros(1, 3, O).double()

    class Wind:
        away = None

        def gradient(self, x):
            if self.away is not None:
                return self.away * torch.tensor([0.0, -1.0, 1.0])[:, None, None]
            self.away = torch.zeros_like(x)
            self.away[:, 1], self.away[:, 2] = 1e4 * (x[:, 1] > 0), 1e4
            return self.away

    s = a.sample(Wind(), obs, sp.Draws(obs, rng.generators([4], "z")))
    start = nets.cut_normal(rng.uniform(rng.generators([4], "z"), 3, M, A), 3.0)
    stays = (start[0, 1] <= 0).all(-1)
    assert 0 < stays.sum() < M
    assert s.weight[0, 0].all() and torch.equal(s.weight[0, 1] == 1, stays) and s.weight[0, 2].all()
    assert s.inside[0].sum(-1).tolist() == [M, M, 0]
    q, log_pi = numbers(1, 1, 3, M), numbers(2, 1, 3, M)
    value = s2ac.soft_value(q, log_pi, s.weight, 0.3)
    assert value[0, 1].item() == pytest.approx((q - 0.3 * log_pi)[0, 1][stays].mean().item())


# --- acting


@pytest.mark.filterwarnings("ignore:SVGD")
def test_evaluation_is_a_function_of_the_observation_and_disturbs_nothing():
    a = agent((0, 1), amortised=True)
    obs, states = numbers(0, 2, 3, O), rng.save(a.noise)
    for select in s2ac.SELECT:
        first = a.act(obs, select=select)
        assert torch.equal(first, a.act(obs, select=select)) and first.abs().max() <= 1
        torch.testing.assert_close(a.act(obs[:, 1:2], select=select), first[:, 1:2])
    assert all(torch.equal(x, y) for x, y in zip(states, rng.save(a.noise), strict=True))
    g = rng.generators([0, 1], "act")
    assert not torch.equal(a.act(obs, g), a.act(obs, g))


def test_an_evaluation_warns_where_steps_are_not_invertible_and_training_does_not():
    obs = numbers(0, 1, 3, O)
    with pytest.warns(UserWarning, match="may not be invertible"):
        agent(svgd_lr=50.0).act(obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent(svgd_lr=50.0).act(obs, rng.generators([0], "act"))
        agent(svgd_lr=50.0, step_cap=0.9).act(obs)
        agent(svgd_steps=0).act(obs)


# --- the amortised sampler, diagnosis, settings


class Hill:
    """Stands in for the landscape whose exp(Q / 0.2) is N(0.3, 0.15^2), one dimension."""

    def gradient(self, x):
        return -0.2 * (x - 0.3) / 0.15**2


def test_the_amortised_sampler_learns_the_law_of_the_particles():
    a = s2ac.Config(width=32, particles=20, amortised=True, lr=3e-3).build(1, 1, [0])
    obs, streams = torch.zeros(1, 32, 1), rng.generators([0], "amortised")
    for _ in range(300):
        loss, _ = a.amortised_loss(Hill(), obs, sp.Draws(obs, streams))
        descend(a.opts["amortised"], loss)
    obs = torch.zeros(1, 4000, 1)
    action = a.act(obs, rng.generators([1], "z"), "amortised")
    assert action.mean().item() == pytest.approx(0.3, abs=0.03)
    assert action.std().item() == pytest.approx(0.15, rel=0.25)


def test_particles_that_follow_the_policy_give_an_amortised_sampler_no_direction():
    """Stein's identity: the mean velocity at any action is zero, so that the released rule cannot be the one."""
    fixed = 0.3 + 0.15 * rng.normal(rng.generators([0], "fixed"), 1, 200_000, 1, dtype=torch.float64)
    at = torch.linspace(-0.5, 0.9, 8).double().view(1, 1, -1, 1)
    score = Hill().gradient(fixed) / 0.2
    phi = velocity(pairs(at, fixed, 0.2), at, fixed, score)
    own = velocity(pairs(at, at, 0.2), at, at, Hill().gradient(at) / 0.2)
    assert phi.abs().max() < 0.03 and own.abs().max() > 1


def test_diagnosis_reports_the_distance_to_the_exact_log_determinant():
    obs = numbers(0, 2, 5, O)
    small, large = (agent((0, 1), svgd_lr=eps).diagnose(obs, rng.generators([0, 1], "d")) for eps in (1e-3, 1e-1))
    assert ((small["log_det_gap"] > 0) & (100 * small["log_det_gap"] < large["log_det_gap"])).all()
    assert all(x.shape == (2,) for x in small.values())
    torch.testing.assert_close(100 * small["step_over_sigma2"], large["step_over_sigma2"], rtol=0.2, atol=0)
    capped = agent((0, 1), step_cap=1e-3).diagnose(obs, rng.generators([0, 1], "d"))
    assert (capped["step_over_sigma2"] < 1e-3).all()  # the cap is on eps (... + 1 / sigma^2)
    assert (10 * small["moved"] < large["moved"]).all() and (small["start"] == large["start"]).all()
    assert (large["stein_size"] >= large["stein"].abs()).all()
    still = agent((0, 1), svgd_steps=0).diagnose(obs, rng.generators([0, 1], "d"))
    assert all((still[k] == 0).all() for k in ("moved", "stein_size", "log_det_gap", "step_over_sigma2"))


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        (dict(particles=1), "at least two particles"),
        (dict(particles=2, bandwidth="median"), "rule median is zero for fewer than 3 particles, got 2"),
        (dict(particles=4, bandwidth="quartile"), "rule quartile is zero for fewer than 5 particles, got 4"),
        (dict(particles=1, self_kernel=True), "bandwidth that is not made from distances"),
        (dict(particles=2.5), "particles must be a whole number, got 2.5"),
        (dict(particles=0), r"particles must lie in \[1, inf\], got 0"),
        (dict(svgd_lr=0.0), "svgd_lr must lie in"),
        (dict(svgd_lr=float("nan")), "svgd_lr must lie in"),
        (dict(sigma=-1.0), "sigma must lie in"),
        (dict(std_min=2.0), "std_min must lie in"),
        (dict(bandwidth="forth"), "bandwidth must be median or quartile or mean or half-mean, got 'forth'"),
        (dict(evaluate="amortised"), "evaluate must be random or best or softmax, got 'amortised'"),
        (dict(start="learned"), "start must be"),
        (dict(truncation="all"), "truncation must be"),
    ],
)
def test_bad_settings_are_refused_with_a_sentence(kw, says):
    with pytest.raises(ValueError, match=says) as e:
        s2ac.Config(**kw)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("select", ["amortised", "max"])
def test_an_unknown_choice_of_particle_is_refused(select):
    with pytest.raises(ValueError, match="select must be random, best, softmax or"):
        agent().act(numbers(0, 1, 3, O), select=select)


def test_settings_that_look_odd_but_are_right():
    s2ac.Config(particles=1, svgd_steps=0)
    s2ac.Config(particles=1, self_kernel=True, sigma=0.3)
    s2ac.Config(particles=2, bandwidth="median", sigma=0.3)
    s2ac.Config(particles=2, bandwidth="median", sigma_floor=0.3)
    s2ac.Config(amortised=True, evaluate="amortised")
    s2ac.Config(**s2ac.RELEASE)
