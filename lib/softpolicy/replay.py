"""Replay: transitions of S seeds in one preallocated table, sampled uniformly with a stream for each seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softpolicy import streams as rng


class Batch(NamedTuple):
    """Transitions; the leading axes are `[S, B]`."""

    obs: Tensor  # [S, B, O]
    action: Tensor  # [S, B, A], in [-1, 1]
    reward: Tensor  # [S, B]
    next_obs: Tensor  # [S, B, O], the true last observation where an episode ended
    terminated: Tensor  # [S, B], 1 where the bootstrap stops; a time limit is not such an end


class Replay:
    """The last `capacity` transitions of each of S seeds, on `device`, as rows `[S, capacity, 2 O + A + 2]`.

    One row holds a whole transition, so that storing is one copy and sampling one gather.
    """

    def __init__(self, capacity: int, n_seeds: int, n_obs: int, n_act: int, device="cpu"):
        if capacity < 1:
            raise ValueError(f"replay capacity must be at least 1, got {capacity}")
        self.widths = (n_obs, n_act, 1, n_obs, 1)
        self.rows = torch.empty(n_seeds, capacity, sum(self.widths), device=device)
        self.capacity, self.added = capacity, 0
        self.size = torch.zeros((), dtype=torch.float64, device=device)  # read on the device, also inside a CUDA graph
        self.first = torch.arange(n_seeds, device=device)[:, None] * capacity  # row number of each seed's slot 0

    def add(self, obs, action, reward, next_obs, terminated) -> None:
        """Store N transitions a seed: arrays or tensors `[S, N, O], [S, N, A], [S, N, 1], [S, N, O], [S, N, 1]`."""
        as_row = (torch.as_tensor(x, dtype=torch.float32) for x in (obs, action, reward, next_obs, terminated))
        row = torch.cat(list(as_row), -1).to(self.rows.device, non_blocking=True)
        if row.shape[1] > self.capacity:
            raise ValueError(f"{row.shape[1]} transitions a seed at once do not fit into {self.capacity}")
        at = self.added % self.capacity
        fits = min(row.shape[1], self.capacity - at)
        self.rows[:, at : at + fits] = row[:, :fits]
        self.rows[:, : row.shape[1] - fits] = row[:, fits:]
        self.added += row.shape[1]
        self.size.fill_(min(self.added, self.capacity))

    def sample(self, batch: int, streams: list[torch.Generator]) -> Batch:
        """B transitions a seed, uniform with replacement; stream s chooses those of seed s."""
        return self.take(self.slots(batch, streams))

    def slots(self, batch: int, streams: list[torch.Generator]) -> Tensor:
        """Where B transitions a seed lie, `[S, B]`, uniform with replacement."""
        return (rng.uniform(streams, batch, dtype=torch.float64) * self.size).long()

    def take(self, slot: Tensor) -> Batch:
        """The transitions at `slot` `[S, B]`."""
        rows = self.rows.flatten(0, 1).index_select(0, (self.first + slot).flatten())
        obs, action, reward, next_obs, terminated = rows.view(*slot.shape, -1).split(self.widths, -1)
        return Batch(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))

    def put_actions(self, slot: Tensor, action: Tensor) -> None:
        """Replace the actions at `slot` `[S, B]` by `action` `[S, B, A]`; of a slot that occurs twice the later one
        stays, on CUDA in each coordinate any of them."""
        rows, (n_obs, n_act, *_) = self.rows.flatten(0, 1), self.widths
        at = (self.first + slot).flatten()[:, None].expand(-1, n_act)
        rows[:, n_obs : n_obs + n_act].scatter_(0, at, action.flatten(0, 1))  # unlike indexing, alike with many threads

    def save(self) -> dict:
        """What was stored so far, as plain data (a copy: saving a view would write the whole table)."""
        used = min(self.added, self.capacity)
        rows = torch.empty(len(self.rows), used, self.rows.shape[2])
        for saved, mine in zip(rows, self.rows, strict=True):  # no second copy of them all on the device
            saved.copy_(mine[:used])
        return {"added": self.added, "rows": rows}

    def restore(self, state: dict) -> None:
        """Take back what `save` gave; the capacity may have grown as long as no old row was overwritten."""
        used = state["rows"].shape[1]
        if state["rows"].shape[0::2] != self.rows.shape[0::2] or used > self.capacity:
            raise ValueError(f"saved replay {tuple(state['rows'].shape)} does not fit into {tuple(self.rows.shape)}")
        if used < min(state["added"], self.capacity):
            raise ValueError(f"a full replay of {used} rows a seed cannot grow to {self.capacity}; keep its capacity")
        for mine, saved in zip(self.rows, state["rows"], strict=True):  # no second copy of them all on the device
            mine[:used] = saved
        self.added = state["added"]
        self.size.fill_(used)
