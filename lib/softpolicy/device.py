"""What makes an update fast on its device: on a GPU a CUDA graph, on a CPU memory that is kept and quick products."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


def keep_memory() -> None:
    """Ask glibc to keep freed memory in the process: a loop that allocates the same megabytes at every update would
    otherwise give them back and fault them in again. Does nothing where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, at its maximum


ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
REGISTER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)  # a graph finds generators itself from 2.14 on
EAGER_CALLS = 3  # of each phase, before it is captured
WIDE = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # where oneDNN is the faster of the two


class Product(torch.autograd.Function):
    """`x @ w + b` for x `[N, n, in]`, w `[N, in, out]` and b `[N, 1, out]` or None, differentiable any number of times.

    On a CPU with AVX-512 in float32 by oneDNN, which uses all of it where torch's own product (MKL's) may not: on AMD's
    it is up to twice as fast, from about a hundred rows on. Without AVX-512 it is the slower one.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, w)
        if not WIDE or ONEDNN is None or x.is_cuda or x.dtype != torch.float32 or x.shape[1] < 128:
            return x @ w if b is None else torch.baddbmm(b, x, w)
        biases = [None] * len(w) if b is None else b.squeeze(1)
        rows = zip(x, w.transpose(1, 2), biases, strict=True)
        return torch.stack([ONEDNN(x, w, b, "none", [], "") for x, w, b in rows])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x, w), needed = ctx.saved_tensors, ctx.needs_input_grad
        dx = Product.apply(grad, w.transpose(1, 2)) if needed[0] else None
        dw = Product.apply(x.transpose(1, 2), grad) if needed[1] else None
        return dx, dw, grad.sum(1, keepdim=True) if any(needed[2:]) else None


def affine(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """`x @ w + b` as in `Product`, by whichever is faster: with AVX-512 `Product` from 256 units and a hundred rows on;
    for a single output on a CPU a sum of products, where MKL's way back takes ten times as long."""
    if WIDE and not x.is_cuda and x.shape[1] * w.shape[1] * w.shape[2] >= 1 << 23 and min(w.shape[1:]) >= 128:
        return Product.apply(x, w, b)
    if w.shape[2] == 1 and not x.is_cuda:
        y = (x * w.mT).sum(-1, keepdim=True)
        return y if b is None else y + b
    return x @ w if b is None else torch.baddbmm(b, x, w)


def captured(update: Callable[[], dict], loop) -> Callable[[], dict]:
    """`update` itself on a CPU; on a GPU a function that runs it eagerly a few times, then captures and replays it.

    `update` must have static shapes, keep its state in place and read nothing back from the device. Generators it
    draws from are those of `loop.streams["sample"]` and `loop.agent.noise`. An agent whose updates are not all alike
    has a `phase`, and each phase its own graph. The next call of a phase overwrites the returned metrics. With the
    environment variable SOFTPOLICY_EAGER nothing is captured.
    """
    if torch.device(loop.device).type != "cuda" or os.environ.get("SOFTPOLICY_EAGER"):
        return update
    calls, graphs, metrics, own = Counter(), {}, {}, []

    def step() -> dict:
        phase = getattr(loop.agent, "phase", None)
        with torch.cuda.device(loop.device):  # streams and graphs belong to the current device
            if not own:  # when a graph goes, torch frees the workspaces of all that were captured on its stream
                own.append(torch.cuda.Stream())
            calls[phase] += 1
            if calls[phase] <= EAGER_CALLS:
                return _on_stream(*own, update)
            if phase not in graphs:
                graph = torch.cuda.CUDAGraph()
                if REGISTER:
                    for g in [*loop.streams["sample"], *loop.agent.noise]:
                        graph.register_generator_state(g)
                with torch.cuda.graph(graph, stream=own[0]):
                    metrics[phase] = update()
                graphs[phase] = graph
            graphs[phase].replay()
            return metrics[phase]

    return step


def _on_stream(side, update):
    """Warm-up calls run on a stream other than torch's, as graph capture wants."""
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        metrics = update()
    torch.cuda.current_stream().wait_stream(side)
    return metrics
