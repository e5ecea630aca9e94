"""The training loop, the only way an agent is trained: in a test, in a cell and at full scale.

Step t: act, update on what was stored before, step the environments, store. The update does not need step t's
transition, so that on a GPU it runs while the environments move. Command line: `python -m softpolicy.train --agent sac
--help`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import math
import pkgutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from softpolicy import agents, envs, runs
from softpolicy import streams as rng
from softpolicy.device import captured, keep_memory
from softpolicy.replay import Replay
from softpolicy.settings import SIZES, size_of, sized

# What each scale means: keyword arguments of `train`. Full is the papers' budget.
SCALES = {
    "smoke": dict(steps=300, warmup=100, eval_every=100, eval_episodes=1, checkpoint_every=200),
    "demo": dict(steps=20_000, warmup=1_000, eval_every=2_000, eval_episodes=3, checkpoint_every=10_000),
    "full": dict(steps=1_000_000, warmup=10_000, eval_every=5_000, eval_episodes=10, checkpoint_every=20_000),
}
# What a live run of an agent with dear updates has instead at scale demo.
DEMO = {
    "nclql": dict(steps=10_000),
    "s2ac": dict(steps=3_000, eval_every=500),
    "lsac": dict(steps=3_000, warmup=500, eval_every=500, eval_episodes=10),
}


def at_scale(scale: str, agent: str = "sac", steps: int = 0) -> tuple[int, dict]:
    """Steps of a chapter's live run (`steps` themselves, unless zero) and the other arguments of `train`.

    ValueError for an unknown scale, and for steps that end before the first evaluation.
    """
    if scale not in SCALES:
        raise ValueError(f"SCALE is '{scale}'; accepted are {', '.join(SCALES)}")
    protocol = SCALES[scale] | (DEMO.get(agent, {}) if scale == "demo" else {})
    usual, every = protocol.pop("steps"), protocol["eval_every"]
    first = (protocol["warmup"] // every + 1) * every
    if steps and steps < first:
        raise ValueError(f"STEPS is {steps}; scale {scale} needs at least {first}, where the first evaluation is")
    return steps or usual, protocol


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
    that cannot be used; neither touches what is on disk.
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
    identity = runs.manifest(out)["identity"]
    prefix = identity["agent"] + "."
    settings = {key.removeprefix(prefix): value for key, value in identity.items() if key.startswith(prefix)}
    config = importlib.import_module(f"softpolicy.agents.{identity['agent']}").Config(**settings)
    env = envs.vector(identity["env_id"], 1)
    n_obs, n_act = env.single_observation_space.shape[0], env.single_action_space.shape[0]
    env.close()
    agent, state = config.build(n_obs, n_act, identity["seeds"], device), runs.read_checkpoint(Path(out), identity)
    if state is None:
        raise runs.RunError(f"{out} holds no checkpoint.pt yet; train there first")
    if state["device"] == torch.device(device).type:
        agents.restore(agent, state["agent"])
    else:
        nets = {name: x for name, x in state["agent"]["nets"].items() if name != "_extra_state"}  # LSAC's has streams
        agent.load_state_dict(nets, strict=False)
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
        with stop_signals() as came:
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
        self.reserve |= state["reserve"]
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
    """A set that SIGTERM and Ctrl-C are put into while the block runs, instead of ending the process at once; the same
    signal once more does end it.

    Signals reach the main thread only; elsewhere the set stays empty. The old handlers come back at the end.
    """
    came, old = set(), {}

    def note(number, _):
        came.add(number)
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


def true_or_false(text: str) -> bool:
    """A switch on the command line."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"give True or False, not '{text}'")
    return text.lower() == "true"


def arguments(config_class, agent: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The command line, made from the signature of `train` and the settings of one agent."""
    parser = argparse.ArgumentParser(
        prog="python -m softpolicy.train",
        parents=[agent],
        allow_abbrev=False,
        description=inspect.getdoc(train),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="paper", choices=SIZES, help="preset of width and batch [paper]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch [1]")
    for name, p in inspect.signature(train, eval_str=True).parameters.items():
        flag = "--" + name.replace("_", "-")
        if name == "seeds":
            parser.add_argument(flag, type=int, nargs="+", required=True)
        elif name != "config":
            given = {"required": True} if p.default is p.empty else {"default": p.default, "help": f"[{p.default}]"}
            parser.add_argument(flag, type=p.annotation, **given)
    group = parser.add_argument_group(f"settings of {config_class.name}")
    for f in dataclasses.fields(config_class):
        kind = true_or_false if isinstance(f.default, bool) else type(f.default)
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, help=f"{f.metadata['doc']} [{f.default}]")
    return parser


def main(argv=None) -> int:
    """Exit status: 0 complete, 75 stopped early (the same command goes on), 1 all seeds diverged, 2 cannot be done."""
    first = argparse.ArgumentParser(prog="python -m softpolicy.train", add_help=False)
    first.add_argument("--agent", required=True, help="a file of softpolicy/agents, e.g. sac")
    names = sorted(module.name for module in pkgutil.iter_modules(agents.__path__))
    if (sys.argv[1:] if argv is None else argv) in (["-h"], ["--help"]):
        print(f"{first.format_usage()}\nWith an agent, --help lists all arguments; agents: {', '.join(names)}")
        return 0
    agent = first.parse_known_args(argv)[0].agent
    if agent not in names:
        first.error(f"unknown agent '{agent}'; accepted are {', '.join(names)}")
    config_class = importlib.import_module(f"softpolicy.agents.{agent}").Config
    given = vars(arguments(config_class, first).parse_args(argv))
    del given["agent"]
    size, threads = given.pop("size"), given.pop("threads")
    overrides = {f.name: v for f in dataclasses.fields(config_class) if (v := given.pop(f.name)) is not None}
    if threads < 1:
        first.error(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    interrupted = False
    try:
        train(sized(config_class, size, **overrides), **given)
    except (ValueError, runs.RunError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True  # if the loop had begun, the checkpoint is written
    try:
        found = runs.manifest(given["out"])
    except runs.RunError:
        print("error: interrupted before the run began", file=sys.stderr)
        return 75
    print(f"{given['out']}: {found['status']} at step {found['step']} of {given['steps']}")
    if interrupted and found["status"] != "diverged" and found["step"] < given["steps"]:
        return 75
    return {"complete": 0, "stopped": 75}.get(found["status"], 1)


if __name__ == "__main__":
    sys.exit(main())
