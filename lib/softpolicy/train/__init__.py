"""The training loop, the only way an agent is trained: in a test, in a cell and at full scale.

Step t: act, update on what was stored before, step the environments, store. The update does not need step t's
transition, so that on a GPU it runs while the environments move. Command line: `python -m softpolicy.train --agent sac
--help`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import time

import pandas as pd
import torch

from softpolicy import agents, envs, runs
from softpolicy.device import keep_memory
from softpolicy.settings import size_of
from softpolicy.train.loop import Loop
from softpolicy.train.scales import DEMO, SCALES, at_scale

__all__ = ["DEMO", "SCALES", "Loop", "agent_of", "at_scale", "check", "train", "trained"]


def train(
    config,
    env_id: str,
    seeds: list[int],
    steps: int,
    out: str,
    *,
    n_envs: int = 1,
    warmup: int = 10_000,
    eval_every: int = 5_000,
    eval_episodes: int = 10,
    checkpoint_every: int = 20_000,
    device: str = "cpu",
    max_seconds: float = 0,
) -> pd.DataFrame:
    """Train `config`'s agent on `env_id`, one independent run a seed, and return the tidy rows of folder `out`.

    steps            environment steps of each seed, all its environments together
    n_envs           environments of each seed, stepped together, with one update for all of them: one update a step
                     with 1, one in five steps with 5
    warmup           steps of uniform actions without updates at the start (default: ten episodes, as in the authors'
                     code of SAC, `softlearning`)
    eval_every       evaluate at multiples of this step, after the warm-up: `eval_episodes` whole episodes a seed with
                     the agent's evaluation action, in environments of their own
    checkpoint_every steps between checkpoints; the same call goes on from the last one, and with more `steps` a
                     complete run is extended
    max_seconds      stop with a checkpoint before so many seconds have passed (0: no limit), as on SIGTERM and Ctrl-C

    A seed whose actions, observations, rewards or metrics stop being finite is marked as diverged in the manifest
    and gets no further rows; the others go on. Raises ValueError for bad arguments, `runs.RunError` for a folder
    that cannot be used; neither changes a run that is on disk.
    """
    check(seeds, device, steps=steps, n_envs=n_envs, eval_every=eval_every, eval_episodes=eval_episodes,
          checkpoint_every=checkpoint_every)  # fmt: skip
    if not 1 <= warmup < steps or not max_seconds >= 0:
        raise ValueError(
            f"warmup must be at least 1 and less than steps ({steps}), max_seconds not negative;"
            f" got {warmup} and {max_seconds}"
        )
    counts = {"steps": steps, "warmup": warmup, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    if odd := [f"{name} {count}" for name, count in counts.items() if count % n_envs]:
        raise ValueError(f"{', '.join(odd)}: give multiples of n_envs ({n_envs}), which are stepped together")
    if config.capacity < n_envs:
        raise ValueError(f"{config.name}.capacity must be at least n_envs ({n_envs}), got {config.capacity}")
    if steps // eval_every * eval_every <= warmup:
        raise ValueError(
            f"no evaluation would happen: give steps so that a multiple of eval_every ({eval_every}) lies after the"
            f" warm-up ({warmup}) and not after steps ({steps})"
        )
    identity = {
        "agent": config.name,
        **{f"{config.name}.{k}": v for k, v in dataclasses.asdict(config).items()},
        "env_id": env_id,
        "seeds": list(seeds),
        "size": size_of(config),
        "n_envs": n_envs,
        "warmup": warmup,
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "physics": runs.version("mujoco"),
    }
    keep_memory()
    deadline = time.monotonic() + max_seconds if max_seconds else math.inf
    with contextlib.ExitStack() as stack:
        loop = Loop(config, env_id, list(seeds), steps, eval_episodes, device, n_envs)
        stack.callback(loop.close)
        run = runs.Run(out, identity)
        stack.callback(run.close)
        if run.manifest["status"] == "complete" and run.manifest["steps"] >= steps:
            return runs.load(out)
        loop.open(run, deadline)
        loop.run(warmup, eval_every, checkpoint_every)
    return runs.load(out)


def trained(out, device: str = "cpu"):
    """The agent of the run in folder `out`, as its last checkpoint has it, for all seeds of the run.

    From a checkpoint made on another kind of device (cpu, cuda) it has the networks alone, enough to act: random
    streams cannot be carried over.

    Raises `runs.RunError` if there is no run or no checkpoint (recorded runs come without).
    """
    return agent_of(*runs.saved(out), device)


def agent_of(identity: dict, state: dict, device: str = "cpu"):
    """The agent of a run as a checkpoint of it has it; see `trained`."""
    prefix = identity["agent"] + "."
    settings = {key.removeprefix(prefix): value for key, value in identity.items() if key.startswith(prefix)}
    config = importlib.import_module(f"softpolicy.agents.{identity['agent']}").Config(**settings)
    env = envs.vector(identity["env_id"], 1)
    n_obs, n_act = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    env.close()
    agent = config.build(n_obs, n_act, identity["seeds"], device)
    if state["device"] == torch.device(device).type:
        agents.restore(agent, state["agent"])
    else:
        nets = {name: x for name, x in state["agent"]["nets"].items() if name != "_extra_state"}  # LSAC's has streams
        missing, _ = agent.load_state_dict(nets, strict=False)
        if set(missing) - {"_extra_state"}:
            raise runs.RunError(f"the checkpoint lacks {', '.join(missing)}; was it made by another version?")
    return agent


def check(seeds, device, **counts) -> None:
    """ValueError, in one sentence, unless the seeds are distinct, the counts positive and the device is there."""
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be distinct non-negative integers, at least one, got {list(seeds)}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA device")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(
            f"the device '{device}' cannot be used here ({reason}); give cpu or a GPU that is there"
        ) from None
