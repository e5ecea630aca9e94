"""LSAC's second replay: transitions that a diffusion model generates from the first (arXiv 2501.17827, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softpolicy import diffusion
from softpolicy import streams as rng
from softpolicy.replay import Replay


class Synthetic:
    """The synthetic buffer of S seeds and the diffusion model behind it, refitted from scratch now and then.

    `config` is that of `agents.lsac`. Without diffusion the buffer holds copies of the real transitions, so that what
    refinement does to them can be seen by itself.
    """

    def __init__(self, config, n_obs: int, n_act: int, seeds, device="cpu"):
        self.config, self.copied = config, 0
        self.streams = rng.generators(seeds, "diffusion", device=device)
        capacity = config.synthetic_capacity if config.mix or config.leak else 1  # otherwise nothing enters it
        self.data = Replay(capacity, len(seeds), n_obs, n_act, device)
        self.generated = torch.zeros(len(seeds), device=device)  # share of generated ones among all that entered
        self.added = 0  # generated transitions so far

    def follow(self, replay: Replay, updates: int, improve: Callable) -> None:
        """Copy what is new in `replay` if settings say so; refit and generate when `updates` is a multiple of
        `refit_every`. `improve(obs, action, coin)` refines new actions."""
        cfg = self.config
        if cfg.copies or not cfg.diffusion:
            first = max(self.copied, replay.added - min(replay.capacity, self.data.capacity))
            rows = replay.rows[:, torch.arange(first, replay.added, device=replay.rows.device) % replay.capacity]
            self.data.add(*rows.split(self.data.widths, -1))
            self.copied = replay.added
        if cfg.diffusion and updates % cfg.refit_every == 0:
            obs, action, *rest = self.generate(self.fit(replay), cfg.n_synth)
            action = improve(obs, action, rng.uniform(self.streams, 1).squeeze(1))
            self.data.add(obs, action, *rest)
            self.added += cfg.n_synth
        if self.data.added:
            self.generated.fill_(self.added / self.data.added)

    def fit(self, replay: Replay) -> diffusion.Model:
        """A new diffusion model of the real transitions; the terminated flags are not normalised."""
        cfg = self.config
        training = diffusion.Training(
            cfg.diffusion_width, cfg.diffusion_blocks, cfg.diffusion_steps, lr=cfg.diffusion_lr,
            average_every=cfg.average_every,
        )  # fmt: skip
        rows = replay.rows[:, : min(replay.added, replay.capacity)]
        return diffusion.fit(rows, self.streams, training, diffusion.EDM(s_churn=cfg.churn), keep=(-1,))

    def generate(self, model: diffusion.Model, n: int) -> tuple[Tensor, ...]:
        """n transitions a seed as `Replay.add` takes them: actions in the box, ends 0 or 1."""
        rows = diffusion.generate(model, n, self.streams, self.config.sampler_steps)
        return diffusion.transitions(rows, self.data.widths)

    def save(self) -> dict:
        """Everything that the buffer continues from, as tensors and plain data."""
        return {"data": self.data.save(), "copied": self.copied, "added": self.added,
                "share": self.generated.clone(), "streams": rng.save(self.streams)}  # fmt: skip

    def restore(self, state: dict) -> None:
        """Take back what `save` gave."""
        self.data.restore(state["data"])
        self.copied, self.added = state["copied"], state["added"]
        self.generated.copy_(state["share"])
        rng.restore(self.streams, state["streams"])
