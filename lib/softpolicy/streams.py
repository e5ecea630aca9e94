"""Random streams: one generator a seed and purpose, so that no seed's numbers depend on another's."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch


def derive(seed: int, *tags: int | str) -> int:
    """A 32-bit seed that depends on `seed` and every tag, e.g. `derive(3, "evaluation", 5000)`."""
    entropy = [seed, *(zlib.crc32(t.encode()) if isinstance(t, str) else t for t in tags)]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def generators(seeds, *tags: int | str, device="cpu") -> list[torch.Generator]:
    """One generator a seed, S in all, on `device`; equal seeds and tags give equal streams."""
    return [torch.Generator(device).manual_seed(derive(s, *tags)) for s in seeds]


def normal(streams: list[torch.Generator], *shape: int, dtype=torch.float32) -> torch.Tensor:
    """Standard normal numbers `[S, *shape]`, slice s drawn from stream s."""
    out = torch.empty(len(streams), *shape, dtype=dtype, device=streams[0].device)
    for row, stream in zip(out, streams, strict=True):
        row.normal_(generator=stream)
    return out


def uniform(streams: list[torch.Generator], *shape: int, dtype=torch.float32) -> torch.Tensor:
    """Numbers uniform in [0, 1), `[S, *shape]`, slice s drawn from stream s."""
    out = torch.empty(len(streams), *shape, dtype=dtype, device=streams[0].device)
    for row, stream in zip(out, streams, strict=True):
        row.uniform_(generator=stream)
    return out


def save(streams: list[torch.Generator]) -> list[torch.Tensor]:
    """The streams' states, as byte tensors."""
    return [g.get_state() for g in streams]


def restore(streams: list[torch.Generator], states: list[torch.Tensor]) -> None:
    """Put the streams back into saved states (states live on the CPU whatever the device)."""
    for g, state in zip(streams, states, strict=True):
        g.set_state(state.cpu())


def normals(streams: list[torch.Generator], *shape: int, dtype=torch.float32) -> Iterator[torch.Tensor]:
    """`normal(streams, *shape)` again and again: the noise of a chain of any length.

    Streams of equal seeds and tags are the same numbers underneath: what must be independent, such as the noise of
    a chain and the coins of its acceptance, needs tags of its own.
    """
    while True:
        yield normal(streams, *shape, dtype=dtype)


def uniforms(streams: list[torch.Generator], *shape: int, dtype=torch.float32) -> Iterator[torch.Tensor]:
    """`uniform(streams, *shape)` again and again."""
    while True:
        yield uniform(streams, *shape, dtype=dtype)


def of_rows(x: torch.Tensor) -> list[torch.Generator]:
    """A CPU generator for each row of `x` `[..., n]`, in order: equal rows give equal streams."""
    rows = x.detach().to("cpu", torch.float32).reshape(-1, x.shape[-1]).numpy()
    return [torch.Generator().manual_seed(zlib.crc32(row.tobytes())) for row in rows]
