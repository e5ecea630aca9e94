"""What makes an update fast on its device: on a GPU a CUDA graph, on a CPU memory that is kept and quick products."""

from __future__ import annotations

import ctypes
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


class Product(torch.autograd.Function):
    """`x @ w + b` for constant w `[N, in, out]` and b `[N, 1, out]` or None, x `[N, n, in]`; differentiable in x, any
    number of times.

    On a CPU in float32 by oneDNN, which uses all of a CPU where torch's own product (MKL's) may not: on AMD's with
    AVX-512 it is twice as fast, from about a hundred rows on.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(w)
        if ONEDNN is None or x.is_cuda or x.dtype != torch.float32 or x.shape[1] < 128:
            return x @ w if b is None else torch.baddbmm(b, x, w)
        biases = [None] * len(w) if b is None else b.squeeze(1)
        rows = zip(x, w.transpose(1, 2), biases, strict=True)
        return torch.stack([ONEDNN(x, w, b, "none", [], "") for x, w, b in rows])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (w,) = ctx.saved_tensors
        return Product.apply(grad, w.transpose(1, 2)), None, None


def captured(update: Callable[[], dict], loop, eager_calls: int = 3) -> Callable[[], dict]:
    """`update` itself on a CPU; on a GPU a function that runs it eagerly a few times, then captures and replays it.

    `update` must have static shapes, keep its state in place and read nothing back from the device. Generators it
    draws from are found in `loop.streams` and `loop.agent.noise`. The next call overwrites the returned metrics.
    """
    if torch.device(loop.device).type != "cuda":
        return update
    state = {"calls": 0}

    def step() -> dict:
        with torch.cuda.device(loop.device):  # streams and graphs belong to the current device
            state["calls"] += 1
            if state["calls"] <= eager_calls:
                return _on_side_stream(update)
            if "graph" not in state:
                state["graph"] = torch.cuda.CUDAGraph()
                for g in [*loop.streams["sample"], *loop.agent.noise]:
                    state["graph"].register_generator_state(g)
                with torch.cuda.graph(state["graph"]):
                    state["metrics"] = update()
            state["graph"].replay()
            return state["metrics"]

    return step


def _on_side_stream(update):
    """Warm-up calls run on a stream of their own, as graph capture wants."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        metrics = update()
    torch.cuda.current_stream().wait_stream(side)
    return metrics
