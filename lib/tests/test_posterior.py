"""The law that Langevin optimisers sample, against closed forms, and the problems whose posterior is known exactly."""

import math

import pytest
import torch
from scipy import integrate

from softpolicy import optim, samplers
from softpolicy import posterior as po
from softpolicy import streams as rng


def chain(theta, gradient, steps, **kw):
    """theta `[S, n, d]`, one network a chain, after `steps` steps."""
    theta = theta.clone()
    opt = optim.AdaptiveLangevin([theta], rng.generators(range(len(theta)), "noise"), lead=2, **kw)
    for _ in range(steps):
        optim.follow(opt, [1 * gradient(theta)])  # a tensor cannot be its own gradient
    return theta


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


# --- the law that is sampled


def close(measured, exact, error, allowed=0.0):
    """Within four standard errors, and a share `allowed` of the exact value."""
    assert ((measured - exact).abs() <= 4 * error + allowed * exact.abs()).all(), (measured, exact)


@pytest.mark.parametrize(("eta", "clip", "steps"), [(0.01, 0, 600), (0.1, 0, 100), (0.05, 0.7, 1_500)])
def test_sgld_on_a_quadratic(eta, clip, steps):
    """Variance 1 / (1 - eta / 2). Clipping the gradient makes the potential linear beyond 0.7: by quadrature, 4.2."""
    exact = 1 / (1 - eta / 2)
    if clip:
        p = lambda x: math.exp(-(x * x / 2 if x < clip else clip * x - clip**2 / 2))  # noqa: E731
        mass, second = (integrate.quad(lambda x, k=k: x**k * p(x), 0, math.inf)[0] for k in (0, 2))
        exact = second / mass
        assert exact == pytest.approx(4.2, abs=0.05)
    x = chain(zeros(1, 20_000, 1), lambda x: x, steps, lr=eta, bias=0.0, noise=1.0, clip=clip)
    assert x.var().item() == pytest.approx(exact, abs=0.2 if clip else 0.03)


H = torch.tensor([[2.0, 1.2], [1.2, 1.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gaussian(kw, steps, noise):
    """Mean, covariance and number of chains that ran in U = (x - MEAN) H (x - MEAN) / 2."""
    start = noise * torch.randn(2, 5_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + MEAN
    x = chain(start, lambda x: (x - MEAN) @ H, steps, noise=noise, clip=0, **kw).view(-1, 2)
    return x.mean(0), (x - MEAN).T @ (x - MEAN) / len(x), len(x)


@pytest.mark.parametrize(("lr", "noise"), [(0.05, 1.0), (0.3, 1.0), (0.3, 0.2)])
def test_sgld_has_the_mean_and_the_covariance_of_the_discretised_chain(lr, noise):
    mean, covariance, n = gaussian(dict(lr=lr, bias=0.0), 300, noise)
    exact = noise**2 * torch.linalg.inv(H - lr * H @ H / 2)
    var = exact.diagonal()
    close(mean, MEAN, (var / n).sqrt())
    close(covariance, exact, ((var[:, None] * var + exact**2) / n).sqrt())


@pytest.mark.parametrize("lr", [0.02, 0.25])
def test_psgld_has_the_law_of_a_constant_preconditioner(lr):
    """G settles at 1 / sqrt(E g^2), which depends on the law; the rest of its fluctuation is allowed 3 %."""
    mean, covariance, n = gaussian(dict(lr=lr, preconditioned=True, betas=(0.9, 0.9995)), 1_500, 1.0)
    exact = torch.linalg.inv(H)
    for _ in range(50):
        root = (H @ exact @ H).diagonal() ** -0.25  # of G
        k = root[:, None] * H * root
        exact = root[:, None] * torch.linalg.inv(k - lr * k @ k / 2) * root
    var = exact.diagonal()
    close(mean, MEAN, (var / n).sqrt())
    close(covariance, exact, ((var[:, None] * var + exact**2) / n).sqrt(), allowed=0.03)
    assert (lr < 0.1) == ((exact - torch.linalg.inv(H)).abs() < 0.05 * exact.abs()).all()


@pytest.mark.parametrize(("a", "s"), [(1.0, 1.0), (3.0, 1.0), (1.0, 0.3)])
def test_bias_term_narrows_the_law(a, s):
    """On x^2 / 2 the drift is (1 + a / sd) x, sd^2 = v the variance itself: sd = (sqrt(a^2 + 4 s^2) - a) / 2 for small
    steps, the golden ratio for a = s = 1; with the step, var = s^2 / (K (1 - lr K / 2)), K = 1 + a / sd."""
    sd = (math.sqrt(a**2 + 4 * s**2) - a) / 2
    lr = 0.06 / (1 + a / sd)
    x = chain(zeros(1, 4_000, 1), lambda x: x, 6_000, lr=lr, bias=a, noise=s, clip=0, betas=(0, 0.999))
    assert x.std().item() == pytest.approx(sd / math.sqrt(1 - 0.03), rel=0.04)


# --- the regression


PROBLEM = po.gap_data(torch.Generator().manual_seed(0))


def energy(theta, problem=PROBLEM):
    """U of one theta `[d]`, as a posterior is written."""
    error = problem.y - problem.phi @ theta
    return error.square().sum() / (2 * po.NOISE**2) + theta.square().sum() / 2


def test_regression_is_the_posterior_of_its_energy():
    torch.testing.assert_close(torch.autograd.functional.hessian(energy, PROBLEM.mean), PROBLEM.precision)
    everything = torch.arange(40)
    for theta in (PROBLEM.mean, torch.linspace(-1, 1, 8, dtype=torch.float64)):
        exact = torch.autograd.functional.jacobian(energy, theta)
        torch.testing.assert_close(PROBLEM.gradient(theta, everything), exact, atol=1e-9, rtol=1e-9)
    assert torch.autograd.functional.jacobian(energy, PROBLEM.mean).abs().max() < 1e-9
    root = torch.linalg.cholesky(PROBLEM.precision.inverse())
    band = (po.features(torch.tensor([-0.7, 0.0, 0.7], dtype=torch.float64)) @ root).norm(dim=1)
    assert band[1] > 4 * band[0] and band[1] > 4 * band[2]


def test_features_are_bumps():
    f = po.features(po.BUMPS)
    assert (f.argmax(1) == torch.arange(8)).all() and (f.diagonal() == 1).all()
    assert po.features(zeros(2, 3)).shape == (2, 3, 8)


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_gradients_are_unbiased_and_have_the_stated_covariance(batch):
    """Over all rows, and over 2 d points theta with the given mean and covariance: exact for quadratics."""
    sigma = 0.1 * PROBLEM.precision.inverse() + 0.02 * torch.eye(8)
    root = math.sqrt(8) * torch.linalg.cholesky(sigma).T
    points = PROBLEM.mean + torch.cat((root, -root))  # [16, d]
    each = PROBLEM.gradient(points[:, None], torch.arange(40)[:, None])  # [16, 40, d]
    full = (points - PROBLEM.mean) @ PROBLEM.precision
    torch.testing.assert_close(each.mean(1), full, atol=1e-9, rtol=1e-9)
    error = (each - full[:, None]).reshape(-1, 8)
    torch.testing.assert_close(PROBLEM.batch_covariance(sigma, batch), error.T @ error / len(error) / batch)


def test_langevin_covariance_is_stationary():
    h, lr = PROBLEM.precision, 0.004
    extra = PROBLEM.batch_covariance(h.inverse(), 4)
    for e in (None, extra):
        sigma, keep = po.langevin_covariance(h, lr, e), torch.eye(8) - lr * h
        after = keep @ sigma @ keep + 2 * lr * torch.eye(8) + (0 if e is None else lr**2 * e)
        torch.testing.assert_close(after, sigma)
    torch.testing.assert_close(po.langevin_covariance(h, 1e-9), h.inverse())
    torch.testing.assert_close(po.langevin_covariance(h, lr), torch.linalg.inv(h - lr * h @ h / 2))
    torch.testing.assert_close(po.sgld_covariance(PROBLEM, lr, 10**9), po.langevin_covariance(h, lr))
    for lr in (0.0, 2.01 / torch.linalg.eigvalsh(h)[-1]):
        with pytest.raises(ValueError, match="for a stationary law"):
            po.langevin_covariance(h, float(lr))
    with pytest.raises(ValueError, match="smaller lr"):
        po.sgld_covariance(PROBLEM, 0.006, 1)


def test_sgld_with_batches_has_its_stationary_covariance():
    lr, batch, n = 2e-3, 8, 2_000
    rows = rng.generators([0], "rows")
    root = torch.linalg.cholesky(PROBLEM.precision.inverse())
    z = torch.randn(1, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = lambda x: PROBLEM.gradient(x, (rng.uniform(rows, n, batch) * 40).long())  # noqa: E731
    x = chain(PROBLEM.mean + z @ root.T, gradient, 400, lr=lr, bias=0.0, noise=1.0, clip=0)[0] - PROBLEM.mean
    exact = po.sgld_covariance(PROBLEM, lr, batch)
    values, vectors = torch.linalg.eigh(exact)
    ratio = (x @ vectors).square().mean(0) / values
    assert (ratio - 1).abs().max() < 4 * math.sqrt(3 / n)  # tails are a little heavier than a Gaussian's
    assert values[0] > 1.5 * torch.linalg.eigvalsh(po.langevin_covariance(PROBLEM.precision, lr))[0]


# --- the goal


def test_goal_posterior_is_prior_times_likelihood():
    theta = torch.tensor([[0.3, 0.5], [-0.2, 0.1]], dtype=torch.float64)
    for t, value in zip(theta, po.log_goal(theta), strict=True):
        log_p = -(t @ t) / (2 * 0.6**2)
        for a, y in zip(po.PROBES, po.READINGS, strict=True):
            q = math.exp(-((a[0] - t[0]) ** 2 + (a[1] - t[1]) ** 2) / (2 * 0.4**2))
            assert po.goal_value(t, a).item() == pytest.approx(q)
            log_p = log_p - (y - q) ** 2 / (2 * 0.07**2)
        assert value.item() == pytest.approx(log_p.item())


def test_goal_has_two_modes_of_known_weight_and_a_barrier():
    theta, p = po.goal_grid(200)
    _, fine = po.goal_grid(500)
    weight = p[po.upper(theta)].sum()
    assert p.sum().item() == pytest.approx(1)
    assert fine[po.upper(po.goal_grid(500)[0])].sum().item() == pytest.approx(weight.item(), abs=1e-5)
    inner = p[1:-1, 1:-1]
    around = torch.nn.functional.max_pool2d(p[None, None], 3, 1)[0, 0]
    modes = theta[1:-1, 1:-1][(inner == around) & (inner > 1e-6 * p.max())]
    assert len(modes) == 2 and (po.upper(modes).sum() == 1)
    still = samplers.with_gradient(po.log_goal, modes)[1].norm(dim=1)
    assert (still < 15).all()  # the grid's spacing times a curvature of some hundreds
    crossing = p[(theta[..., 1] - 0.1).abs() < 0.01].max()
    assert crossing < 1e-4 * p[~po.upper(theta)].max()
