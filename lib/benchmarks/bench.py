"""Speed: environments, updates, whole loops; and pairs of settings timed in turns in one process.

Type `ci/bench`. Times on a CPU are those of the process (one thread), so that other jobs disturb them little; on
a GPU they are wall times. Each figure is the median of several rounds; in a comparison the two sides take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from plain_sac import PlainSAC

from softpolicy import device as devices
from softpolicy import envs, runs
from softpolicy import streams as rng
from softpolicy.agents import sac
from softpolicy.replay import Replay
from softpolicy.train import Loop

TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "dm_control/cheetah-run"]
SIZES = {"paper": (256, 256), "small": (128, 128), "tiny": (64, 64)}  # width, batch
N_OBS, N_ACT = 17, 6  # HalfCheetah
SEEDS = [0, 1, 2, 3, 4]


def clock(device: str) -> float:
    """Seconds: of the process on a CPU, of the wall after waiting for the device on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(functions: list[Callable], device: str, rounds: int) -> list[float]:
    """Median seconds a call of each function; the functions take turns, about 0.3 s each a round."""
    calls, times = [], [[] for _ in functions]
    for f in functions:
        for _ in range(6):  # warm-up; CUDA graphs are captured here
            f()
        start = clock(device)
        f(), f()
        calls.append(max(1, int(0.3 / max((clock(device) - start) / 2, 1e-6))))
    for _ in range(rounds):
        for f, n, t in zip(functions, calls, times, strict=True):
            start = clock(device)
            for _ in range(n):
                f()
            t.append((clock(device) - start) / n)
    return [statistics.median(t) for t in times]


def filled_replay(n_seeds: int, device: str) -> Replay:
    """A replay of 10,000 random transitions a seed."""
    replay = Replay(10_000, n_seeds, N_OBS, N_ACT, device)
    replay.rows.normal_(generator=torch.Generator(device).manual_seed(0))
    replay.rows[..., -1] = 0
    replay.added = replay.capacity
    replay.size.fill_(replay.capacity)
    return replay


class Rig:
    """An agent of the library with a replay, as `device.captured` wants to see it; calling it is one update."""

    def __init__(self, seeds, size: str, device: str, eager: bool = False):
        width, batch = SIZES[size]
        self.device, self.agent = device, sac.Config(width=width, batch=batch).build(N_OBS, N_ACT, seeds, device)
        self.streams = {"sample": rng.generators(seeds, "sample", device=device)}
        replay = filled_replay(len(seeds), device)
        update = lambda: self.agent.update(replay.sample(batch, self.streams["sample"]))  # noqa: E731
        self.update = update if eager else devices.captured(update, self)

    def __call__(self):
        self.update()


def plain(size: str, device: str) -> Callable:
    """One update of the yardstick, its replay sampled the plain way."""
    width, batch = SIZES[size]
    agent, rows = PlainSAC(N_OBS, N_ACT, width, device=device), filled_replay(1, device).rows[0]
    parts = [rows[:, a:b].contiguous() for a, b in ((0, 17), (17, 23), (23, 24), (24, 41), (41, 42))]

    def update():
        i = torch.randint(len(rows), (batch,), device=device)
        obs, action, reward, next_obs, terminated = (p[i] for p in parts)
        agent.update(obs, action, reward.squeeze(-1), next_obs, terminated.squeeze(-1))

    return update


def one_after_the_other(rigs: list[Callable]) -> Callable:
    """Every rig's update in turn."""
    return lambda: [rig() for rig in rigs]


def environments(rounds: int) -> list[dict]:
    """Steps a second of each task through our wrappers, one environment."""
    table = []
    for env_id in TASKS:
        env = envs.vector(env_id, 1)
        env.reset(seed=[0])
        g = np.random.default_rng(0)
        actions = g.uniform(-1, 1, (512, 1, *env.single_action_space.shape)).astype(np.float32)

        def steps(env=env, actions=actions):
            for a in actions:
                env.step(a)

        (seconds,) = in_turns([steps], "cpu", rounds)
        table.append({"what": "environment", "name": env_id, "seeds": 1, "per_second": 512 / seconds})
        env.close()
    return table


def updates(device: str, rounds: int) -> list[dict]:
    """Updates a second of each agent and of the yardstick, S = 1 and 5 (one update serves all S seeds)."""
    table = []
    for size in SIZES:
        rigs = [plain(size, device), Rig([0], size, device), Rig(SEEDS, size, device)]
        names = [("plain PyTorch SAC", 1), ("sac", 1), ("sac", 5)]
        for (name, n), seconds in zip(names, in_turns(rigs, device, rounds), strict=True):
            table.append({"what": f"update, {size}", "name": name, "seeds": n, "per_second": 1 / seconds})
    return table


def loops(device: str, rounds: int) -> list[dict]:
    """Steps a second of the loop (act, update, environments, replay) on HalfCheetah, one step being S steps, and the
    evaluations a second (10 episodes a seed), which come on top: at full scale one every 5,000 steps."""
    table = []
    for size, seeds in (("paper", [0]), ("paper", SEEDS), ("small", SEEDS)):
        width, batch = SIZES[size]
        with tempfile.TemporaryDirectory() as out:
            loop = Loop(sac.Config(width=width, batch=batch), "HalfCheetah-v5", seeds, 100_000, 10, device)
            run = runs.Run(out, {"agent": "sac"})
            loop.open(run, 0)
            while loop.step < 300:
                loop.advance(300)
            (seconds,) = in_turns([lambda loop=loop: loop.advance(0)], device, rounds)
            start = clock(device)
            loop.evaluate()
            evaluation = clock(device) - start
            run.close(), loop.close()
        for what, t in (("loop", seconds), ("evaluation", evaluation)):
            row = {"what": f"{what}, {size}", "name": "sac, HalfCheetah-v5", "seeds": len(seeds), "per_second": 1 / t}
            table.append(row)
    return table


def matmul_rate(device: str, rounds: int) -> float:
    """Floating-point operations a second of one 1024 x 1024 float32 product: what arithmetic could reach here."""
    a = torch.randn(1024, 1024, device=device)
    (seconds,) = in_turns([lambda: a @ a], device, rounds)
    return 2 * 1024**3 / seconds


def flop(size: str) -> float:
    """Floating-point operations in the matrix products of one SAC update of one seed."""
    width, batch = SIZES[size]
    net = lambda n_in, n_out: n_in * width + width * width + width * n_out  # noqa: E731
    actor, critic, first = net(N_OBS, 2 * N_ACT), net(N_OBS + N_ACT, 1), (N_OBS + N_ACT) * width
    target = actor + 2 * critic
    critic_step = 2 * (3 * critic - first)  # forward, weights, inputs of all layers but the first
    actor_step = 3 * actor - N_OBS * width + 2 * 2 * critic  # the critics pass gradients on but learn nothing
    return 2 * batch * (target + critic_step + actor_step)


PAIRS = {
    "plain/batched": ("plain single-seed SAC, S times", "library, S seeds at once"),
    "separate/batched": ("library, S runs of one seed", "library, S seeds at once"),
    "eager/captured": ("library, eager", "library, CUDA graph"),
}


def compare(pair: str, device: str, rounds: int) -> list[dict]:
    """Ratio of times, first over second of the pair, for every size and S = 1 and 5: above 1 the second is faster."""
    table = []
    for size in SIZES:
        for seeds in ([0], SEEDS):
            batched = Rig(seeds, size, device)
            if pair == "plain/batched":
                first = one_after_the_other([plain(size, device) for _ in seeds])
            elif pair == "separate/batched":
                first = one_after_the_other([Rig([s], size, device) for s in seeds])
            else:
                first = Rig(seeds, size, device, eager=True)
            a, b = in_turns([first, batched], device, rounds)
            table.append(
                {
                    "pair": pair,
                    "size": size,
                    "seeds": len(seeds),
                    "first_ms": 1e3 * a,
                    "second_ms": 1e3 * b,
                    "ratio": a / b,
                }
            )
    return table


def show(rows: list[dict]) -> None:
    """Rows as an aligned table."""
    number = lambda v: f"{v:,.3g}" if v < 100 else f"{v:,.0f}"  # noqa: E731
    text = [[number(v) if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    text.insert(0, list(rows[0]))
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for line in text:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--compare", choices=PAIRS, action="append", help="time two settings in turns and print ratios")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that each figure is the median of")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if "eager/captured" in (args.compare or []) and args.device == "cpu":
        parser.error("eager/captured needs a CUDA device; on a CPU nothing is captured")
    torch.set_num_threads(1)
    devices.keep_memory()
    warnings.filterwarnings("ignore")
    rate = matmul_rate(args.device, args.rounds)
    about = runs.provenance(args.device) | {"matmul_gflops": rate / 1e9}
    print(
        f"{about['device']}; one thread; torch {torch.__version__}; softpolicy {about['commit'] or about['softpolicy']}"
    )
    print(f"float32 matrix products run at {rate / 1e9:.0f} GFLOP/s here")
    rows = []
    if args.compare:
        for pair in args.compare:
            print(f"\n{PAIRS[pair][0]} / {PAIRS[pair][1]}: ratio of times, above 1 the second is faster")
            part = compare(pair, args.device, args.rounds)
            show(part)
            rows += part
    else:
        for part in (environments(args.rounds), updates(args.device, args.rounds), loops(args.device, args.rounds)):
            print()
            show(part)
            rows += part
        for r in rows:
            if r["what"].startswith("update") and r["name"] == "sac":
                r["share_of_peak"] = flop(r["what"].split(", ")[1]) * r["seeds"] * r["per_second"] / rate
        print("\nshare of the matrix-product rate that updates reach:")
        show([{k: r[k] for k in ("what", "seeds", "share_of_peak")} for r in rows if "share_of_peak" in r])
    if args.json:
        args.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
