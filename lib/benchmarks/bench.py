"""Speed: environments, updates, whole loops; and pairs of settings timed in turns in one process.

Type `ci/bench`. It measures the CPU and, where there is one, the GPU. Times on a CPU are those of the process (one
thread), so that other jobs disturb them little; on a GPU they are wall times. Each figure is the median of several
rounds; in a comparison the two sides take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from plain_lsac import PlainLSAC
from plain_nclql import PlainNCLQL
from plain_s2ac import PlainS2AC, ReleasedS2AC
from plain_sac import PlainSAC

from softpolicy import device as devices
from softpolicy import diffusion, envs, runs
from softpolicy import streams as rng
from softpolicy.agents import dsact, lql, lsac, nclql, s2ac, sac, sql
from softpolicy.replay import Replay
from softpolicy.train import Loop

TASKS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "dm_control/cheetah-run"]
SIZES = {"paper": None, "small": (128, 128), "tiny": (64, 64)}  # width, batch; None: the agent's own
N_OBS, N_ACT = 17, 6  # HalfCheetah
SEEDS = [0, 1, 2, 3, 4]
AGENTS = {"sac": sac, "lql": lql, "nclql": nclql, "sql": sql, "s2ac": s2ac, "dsact": dsact, "lsac": lsac}
PLAIN = {
    "sac": PlainSAC,
    "nclql": PlainNCLQL,
    "s2ac": PlainS2AC,
    "lsac": PlainLSAC,
}  # single-seed yardsticks in plain PyTorch
EDM = diffusion.EDM()
RELEASED = {"s2ac": ReleasedS2AC}  # single-seed yardsticks, the way of the released code; slow


def sizes(agent: str, size: str) -> tuple[int, int]:
    """Width and batch; at size paper the agent's own, for SQL and S2AC 256 and 100."""
    config = AGENTS[agent].Config()
    return SIZES[size] or (config.width, config.batch)


def clock(device: str) -> float:
    """Seconds: of the process on a CPU, of the wall after waiting for the device on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(functions: list[Callable], device: str, rounds: int) -> list[float]:
    """Median seconds a call of each function; the functions take turns, about 0.3 s or one call each a round."""
    calls, times = [], [[] for _ in functions]
    for f in functions:
        for _ in range(12):  # warm-up; CUDA graphs are captured here, the two of an agent with phases at calls 7 and 8
            start = clock(device)
            f()
            if device == "cpu" and clock(device) - start > 1:  # a function this slow needs no more of it
                break
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


def done(*what) -> None:
    """Say on stderr what was just measured: all of it takes minutes."""
    print("  measured:", *what, file=sys.stderr, flush=True)


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

    def __init__(self, agent: str, seeds, size: str, device: str, eager: bool = False, **changes):
        width, batch = sizes(agent, size)
        config = AGENTS[agent].Config(width=width, batch=batch, **changes)
        self.device, self.agent = device, config.build(N_OBS, N_ACT, seeds, device)
        self.streams = {"sample": rng.generators(seeds, "sample", device=device)}
        replay, rows = filled_replay(len(seeds), device), getattr(config, "transitions", batch)
        update = lambda: self.agent.update(replay.sample(rows, self.streams["sample"]))  # noqa: E731
        self.update = update if eager else devices.captured(update, self)
        self.obs = torch.randn(len(seeds), 1, N_OBS, device=device)
        self.prepare = lambda: None
        if agent == "lsac":  # with as many synthetic transitions, and no refits: those are timed by themselves
            self.agent.synthetic.data, self.agent.synthetic.follow = filled_replay(len(seeds), device), lambda *_: None
        if hasattr(self.agent, "prepare"):
            self.prepare = lambda: self.agent.prepare(replay)

    def __call__(self):
        self.prepare()
        self.update()

    def act(self, *select: str):
        """One exploring action a seed."""
        self.agent.act(self.obs, self.streams["sample"], *select)


def plain(agent: str, size: str, device: str, yardsticks: dict = PLAIN) -> Callable:
    """One update of a yardstick, its replay sampled the plain way."""
    width, batch = sizes(agent, size)
    model, rows = yardsticks[agent](N_OBS, N_ACT, width, device=device), filled_replay(1, device).rows[0]
    parts = [rows[:, a:b].contiguous() for a, b in ((0, 17), (17, 23), (23, 24), (24, 41), (41, 42))]
    parts = [p.squeeze(-1) if k in (2, 4) else p for k, p in enumerate(parts)]
    synthetic = [p.clone() for p in parts]

    def update():
        shape = (model.n, batch) if agent == "lsac" else (batch,)
        i = torch.randint(len(rows), shape, device=device)
        drawn = [p[i] for p in parts]
        if agent == "lsac":
            model.update(drawn, synthetic)
        else:
            model.update(*drawn)

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
        done(env_id)
    return table


def updates(device: str, rounds: int) -> list[dict]:
    """Updates and actions a second of each agent and of the yardsticks, S = 1 and 5 (one update serves all S seeds)."""
    table = []
    for size in SIZES:
        for agent in AGENTS:
            one, five = Rig(agent, [0], size, device), Rig(agent, SEEDS, size, device)
            timed = [("update", agent, 1, one), ("update", agent, 5, five)]
            timed += [("action", agent, 1, one.act), ("action", agent, 5, five.act)]
            if agent == "nclql":
                model = PlainNCLQL(N_OBS, N_ACT, sizes(agent, size)[0], device=device)
                act = partial(model.sample, torch.randn(1, N_OBS, device=device))
                timed.append(("action", "plain PyTorch nclql", 1, act))
            if agent == "s2ac":
                for seeds in ([0], SEEDS):
                    rig = Rig(agent, seeds, size, device, amortised=True)
                    timed.append(("action", "s2ac amortised", len(seeds), lambda rig=rig: rig.act("amortised")))
            if agent in PLAIN:
                timed.insert(0, ("update", f"plain PyTorch {agent}", 1, plain(agent, size, device)))
            if agent in RELEASED and size == "paper":
                timed.insert(0, ("update", f"released way {agent}", 1, plain(agent, size, device, RELEASED)))
            gc.collect()  # graphs of the last agent go now, not while others replay
            seconds = in_turns([f for *_, f in timed], device, rounds)
            for (what, name, n, _), t in zip(timed, seconds, strict=True):
                table.append({"what": f"{what}, {size}", "name": name, "seeds": n, "per_second": 1 / t})
            done(agent, size)
    return table


def generators(device: str, rounds: int) -> list[dict]:
    """Training steps and generated transitions a second (each serves all S seeds) of the diffusion model of LSAC, in
    our settings and, of one seed, in those of its released code."""
    table, ours = [], (lsac.Config().diffusion_width, lsac.Config().sampler_steps, 20, 256)
    released = (2048, 128, 2, 4)
    for name, seeds, setting in (("ours", [0], ours), ("ours", SEEDS, ours), ("released", [0], released)):
        width, levels, steps, n = setting
        fit, draw = diffusion_work(width, levels, seeds, device)
        timed = [partial(fit, 1), partial(fit, 1 + steps), partial(draw, n)]
        once, more, drawn = in_turns(timed, device, rounds if name == "ours" else 1)
        row = {"name": f"diffusion, {name}", "seeds": len(seeds)}
        table.append({"what": "training step", **row, "per_second": steps / (more - once)})
        table.append({"what": "transition", **row, "per_second": n / drawn})
        done(row["name"], f"S = {len(seeds)}")
    return table


def diffusion_work(width: int, levels: int, seeds, device: str) -> tuple[Callable, Callable]:
    """A fit of so many steps, and the generation of so many transitions."""
    rows, streams = filled_replay(len(seeds), device).rows, rng.generators(seeds, "fit", device=device)

    def fit(steps):
        return diffusion.fit(rows, streams, diffusion.Training(width, lsac.Config().diffusion_blocks, steps), EDM)

    model = fit(1)
    return fit, lambda n: diffusion.generate(model, n, streams, levels)


def loops(device: str, rounds: int) -> list[dict]:
    """Steps a second of the loop (act, update, environments, replay) on HalfCheetah, one step being S steps, and the
    evaluations a second (10 episodes a seed), which come on top: at full scale one every 5,000 steps."""
    table = []
    for size, seeds in (("paper", [0]), ("paper", SEEDS), ("small", SEEDS)):
        width, batch = sizes("sac", size)
        with tempfile.TemporaryDirectory() as out:
            loop = Loop(sac.Config(width=width, batch=batch), "HalfCheetah-v5", seeds, 100_000, 10, device)
            run = runs.Run(out, {"agent": "sac"})
            loop.open(run)
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
        done("loop", size, f"S = {len(seeds)}")
    return table


def matmul_rate(device: str, rounds: int) -> float:
    """Floating-point operations a second of one 1024 x 1024 float32 product, by torch or the library, whichever is
    faster: what arithmetic could reach here."""
    a = torch.randn(1, 1024, 1024, device=device)
    return 2 * 1024**3 / min(in_turns([lambda: a @ a, lambda: devices.Product.apply(a, a)], device, rounds))


def net(n_in: int, hidden: int, width: int, n_out: int) -> int:
    """Multiplications of one network for one sample."""
    return n_in * width + (hidden - 1) * width * width + width * n_out


def flop(agent: str, size: str) -> float:
    """Floating-point operations in the matrix products of one update of one seed."""
    width, batch = sizes(agent, size)
    if agent == "sac":
        first = (N_OBS + N_ACT) * width
        actor, critic = net(N_OBS, 2, width, 2 * N_ACT), net(N_OBS + N_ACT, 2, width, 1)
        critic_step = 2 * (3 * critic - first)  # forward, weights, inputs of all layers but the first
        actor_step = 3 * actor - N_OBS * width + 2 * 2 * critic  # the critics pass gradients on but learn nothing
        return 2 * batch * (actor + 2 * critic + critic_step + actor_step)
    if agent in ("dsact", "lsac"):
        return 2 * batch * return_work(agent, width)
    if agent in ("sql", "s2ac"):
        return 2 * batch * stein_work(agent, width)
    n_in = N_OBS + N_ACT + (16 if agent == "nclql" else 0)
    critic, steps = net(n_in, 3, width, 1), 2 if agent == "nclql" else 1
    chain = 20 * 2 * (2 * net(N_ACT, 3, width, 0))  # gradients of two critics; the state's part is computed once
    return 2 * batch * (chain + 2 * critic + steps * 2 * (3 * critic - n_in * width))


def stein_work(agent: str, width: int, particles: int = 10, steps: int = 3) -> int:
    """Multiplications of one update of SQL or S2AC for one state; products of m x m matrices are left out."""
    first = (N_OBS + N_ACT) * width
    critic_step = 2 * (3 * net(N_OBS + N_ACT, 2, width, 1) - first)
    value = 2 * particles * net(N_ACT, 2, width, 1)  # both critics; the state's part is computed once
    base = 2 * N_OBS * width
    if agent == "sql":  # values of the target, their actions being uniform; then the score and twice the actor
        actor = particles * (4 * net(N_OBS + N_ACT, 3, width, N_ACT) - first)
        return value + base + critic_step + 2 * value + base + actor
    start = net(N_OBS, 3, width, N_ACT + 1)
    ahead = steps * 2 * value + value + 2 * base + start
    here = steps * 4 * value + 2 * value + base + 3 * start - N_OBS * width  # forward and back
    return ahead + critic_step + here


def return_work(agent: str, width: int) -> float:
    """Multiplications of one update of DSAC-T or LSAC for one transition, policy steps (every second update) halved."""
    replicas = 10 if agent == "lsac" else 1
    actor, critic = net(N_OBS, 3, width, 2 * N_ACT), net(N_OBS + N_ACT, 3, width, 2)
    learn = 3 * critic - (N_OBS + N_ACT) * width
    refine = 0.5 * 2 * 2 * critic if agent == "lsac" else 0  # half of the batch, forward and back, both twins
    policy = 3 * actor - N_OBS * width + 2 * 2 * critic
    return replicas * (actor + 2 * critic + 2 * learn + refine) + policy / 2


PAIRS = {
    "plain/batched": ("plain PyTorch, one seed, S times", "library, S seeds at once"),
    "released/batched": ("the released way, one seed", "library, one seed"),
    "separate/batched": ("library, S runs of one seed", "library, S seeds at once"),
    "eager/captured": ("library, eager", "library, CUDA graph"),
}


def compare(pair: str, agent: str, device: str, rounds: int) -> list[dict]:
    """Ratio of times, first over second of the pair, for every size and S = 1 and 5: above 1 the second is faster.

    The released way, at seconds an update, with S = 1 alone.
    """
    table = []
    for size in SIZES:
        for seeds in ([0],) if pair == "released/batched" else ([0], SEEDS):
            batched = Rig(agent, seeds, size, device)
            if pair == "plain/batched":
                first = one_after_the_other([plain(agent, size, device) for _ in seeds])
            elif pair == "released/batched":
                first = plain(agent, size, device, RELEASED)
            elif pair == "separate/batched":
                first = one_after_the_other([Rig(agent, [s], size, device) for s in seeds])
            else:
                first = Rig(agent, seeds, size, device, eager=True)
            gc.collect()  # graphs of the last pair go now, not while others replay
            a, b = in_turns([first, batched], device, rounds)
            row = {"pair": pair, "agent": agent, "size": size, "seeds": len(seeds)}
            table.append(row | {"first_ms": 1e3 * a, "second_ms": 1e3 * b, "ratio": a / b})
            done(agent, size, f"S = {len(seeds)}")
    return table


def show(rows: list[dict]) -> None:
    """Rows as an aligned table."""
    number = lambda v: f"{v:,.3g}" if v < 100 else f"{v:,.0f}"  # noqa: E731
    text = [[number(v) if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    text.insert(0, list(rows[0]))
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for line in text:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)))


def measure(device: str, rounds: int, pairs: list[str] | None, agent: str) -> dict:
    """Measure, print and return everything on a device, or the given pairs of one agent; tasks are timed on a CPU."""
    rate, rows = matmul_rate(device, rounds), []
    about = runs.provenance(device) | {"matmul_gflops": rate / 1e9}
    if device == "cpu":
        about["instructions"] = torch.backends.cpu.get_cpu_capability()
    print(
        f"{about['device']}; one thread; torch {torch.__version__}; softpolicy {about['commit'] or about['softpolicy']}"
    )
    print(f"float32 matrix products run at {rate / 1e9:.0f} GFLOP/s here")
    if pairs:
        for pair in pairs:
            if pair == "eager/captured" and device == "cpu":
                continue
            print(f"\n{PAIRS[pair][0]} / {PAIRS[pair][1]}: ratio of times, above 1 the second is faster")
            part = compare(pair, agent, device, rounds)
            show(part)
            rows += part
        return {"about": about, "rows": rows}
    for part in (environments, *(partial(f, device) for f in (updates, generators, loops))):
        if part is environments and device != "cpu":
            continue
        found = part(rounds)
        print()
        show(found)
        rows += found
    for r in rows:
        if r["what"].startswith("update") and r["name"] in AGENTS:
            work = flop(r["name"], r["what"].split(", ")[1])
            r["share_of_peak"] = work * r["seeds"] * r["per_second"] / rate
    print("\nshare of the matrix-product rate that updates reach:")
    show([{k: r[k] for k in ("what", "name", "seeds", "share_of_peak")} for r in rows if "share_of_peak" in r])
    return {"about": about, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--compare", choices=PAIRS, action="append", help="time two settings in turns and print ratios")
    parser.add_argument("--agent", choices=AGENTS, default="sac", help="the agent whose settings are compared [sac]")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="measure this one only [cpu and, if there, cuda]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that each figure is the median of")
    parser.add_argument(
        "--json", type=Path, metavar="FOLDER", help="also write cpu.json, cuda.json (or cpu-compare.json ...) there"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    measured = [args.device] if args.device else ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    if "eager/captured" in (args.compare or []) and "cuda" not in measured:
        parser.error("eager/captured needs a CUDA device; on a CPU nothing is captured")
    if "cuda" in measured and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; give --device cpu")
    if args.json and not args.json.is_dir():
        parser.error(f"--json {args.json} is not a folder; make one first, such as runs/bench")
    for pair, known in (("plain/batched", PLAIN), ("released/batched", RELEASED)):
        if pair in (args.compare or []) and args.agent not in known:
            parser.error(f"{pair} knows {', '.join(known)}, not {args.agent}")
    torch.set_num_threads(1)
    devices.keep_memory()
    warnings.filterwarnings("ignore")
    part = "-compare" if args.compare else ""  # of the measurements: no such file takes the place of a whole table
    for device in measured:
        table = measure(device, args.rounds, args.compare, args.agent)
        if args.json:
            (args.json / f"{device}{part}.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
