"""Matrix products by oneDNN, and what a CUDA graph asks of an update, seen on a CPU: every operation is looked at."""

import contextlib
import importlib
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from agent_checks import random_batches
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softpolicy import agents
from softpolicy import streams as rng
from softpolicy.device import Product, captured
from softpolicy.replay import Replay

SEEDS = [0, 1, 2]
TINY = {"width": 16, "batch": 8}
SETTINGS = {"lsac": dict(diffusion_width=16, diffusion_steps=2, n_synth=32, refit_every=4, capacity=100)}
READ_BACK = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "lift_fresh", "bincount"}
READ_BACK |= {"unique_consecutive", "unique_dim", "repeat_interleave", "linalg_inv_ex", "linalg_cholesky_ex"}
CHOICES = {"index", "index_put", "index_put_", "_index_put_impl_"}
MASKS = torch.bool, torch.uint8


class Calls(TorchFunctionMode):
    """Collects calls that bring a tensor to the CPU; where it is there already they do nothing that could be seen."""

    def __init__(self, found: set):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu", "__array__"):
            self.found.add(func.__name__)
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Collects the operations that no graph can hold: those that wait for a number, choose by a mask (their shape
    depends on data), or make a tensor from Python's numbers or without saying on which device. What a CPU does not do
    cannot be seen: branches for a GPU, and memory that a graph would go on reading."""

    def __init__(self):
        super().__init__()
        self.found, self.unnamed = set(), torch.device("meta")  # where tensors go whose device is not named
        self.calls = Calls(self.found)

    def __enter__(self):
        self.unnamed.__enter__()
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.calls.__exit__(*error)
        self.unnamed.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        by_mask = name in CHOICES and any(x.dtype in MASKS for x in tree_leaves(args[1]) if x is not None)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        anywhere = kwargs.get("device") == self.unnamed or any(x.device == self.unnamed for x in tensors)
        if name in READ_BACK or by_mask or anywhere:
            self.found.add(str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "wrong",
    [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.index_put((x > 0,), x),
     lambda x: torch.zeros(3), lambda x: torch.arange(3.0), lambda x: torch.tensor([1.0], device=x.device),
     lambda x: torch.as_tensor([1.0]).sum(), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu(),
     lambda x: x.long().bincount(), lambda x: x.unique(), lambda x: torch.linalg.inv(x[:, None] * x + 2 * x.diag())],
)  # fmt: skip
def test_what_no_graph_can_hold_is_seen(wrong):
    x = torch.ones(3)
    with Watch() as watch:
        (x * 2).clamp(max=1)[torch.arange(3, device=x.device)]
    assert not watch.found
    with watch:
        wrong(x)
    assert watch.found


def test_nothing_is_captured_on_a_cpu_or_where_that_is_asked_for(monkeypatch):
    monkeypatch.delenv("SOFTPOLICY_EAGER", raising=False)
    update = lambda: {}  # noqa: E731
    assert captured(update, SimpleNamespace(device="cpu")) is update
    assert captured(update, SimpleNamespace(device="cuda:0")) is not update
    monkeypatch.setenv("SOFTPOLICY_EAGER", "1")
    assert captured(update, SimpleNamespace(device="cuda:0")) is update


class FakeGraph:
    """A graph that holds what ran while it was captured."""

    capturing = None

    made = []

    def __init__(self):
        self.work, self.registered = [], []
        self.made.append(self)

    def register_generator_state(self, g):
        self.registered.append(g)

    def replay(self):
        for work in self.work:
            work()


@contextlib.contextmanager
def fake_capture(graph, stream):
    FakeGraph.capturing, graph.stream = graph, stream
    try:
        yield
    finally:
        FakeGraph.capturing = None


@pytest.fixture
def fake_cuda(monkeypatch):
    make_stream = lambda: SimpleNamespace(wait_stream=lambda other: None)  # noqa: E731
    monkeypatch.delenv("SOFTPOLICY_EAGER", raising=False)
    monkeypatch.setattr("softpolicy.device.REGISTER", True)
    monkeypatch.setattr(FakeGraph, "made", [])
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", make_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", make_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fake_capture)


def test_each_phase_is_run_three_times_then_captured_once_and_replayed(fake_cuda):
    """With a GPU's part acted: what is captured does not run, and runs at each replay. Every call is one update."""
    agent = SimpleNamespace(phase=0, noise=["noise"])
    loop = SimpleNamespace(device="cuda", agent=agent, streams={"sample": ["sample"]})
    done, metrics, broken = [], {}, [True]

    def update():
        phase, graph = agent.phase, FakeGraph.capturing
        if graph and broken and broken.pop():
            raise RuntimeError("not while capturing")
        if graph:
            graph.work.append(lambda: done.append((phase, "replayed")))
        else:
            done.append((phase, "eager"))
        return metrics.setdefault((phase, bool(graph)), {})

    step = captured(update, loop)
    for call in range(14):
        agent.phase = call % 2
        if call == 6:  # the first capture fails: nothing of it is kept
            with pytest.raises(RuntimeError, match="not while capturing"):
                step()
        assert step() is metrics[agent.phase, call >= 6]
    assert done == [(k % 2, "eager" if k < 6 else "replayed") for k in range(14)]
    _, *kept = FakeGraph.made
    assert len(kept) == 2 and all(g.registered == ["sample", "noise"] for g in kept)


def test_each_captured_update_has_a_stream_of_its_own(fake_cuda):
    loop = SimpleNamespace(device="cuda", agent=SimpleNamespace(noise=[]), streams={"sample": []})
    for step in (captured(dict, loop), captured(dict, loop)):
        for _ in range(5):
            step()
    first, second = FakeGraph.made
    assert first.stream is not second.stream


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(agents.__path__)])
def test_an_update_waits_for_nothing(name):
    config = importlib.import_module(f"softpolicy.agents.{name}").Config(**TINY | SETTINGS.get(name, {}))
    agent, replay, streams = config.build(5, 2, SEEDS), Replay(100, len(SEEDS), 5, 2), rng.generators(SEEDS, "sample")
    (b,) = random_batches(SEEDS, 1, 50)
    replay.add(b.obs, b.action, b.reward[..., None], b.next_obs, b.terminated[..., None])
    for _ in range(6):  # both phases of an agent that has them, before and after a fit
        if hasattr(agent, "prepare"):
            agent.prepare(replay)
        with Watch() as watch:
            metrics = agent.update(replay.sample(getattr(config, "transitions", config.batch), streams))
        assert not watch.found
        assert {x.shape for x in metrics.values()} == {(len(SEEDS),)}


@pytest.mark.parametrize("shape", [(3, 130, 7, 5), (2, 128, 1, 1), (2, 5, 7, 130)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wide_cpu", [True, False])
def test_the_product_and_its_first_and_second_derivatives(monkeypatch, shape, bias, wide_cpu):
    monkeypatch.setattr("softpolicy.device.WIDE", wide_cpu)
    n, rows, n_in, n_out = shape
    g = torch.Generator().manual_seed(0)
    sizes = (n, rows, n_in), (n, n_in, n_out), (n, 1, n_out), (n, rows, n_in)
    x, w, b, v = (torch.randn(*size, generator=g) for size in sizes)

    def derivatives(product, dtype):
        a, c, d = (t.to(dtype).requires_grad_() for t in (x, w, b))
        y = product(a, c, *([d] if bias else []))
        inputs = [a, c, d] if bias else [a, c]
        first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        return y, *first, *torch.autograd.grad((first[0] * v.to(dtype)).sum(), inputs)

    plain = lambda a, c, d=None: a @ c if d is None else a @ c + d  # noqa: E731
    for got, exact in zip(derivatives(Product.apply, torch.float32), derivatives(plain, torch.float64), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)
