"""One run in memory: its state, the steps over it, its checkpoint, and the signals that end it early."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time

import numpy as np
import torch

from softpolicy import agents, envs, runs
from softpolicy import streams as rng
from softpolicy.device import captured
from softpolicy.replay import Replay


class Loop:
    """The state of one run in memory, and the loop over it."""

    def __init__(self, config, env_id: str, seeds: list[int], steps: int, eval_episodes: int, device: str, n_envs=1):
        self.seeds, self.steps, self.eval_episodes, self.device = seeds, steps, eval_episodes, device
        self.n_envs = n_envs
        self.device_type = torch.device(device).type
        self.env_id, self.config, n = env_id, config, len(seeds)
        self.envs = envs.vector(env_id, n * n_envs)  # those of the first seed, then those of the second, ...
        n_obs, self.n_act = self.envs.single_observation_space.shape[0], self.envs.single_action_space.shape[0]
        self.agent = config.build(n_obs, self.n_act, seeds, device)
        self.replay = Replay(min(config.capacity, steps), n, n_obs, self.n_act, device)
        self.streams = {name: rng.generators(seeds, name, device=device) for name in ("act", "sample")}
        self.warm = rng.generators(seeds, "warmup")
        self.step, self.seconds, self.diverged = 0, 0.0, {}
        self.episode_return, self.finished = np.zeros(n * n_envs), [[] for _ in seeds]
        self.metrics, self.eval_envs = {}, None
        rows, prepare = getattr(config, "transitions", config.batch), getattr(self.agent, "prepare", None)
        self.prepare = (lambda: prepare(self.replay)) if prepare else lambda: None
        self.update = captured(lambda: self.agent.update(self.replay.sample(rows, self.streams["sample"])), self)

    def open(self, run: runs.Run, deadline: float = math.inf) -> None:
        """Go on from the folder's checkpoint, or begin; to stop before the clock `time.monotonic` shows `deadline`."""
        self.folder, self.began, self.deadline = run, time.monotonic(), deadline
        # Seconds that each took at most, for the time limit; a step may hold a fit of LSAC's diffusion model.
        self.reserve = {"step": 0.0, "evaluation": 0.0, "checkpoint": 0.0}
        state = run.load_checkpoint(self.device_type)
        if state is None:
            copies = [[], *([j] for j in range(1, self.n_envs))]
            self.obs, _ = self.envs.reset(seed=[rng.derive(s, "training", *j) for s in self.seeds for j in copies])
        else:
            with runs.of_this_version(run.out / "checkpoint.pt"):
                self.restore(state)
        run.trim(self.step)
        slices = [
            *run.manifest["slices"],
            {"from_step": self.step, "started": runs.now(), **runs.provenance(self.device)},
        ]
        run.write_manifest(status="running", steps=self.steps, step=self.step, diverged=self.diverged, slices=slices)
        if state is None:
            self.timed("checkpoint", self.checkpoint)

    def run(self, warmup: int, eval_every: int, checkpoint_every: int) -> None:
        """Steps until the end, the time limit, SIGTERM, or until every seed has diverged."""
        with stop_signals() as came:  # also while the last checkpoint is written
            self.steps_until_the_end(came, warmup, eval_every, checkpoint_every)
            if len(self.diverged) == len(self.seeds):
                status = "diverged"
            else:
                status = "complete" if self.step == self.steps else "stopped"
            self.checkpoint()
            self.folder.write_manifest(
                status=status, step=self.step, diverged=self.diverged, seconds=round(self.elapsed(), 1)
            )
        if signal.SIGINT in came:
            raise KeyboardInterrupt

    def steps_until_the_end(self, came: set, warmup: int, eval_every: int, checkpoint_every: int) -> None:
        while self.step < self.steps and len(self.diverged) < len(self.seeds):
            self.timed("step", lambda: self.advance(warmup))
            if self.step > warmup and self.step % eval_every == 0:
                self.timed("evaluation", self.evaluate)
            if came or self.out_of_time():
                break
            if self.step % checkpoint_every == 0 and self.step < self.steps:
                self.timed("checkpoint", self.checkpoint)

    def advance(self, warmup: int) -> None:
        """One step of every environment and, after the warm-up, one update for every seed."""
        n, explore = len(self.seeds), self.step < warmup
        action = 2 * rng.uniform(self.warm, self.n_envs, self.n_act) - 1 if explore else self.act(self.obs)
        action = action.cpu().numpy().reshape(n * self.n_envs, -1)  # [S N, A]
        if not explore:
            self.prepare()
            self.metrics = self.update()
        self.mark(~np.isfinite(action).all(1))
        next_obs, reward, terminated, truncated, info = self.envs.step(np.nan_to_num(action))
        final = envs.final_obs(next_obs, info)
        self.step += self.n_envs
        self.mark(~(np.isfinite(final).all(1) & np.isfinite(next_obs).all(1) & np.isfinite(reward)))
        next_obs, reward, final = (np.nan_to_num(x, posinf=0, neginf=0) for x in (next_obs, reward, final))
        self.replay.add(*(x.reshape(n, self.n_envs, -1) for x in (self.obs, action, reward, final, terminated)))
        self.obs = next_obs
        self.episode_return += reward
        for i in np.flatnonzero(terminated | truncated):
            self.finished[i // self.n_envs].append(float(self.episode_return[i]))
            self.episode_return[i] = 0

    def act(self, obs: np.ndarray) -> torch.Tensor:
        """The agent's exploring actions `[S, N, A]` for observations `[S N, O]`."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device).unflatten(0, (-1, self.n_envs))
        return self.agent.act(obs, self.streams["act"])

    def mark(self, bad: np.ndarray) -> None:
        """Record the seeds of the mask `[S N]` or `[S]` as diverged at this step, once."""
        for i in np.flatnonzero(bad.reshape(len(self.seeds), -1).any(1)):
            self.diverged.setdefault(str(self.seeds[i]), self.step)

    def evaluate(self) -> None:
        """Append one row a seed: mean return and length of `eval_episodes` episodes, and the last update's metrics."""
        n, k = len(self.seeds), self.eval_episodes
        if self.eval_envs is None:
            self.eval_envs = envs.vector(self.env_id, n * k)
        start = [rng.derive(s, "evaluation", self.step, j) for s in self.seeds for j in range(k)]
        obs, _ = self.eval_envs.reset(seed=start)
        returns, lengths = np.zeros(n * k), np.zeros(n * k)
        alive, bad = np.ones(n * k, bool), np.zeros(n * k, bool)
        while alive.any():
            batch = torch.as_tensor(obs, dtype=torch.float32, device=self.device).view(n, k, -1)
            action = self.agent.act(batch).reshape(n * k, -1).cpu().numpy()
            ill = ~np.isfinite(action).all(1)
            obs, reward, terminated, truncated, _ = self.eval_envs.step(np.nan_to_num(action))
            bad |= alive & (ill | ~np.isfinite(reward) | ~np.isfinite(obs).all(1))
            returns += np.where(alive, np.nan_to_num(reward, posinf=0, neginf=0), 0)
            lengths += alive
            alive &= ~(terminated | truncated)
        metrics = {name: x.tolist() for name, x in self.metrics.items()}
        if hasattr(self.agent, "notice"):
            self.agent.notice(metrics)
        self.mark(bad.reshape(n, k).any(1) | ~np.isfinite(list(metrics.values())).all(0))
        rows = [
            {"step": self.step, "seed": seed, "return": returns.reshape(n, k)[i].mean(),
             "length": lengths.reshape(n, k)[i].mean(), "episodes": k,
             "train_return": np.mean(self.finished[i]) if self.finished[i] else "",
             **{name: x[i] for name, x in metrics.items()}}
            for i, seed in enumerate(self.seeds) if str(seed) not in self.diverged
        ]  # fmt: skip
        self.finished = [[] for _ in self.seeds]
        if rows:
            self.folder.append("rows.csv", rows)
            self.folder.append("timing.csv", [{"step": self.step, "seconds": round(self.elapsed(), 2)}])
            self.folder.write_manifest(step=self.step, diverged=self.diverged, seconds=round(self.elapsed(), 1))

    def elapsed(self) -> float:
        """Seconds of training, earlier slices included."""
        return self.seconds + time.monotonic() - self.began

    def timed(self, name: str, work) -> None:
        start = time.monotonic()
        work()
        self.reserve[name] = max(self.reserve[name], time.monotonic() - start)

    def out_of_time(self) -> bool:
        """Whether the time left may be too short for one more step, its evaluation, and the last checkpoint."""
        return self.deadline - time.monotonic() < sum(self.reserve.values()) + self.reserve["checkpoint"]

    def checkpoint(self) -> None:
        """Write everything that the rest of the run depends on."""
        self.folder.save_checkpoint(
            {
                "step": self.step,
                "seconds": self.elapsed(),
                "reserve": self.reserve,
                "device": self.device_type,
                "diverged": self.diverged,
                "agent": agents.save(self.agent),
                "replay": self.replay.save(),
                "streams": {name: rng.save(s) for name, s in {**self.streams, "warmup": self.warm}.items()},
                "envs": [env.save() for env in self.envs.envs],
                "obs": torch.as_tensor(self.obs),
                "episode_return": self.episode_return.tolist(),
                "finished": self.finished,
                "metrics": self.metrics,
            }
        )

    def restore(self, state: dict) -> None:
        """The opposite of `checkpoint`; the environments replay their present episodes."""
        if state["step"] > self.steps:
            raise runs.RunError(
                f"{self.folder.out} is already at step {state['step']}, past the {self.steps} asked for"
            )
        self.step, self.seconds, self.diverged = state["step"], state["seconds"], state["diverged"]
        known = state["reserve"]  # not if a single step would end the slice: one stall would then end every later slice
        if sum(known.values()) + known["checkpoint"] < self.deadline - time.monotonic():
            self.reserve |= known
        agents.restore(self.agent, state["agent"])
        self.replay.restore(state["replay"])
        for name, s in {**self.streams, "warmup": self.warm}.items():
            rng.restore(s, state["streams"][name])
        self.obs = state["obs"].cpu().numpy()
        replayed = np.stack([env.restore(s) for env, s in zip(self.envs.envs, state["envs"], strict=True)])
        healthy = np.repeat([str(seed) not in self.diverged for seed in self.seeds], self.n_envs)
        if not np.array_equal(replayed[healthy], self.obs[healthy]):
            raise runs.RunError(
                f"{self.env_id} did not come back to the state in which {self.folder.out} was left, so the simulator"
                " here is not the one of that run; go on where it was made, or give another folder"
            )
        self.episode_return, self.finished = np.array(state["episode_return"]), state["finished"]
        self.metrics = state["metrics"]

    def close(self) -> None:
        self.update = self.prepare = None  # they hold the loop: without them replay and graphs go at once
        self.envs.close()
        if self.eval_envs is not None:
            self.eval_envs.close()


@contextlib.contextmanager
def stop_signals():
    """A set that SIGTERM and Ctrl-C are put into while the block runs, instead of ending the process at once; a second
    Ctrl-C does end it.

    Signals reach the main thread only; elsewhere the set stays empty. The old handlers come back at the end.
    """
    came, old = set(), {}

    def note(number, _):
        came.add(number)
        if number == signal.SIGINT:  # schedulers send SIGTERM more than once
            signal.signal(number, old[number] or signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    for s in (signal.SIGTERM, signal.SIGINT):
        old[s] = signal.signal(s, note)
    try:
        yield came
    finally:
        for s, handler in old.items():
            signal.signal(s, handler or signal.SIG_DFL)
