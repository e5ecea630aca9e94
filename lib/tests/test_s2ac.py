"""S2AC: its landscape, start law, score and losses against plain versions, autograd and closed forms; SAC inside it."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from softpolicy import agents, nets
from softpolicy import stein_policy as sp
from softpolicy import streams as rng
from softpolicy.agents import s2ac, sac, sql
from softpolicy.optim import descend
from softpolicy.replay import Batch
from softpolicy.svgd import pairs, velocity

O, A, B, M = 5, 2, 8, 4
SMALL = dict(width=16, batch=B, particles=M)
VARIANTS = {
    "paper": {},
    "release": s2ac.RELEASE,
    "SAC": dict(svgd_steps=0, truncation="none"),
    "no start law": dict(start="none", score_at="squashed", bandwidth="median"),
    "every term": dict(start="full", hessian=True, self_kernel=True, sigma=0.7, svgd_steps=2, svgd_lr=0.3),
    "capped": dict(step_cap=0.2, sigma_floor=0.3, amortised=True),
    "amortised as released": dict(amortised=True, amortised_by="particles"),
}


def batches(seeds, n, dtype=torch.float32):
    """n random batches `[S, B, ...]`; a seed's slice depends on the seed alone."""
    g = rng.generators(seeds, "batches")
    return [
        Batch(*(x.to(dtype) for x in (rng.normal(g, B, O), 2 * rng.uniform(g, B, A) - 1, rng.normal(g, B),
                                      rng.normal(g, B, O), rng.uniform(g, B) < 0.2)))
        for _ in range(n)
    ]  # fmt: skip


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def critic(seeds=(0,), n_obs=O, n_act=A, width=8, activation=F.elu, members=2):
    streams = rng.generators(seeds, "test")
    return nets.Critic(n_obs, n_act, (width, width), streams, members, activation).double()


def agent(seeds=(0,), **kw):
    return s2ac.Config(**{**SMALL, **kw}).build(O, A, list(seeds)).double()


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
    batch, alpha = batches([0], 1, torch.float64)[0], torch.tensor([0.2]).double()
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
    start = sp.cut_normal(rng.uniform(rng.generators([4], "z"), 3, M, A), 3.0)
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


# --- the update


class Plain:
    """One seed of S2AC as the algorithm is written down: autograd for every gradient, all pairs in one array."""

    def __init__(self, agent, s):
        pick = lambda net: [p[s].detach().clone() for p in net.parameters()]  # noqa: E731
        self.cfg, self.noise = agent.config, agent.noise[s]
        self.start, self.critic = ([p.requires_grad_() for p in pick(n)] for n in (agent.start, agent.critic))
        self.target, self.sampler = pick(agent.target), []
        self.opts = [torch.optim.Adam(self.critic, lr=1e-3)]
        self.opts += [torch.optim.Adam(self.start, lr=1e-3)] if self.start else []
        if agent.amortised:
            self.sampler = [p.requires_grad_() for p in pick(agent.amortised)]
            self.opts += [torch.optim.Adam(self.sampler, lr=1e-3)]

    @staticmethod
    def mlp(p, x, act=F.elu):
        for w, b in zip(p[:-2:2], p[1:-2:2], strict=True):
            x = act(x @ w + b)
        return x @ p[-2] + p[-1]

    def q(self, p, obs, action):
        x = torch.cat((obs[:, None].expand(*action.shape[:2], O), action), -1)  # [B, M, O+A]
        return torch.minimum(*(self.mlp([w[e] for w in p], x).squeeze(-1) for e in range(2)))

    def law(self, obs):
        if self.cfg.start == "none":
            return torch.zeros(len(obs), A).double(), torch.full((len(obs), A), 0.5).double(), torch.eye(A).double()
        out = self.mlp(self.start, obs)
        n = 1 if self.cfg.start == "isotropic" else A
        std = out[:, A : A + n].exp().clamp(0.1, 1.0).expand(-1, A)
        lower = torch.eye(A).double().repeat(len(obs), 1, 1)
        if self.cfg.start == "full":
            lower = lower + F.pad(out[:, -1:, None].tanh(), (0, 1, 1, 0))
        return out[:, :A], std, lower

    def log_p(self, obs, u):
        q = self.q(self.critic, obs, u if self.cfg.score_at == "raw" else u.tanh())
        q = q / (self.cfg.alpha if self.cfg.score_temp == "alpha" else 1)
        return q + torch.log(1 - u.tanh() ** 2).sum(-1) if self.cfg.score_at == "density" else q

    def sigma2(self, d):
        if self.cfg.sigma:
            return torch.full_like(d[:, :1, :1], self.cfg.sigma**2)
        flat = d.detach().flatten(1)
        size = flat.median(1).values if self.cfg.bandwidth == "median" else flat.mean(1) / 2
        return (size / (2 * math.log(M + 1))).clamp(min=self.cfg.sigma_floor**2)[:, None, None]

    def sample(self, obs):
        cfg = self.cfg
        if cfg.truncation == "none":
            z = torch.empty(B, M, A).normal_(generator=self.noise).double()
        else:
            z = sp.cut_normal(torch.empty(B, M, A).uniform_(generator=self.noise).double(), 3.0)
        mean, std, lower = self.law(obs)
        t = torch.diag_embed(std) @ lower
        u = mean[:, None] + (t[:, None] @ z[..., None]).squeeze(-1)
        log_q = torch.distributions.MultivariateNormal(mean[:, None], scale_tril=t[:, None]).log_prob(u)
        log_q = log_q - (0 if cfg.truncation == "none" else A * math.log(math.erf(3 / math.sqrt(2))))
        reach = 3 * (t @ t.mT).diagonal(dim1=1, dim2=2).sqrt()[:, None] + 1e-4
        stay = ((u - mean[:, None]).abs() <= reach).all(-1)
        others = 1 - torch.eye(M).double()
        for _ in range(cfg.svgd_steps):
            u = u if u.requires_grad else u.requires_grad_()
            (s,) = torch.autograd.grad(self.log_p(obs, u).sum(), u, create_graph=True)
            r = u[:, :, None] - u[:, None]  # [B, M, M, A]
            d = r.square().sum(-1)
            sigma2 = self.sigma2(d)
            kernel = torch.exp(-d / (2 * sigma2))
            bracket = kernel * (A - d / sigma2 - (r * s[:, None]).sum(-1)) * others / sigma2
            trace = bracket.sum(2) / (M if cfg.norm == "m" else M - 1)
            trace = trace + (A / (M * sigma2.squeeze(2)) if cfg.self_kernel else 0)
            if cfg.hessian:
                v = 2.0 * (torch.empty(B, M, A).uniform_(generator=self.noise) < 0.5) - 1
                (hv,) = torch.autograd.grad((s * v).sum(), u, create_graph=True)
                trace = trace + (hv * v).sum(-1) / M
            sigma = sigma2[:, 0, 0].sqrt()
            bound = math.exp(-0.5) * s.detach().norm(dim=-1).mean(1) / sigma + 1 / sigma**2
            eps = (cfg.step_cap / bound).clamp(max=cfg.svgd_lr) if cfg.step_cap else torch.full_like(bound, cfg.svgd_lr)
            log_q = log_q - eps[:, None] * trace
            u = u + eps[:, None, None] * (kernel[..., None] * (s[:, None] + r / sigma2[..., None])).mean(2)
            stay = stay & ((u - mean[:, None]).abs() <= reach).all(-1)
        stay = stay if cfg.truncation == "select" else torch.ones_like(stay)
        return u, log_q - torch.log(1 - u.tanh() ** 2).sum(-1), (stay | ~stay.any(1, keepdim=True)).double()

    def value(self, p, obs, u, log_pi, weight):
        return (weight * (self.q(p, obs, u.tanh()) - self.cfg.alpha * log_pi)).sum(1) / weight.sum(1)

    def step(self, opt, loss, params):
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.grad = g
        opt.step()

    def update(self, batch):
        obs, action, reward, next_obs, terminated = batch
        opts = iter(self.opts)
        y = reward + 0.99 * (1 - terminated) * self.value(self.target, next_obs, *self.sample(next_obs)).detach()
        loss = sum(F.mse_loss(self.both(obs, action)[e], y) for e in range(2))
        self.step(next(opts), loss, self.critic)
        if self.start:
            u, log_pi, weight = self.sample(obs)
            self.step(next(opts), -self.value(self.critic, obs, u, log_pi, weight).mean(), self.start)
        if self.sampler:
            b = self.actions(obs)
            a = self.actions(obs) if self.cfg.amortised_by == "own" else self.sample(obs)[0].tanh()
            a = a.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.q(self.critic, obs, a).sum() / self.cfg.alpha, a)
            near = pairs(b.detach(), a.detach(), "half-mean", self.cfg.sigma_floor)
            phi = velocity(near, b.detach(), a.detach(), g)
            self.step(next(opts), -(b * phi).sum(-1).mean(), self.sampler)
        for t, p in zip(self.target, self.critic, strict=True):
            t.mul_(0.995).add_(0.005 * p.detach())

    def actions(self, obs):
        z = torch.empty(B, M, A).normal_(generator=self.noise)
        return self.mlp(self.sampler, torch.cat((obs[:, None].expand(B, M, O), z), -1)).tanh()

    def both(self, obs, action):
        return [self.mlp([w[e] for w in self.critic], torch.cat((obs, action), -1)).squeeze(-1) for e in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_the_algorithm_as_written_seed_by_seed(variant):
    a = agent((1, 3), **VARIANTS[variant])
    plain, data, states = [Plain(a, s) for s in range(2)], batches([1, 3], 3, torch.float64), rng.save(a.noise)
    for batch in data:
        info = a.update(batch)
    assert all(x.shape == (2,) and torch.isfinite(x).all() and not x.requires_grad for x in info.values())
    rng.restore(a.noise, states)
    for s, p in enumerate(plain):
        for batch in data:
            p.update(Batch(*(x[s] for x in batch)))
        pairs_of = [(a.critic, p.critic), (a.target, p.target), (a.start, p.start)]
        for net, mine in [*pairs_of, (a.amortised, p.sampler)] if a.amortised else pairs_of:
            for ours, theirs in zip(net.parameters(), mine, strict=True):
                torch.testing.assert_close(ours[s], theirs, atol=1e-6, rtol=1e-5)


class NothingReadBack(TorchDispatchMode):
    """Fails where a value of a tensor reaches Python, or a shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [*VARIANTS, "SQL", "SQL as released"])
def test_an_update_reads_nothing_back_from_the_device(variant):
    a = agent(**VARIANTS[variant]) if variant in VARIANTS else None
    if a is None:
        a = sql.Config(width=16, batch=B, **(sql.RELEASE if "released" in variant else {})).build(O, A, [0]).double()
    batch = batches([0], 1, torch.float64)[0]
    a.opts = {name: torch.optim.SGD(opt.param_groups[0]["params"], lr=0.1) for name, opt in a.opts.items()}
    with NothingReadBack():
        a.update(batch)
        with pytest.raises(AssertionError):
            batch.reward[0, 0].item()


@pytest.mark.filterwarnings("ignore:SVGD")
@pytest.mark.parametrize("variant", ["paper", "capped"])
def test_a_seed_learns_the_same_alone_and_among_others(variant):
    alone, among = agent([3], **VARIANTS[variant]), agent([1, 3, 5], **VARIANTS[variant])
    for a, b in zip(batches([3], 3, torch.float64), batches([1, 3, 5], 3, torch.float64), strict=True):
        info_a, info_b = alone.update(a), among.update(b)
    for x, y in zip(alone.parameters(), among.parameters(), strict=True):
        torch.testing.assert_close(x[0], y[1], atol=1e-6, rtol=1e-5)
    for name in info_a:
        torch.testing.assert_close(info_a[name][0], info_b[name][1], atol=1e-5, rtol=1e-5)
    obs = numbers(0, 1, 7, O)
    torch.testing.assert_close(alone.act(obs)[0], among.act(obs.expand(3, -1, -1))[1], atol=1e-6, rtol=1e-5)


def test_restored_agent_goes_on_exactly():
    first, data = agent((0, 1), amortised=True), batches((0, 1), 4, torch.float64)
    first.update(data[0])
    saved = copy.deepcopy(agents.save(first))
    second = agent((0, 1), amortised=True)
    for batch in data[1:]:
        first.update(batch)
    agents.restore(second, saved)
    for batch in data[1:]:
        second.update(batch)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


def test_each_optimiser_moves_its_own_network_alone():
    a, batch = agent((0,), amortised=True), batches((0,), 1, torch.float64)[0]
    nets_of = {"critic": a.critic, "start": a.start, "amortised": a.amortised}
    assert set(a.opts) == set(nets_of)
    for moving in nets_of:
        twin = copy.deepcopy(a)
        for name, opt in twin.opts.items():
            opt.param_groups[0]["lr"] = 1e-3 if name == moving else 0.0
        twin.opts = {
            name: torch.optim.SGD(getattr(twin, name).parameters(), lr=1e-2 * (name == moving)) for name in a.opts
        }
        twin.update(batch)
        for name, net in nets_of.items():
            same = [torch.equal(p, q) for p, q in zip(net.parameters(), getattr(twin, name).parameters(), strict=True)]
            assert not all(same) if name == moving else all(same)
    assert "start" not in agent(start="none").opts


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


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        (dict(particles=1), "at least two particles"),
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
    s2ac.Config(particles=1, self_kernel=True)
    s2ac.Config(amortised=True, evaluate="amortised")
    s2ac.Config(**s2ac.RELEASE)
