"""Recorded studies: named sets of runs of one protocol that differ in a setting or two.

`python -m softpolicy.studies langevin --out data/runs/langevin-ablations` makes or resumes the runs of a study, a
folder each. Their rows are no main runs (`report.main_runs`); a claim that is judged by them names their setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from softpolicy import runs
from softpolicy.agents import lsac, s2ac
from softpolicy.settings import SIZES
from softpolicy.train import train


class Study(NamedTuple):
    """One protocol, and the variants by folder name: what the page calls it, its agent, its settings."""

    protocol: dict  # arguments of `train`
    common: dict  # settings of every variant
    variants: dict[str, tuple[str, str, dict]]
    tasks: dict[str, str] = {}  # of the variants whose task is not the protocol's


# Ablations of NC-LQL (chapter *Langevin Q-learning*) on a task that small networks learn within minutes.
LANGEVIN = Study(
    protocol=dict(env_id="Reacher-v5", seeds=[0, 1, 2, 3, 4], steps=30_000, n_envs=5, warmup=1_000, eval_every=2_500,
                  eval_episodes=10, checkpoint_every=10_000),
    common=dict(width=64, batch=64, lr=1e-3),
    variants={
        "nclql": ("NC-LQL", "nclql", {}),
        "lql": ("LQL", "lql", {}),
        "lql-large-steps": ("LQL, steps of 0.001", "lql", dict(step_lr=1e-3)),
        "lql-annealed": ("LQL, annealed steps", "lql", dict(levels=10, langevin_steps=2)),
        "lql-annealed-lr": ("LQL, annealed steps, learning rate 0.002", "lql",
                            dict(levels=10, langevin_steps=2, lr=2e-3)),
        "levels-5": ("5 levels, 4 steps each", "nclql", dict(levels=5, langevin_steps=4)),
        "levels-20": ("20 levels, 1 step each", "nclql", dict(levels=20, langevin_steps=1)),
        "steps-1": ("1 step a level", "nclql", dict(langevin_steps=1)),
        "steps-5": ("5 steps a level", "nclql", dict(langevin_steps=5)),
        "w-50": ("w = 50", "nclql", dict(w=50.0)),
        "w-100": ("w = 100", "nclql", dict(w=100.0)),
        "w-250": ("w = 250", "nclql", dict(w=250.0)),
        "w-1000": ("w = 1000", "nclql", dict(w=1000.0)),
        "raw-w-10": ("raw gradients, w = 10", "nclql", dict(normalise=False, reduction="mean", w=10.0)),
        "raw-w-50": ("raw gradients, w = 50", "nclql", dict(normalise=False, reduction="mean", w=50.0)),
        "raw-w-100": ("raw gradients, w = 100", "nclql", dict(normalise=False, reduction="mean", w=100.0)),
        "raw-w-500": ("raw gradients, w = 500", "nclql", dict(normalise=False, reduction="mean", w=500.0)),
        "reward-scale-1": ("reward not scaled", "nclql", dict(reward_scale=1.0)),
        "raw-reward-scale-1": ("raw gradients, w = 50, reward not scaled", "nclql",
                               dict(normalise=False, reduction="mean", w=50.0, reward_scale=1.0)),
        "joint": ("one joint Adam step", "nclql", dict(optimiser_steps="joint")),
        "smoothing-target": ("smoothing towards targets", "nclql", dict(smoothing_target="target")),
        "flow-rl": ("network of flow-rl", "nclql", dict(network="flow-rl")),
    },
)  # fmt: skip

# The same task with one environment and an update every step.
LANGEVIN_EVERY_STEP = LANGEVIN._replace(
    protocol=LANGEVIN.protocol | dict(n_envs=1),
    variants={k: LANGEVIN.variants[k] for k in ("nclql", "lql-annealed")},
)

# Annealed steps without noise conditioning where actions have six dimensions, under the protocol of the main runs.
LANGEVIN_CHEETAH = Study(
    protocol=dict(env_id="HalfCheetah-v5", seeds=[0, 1, 2], steps=100_000, warmup=10_000, eval_every=5_000,
                  eval_episodes=10, checkpoint_every=20_000),
    common=SIZES["small"],
    variants={k: LANGEVIN.variants[k] for k in ("lql-annealed", "joint", "lql-large-steps")}
    | {"lql-annealed-lr": ("LQL, annealed steps, learning rate 0.0002", "lql",
                           dict(levels=10, langevin_steps=2, lr=2e-4))},
)  # fmt: skip

# The multi-goal tasks (chapter *Stein soft actor-critic*), one temperature for all. S2AC as the authors ran it there,
# with ten particles and ten steps from a fixed start; ours is that no step passes the bound of invertibility.
ALPHA = 0.2
START, CAP = dict(start="none"), dict(step_cap=0.9)
LEARNED = CAP | dict(std_min=0.02)
STEIN = {
    "sac": ("SAC", "sac", dict(init_alpha=ALPHA, learn_alpha=False)),
    "sql": ("SQL", "sql", dict(alpha=ALPHA)),
    "s2ac": ("S2AC", "s2ac", dict(svgd_steps=10, amortised=True, **START, **CAP)),
    "s2ac-release": ("S2AC as released", "s2ac", s2ac.RELEASE | dict(svgd_steps=10, **START)),
    "s2ac-learned": ("S2AC, learned start, 3 steps", "s2ac", dict(svgd_steps=3, **LEARNED)),
}
STEIN_ABLATIONS = {
    "s2ac-3-steps": ("S2AC, 3 steps", "s2ac", dict(svgd_steps=3, **START, **CAP)),
    "s2ac-learned-0": ("S2AC, learned start, no step", "s2ac", dict(svgd_steps=0, **LEARNED)),
    "s2ac-uncapped": ("S2AC, steps not capped", "s2ac", dict(svgd_steps=10, **START)),
    "s2ac-diagonal": ("S2AC, diagonal start, 3 steps", "s2ac", dict(svgd_steps=3, start="diagonal", **LEARNED)),
    "s2ac-full": ("S2AC, full covariance, 3 steps", "s2ac", dict(svgd_steps=3, start="full", **LEARNED)),
    "s2ac-small-steps": ("S2AC, 20 steps of 0.01", "s2ac", dict(svgd_steps=20, svgd_lr=0.01, **START)),
}
MULTIGOAL = {
    layout: Study(
        protocol=dict(env_id=env_id, seeds=[0, 1, 2, 3, 4], steps=10_000, warmup=2_000, eval_every=400, eval_episodes=1,
                      checkpoint_every=100_000),
        common=dict(width=64, batch=100, lr=1e-3),
        variants=variants,
    )
    for layout, env_id, variants in (
        ("three", "softpolicy/MultiGoalMaxEntropy-v0", STEIN | STEIN_ABLATIONS),
        ("four", "softpolicy/MultiGoal-v0", STEIN),
    )
}  # fmt: skip
# With three goals those runs end before they have settled: SAC's own learning rate, and 2.5 times the updates. There
# also a bandwidth that does not shrink with the particles, and the released setting with steps that it can bear.
STEIN_LONG = {k: STEIN[k] for k in ("sac", "sql", "s2ac", "s2ac-learned")} | {
    "s2ac-bandwidth": ("S2AC, bandwidth 0.2", "s2ac", dict(svgd_steps=10, sigma=0.2, **START, **CAP)),
    "s2ac-release": ("S2AC as released, steps capped", "s2ac", s2ac.RELEASE | dict(svgd_steps=10, **START, **CAP)),
}
MULTIGOAL["three-long"] = MULTIGOAL["three"]._replace(
    protocol=MULTIGOAL["three"].protocol | dict(steps=22_000),
    common=MULTIGOAL["three"].common | dict(lr=3e-4),
    variants=STEIN_LONG,
)

# S2AC without steps, under the protocol of the main runs: with SAC's networks and one particle it should be SAC at a
# fixed temperature.
STEIN_CONTROLS = Study(
    protocol=dict(env_id="Hopper-v5", seeds=[0, 1, 2], steps=100_000, warmup=10_000, eval_every=5_000,
                  eval_episodes=10, checkpoint_every=20_000),
    common=SIZES["small"],
    variants={
        "sac": ("SAC, temperature 0.2", "sac", dict(init_alpha=ALPHA, learn_alpha=False)),
        "s2ac-0": ("S2AC without steps", "s2ac", s2ac.AS_SAC),
    },
)  # fmt: skip

# LSAC's parts and its authors' code, one departure at a time (chapter *Langevin soft actor-critic*). For the 5,000
# updates of this protocol the policy starts nearly greedy, policy and targets move faster and fits come more often. So
# small a diffusion model holds every agent back, so what concerns the critics alone is compared on real data. A
# synthetic row is drawn 320 times before the next fit, so it is moved by steps of 1e-4 (0.03 at a gradient of 1). Runs
# made before that was counted have steps of 1e-3: LONG, without effect where nothing is refined by ascent.
FASTER = "DSAC-T, step size of LSAC"
MODEL = dict(diffusion_width=64, diffusion_blocks=3, diffusion_steps=500)
SYNTHETIC = MODEL | dict(refit_every=1_000, n_synth=1_000, refine_lr=1e-4)
LONG = SYNTHETIC | dict(refine_lr=1e-3)
LARGE = dict(diffusion_width=256, diffusion_blocks=6, diffusion_steps=3_000)
REAL = dict(mix=0.0, diffusion=False, refine="off")
LSAC = Study(
    protocol=dict(env_id="InvertedPendulum-v5", seeds=[0, 1, 2, 3, 4], steps=6_000, warmup=1_000, eval_every=500,
                  eval_episodes=5, checkpoint_every=100_000),
    common=dict(width=64, batch=64, tau=0.02, init_log_alpha=-3.0, policy_lr=1e-3, refine_lr=1e-3),
    variants={
        "lsac": ("LSAC", "lsac", SYNTHETIC),
        "sac": ("SAC", "sac", dict(init_alpha=0.05, lr=1e-3)),
        "dsact": ("DSAC-T", "dsact", {}),
        "dsact-lr-1e-3": (FASTER, "dsact", dict(lr=1e-3)),
        "adam": ("Adam", "lsac", SYNTHETIC | dict(optimizer="adam")),
        "replicas-1": ("1 replica", "lsac", SYNTHETIC | dict(replicas=1)),
        "large-diffusion": ("larger diffusion model", "lsac", SYNTHETIC | LARGE),
        "refine-off": ("no refinement", "lsac", LONG | dict(refine="off")),
        "refine-small": ("refined by steps of 1e-5", "lsac", SYNTHETIC | dict(refine_lr=1e-5)),
        "refine-large": ("refined by steps of 1e-3", "lsac", LONG),
        "refine-large-adam": ("refined by steps of 1e-3, Adam", "lsac", LONG | dict(optimizer="adam")),
        "refine-large-replicas-1": ("refined by steps of 1e-3, 1 replica", "lsac", LONG | dict(replicas=1)),
        "refine-adam": ("refined by one step of Adam", "lsac", SYNTHETIC | dict(refine="adam")),
        "refine-dipo": ("refined by 20 steps of Adam", "lsac", SYNTHETIC | dict(refine="dipo")),
        "refine-real": ("refinement of real data only", "lsac", dict(diffusion=False, refine_lr=1e-4)),
        "mix-25": ("a quarter synthetic", "lsac", SYNTHETIC | dict(mix=0.25)),
        "mix-75": ("three quarters synthetic", "lsac", SYNTHETIC | dict(mix=0.75)),
        "no-writeback": ("refined actions not stored", "lsac", SYNTHETIC | dict(writeback=False)),
        "few-synthetic": ("copies, 16 rows a fit", "lsac", SYNTHETIC | dict(copies=True, n_synth=16)),
        "leak": ("leaked gradient", "lsac", SYNTHETIC | dict(refine="adam", leak=True)),
        "release": ("all as released", "lsac", LONG | lsac.RELEASE | dict(n_synth=16)),
        # the critics by themselves
        "mix-0": ("real data only", "lsac", REAL),
        "real-adam": ("real data, Adam", "lsac", REAL | dict(optimizer="adam")),
        "real-replicas-1": ("real data, 1 replica", "lsac", REAL | dict(replicas=1)),
        "real-replicas-5": ("real data, 5 replicas", "lsac", REAL | dict(replicas=5)),
        "real-replicas-20": ("real data, 20 replicas", "lsac", REAL | dict(replicas=20)),
        "real-psgld": ("real data, pSGLD, noise 0.003", "lsac", REAL | dict(optimizer="psgld", noise_scale=3e-3)),
        "real-noise-1e-8": ("real data, noise 1e-8", "lsac", REAL | dict(noise_scale=1e-8)),
        "real-noise-0.1": ("real data, noise 0.1", "lsac", REAL | dict(noise_scale=0.1)),
        "real-lr-1e-4": ("real data, step size 1e-4", "lsac", REAL | dict(lr=1e-4)),
        "real-lr-3e-4": ("real data, step size 3e-4", "lsac", REAL | dict(lr=3e-4)),
        "real-lr-1e-2": ("real data, step size 1e-2", "lsac", REAL | dict(lr=1e-2)),
        "real-sigma": ("real data, standard deviation not trained", "lsac", REAL | dict(sigma_grad=False)),
        "real-argmax": ("real data, replica of largest value", "lsac", REAL | dict(select="argmax_safe")),
        "real-l2-norm": ("real data, pull of every tensor", "lsac", REAL | dict(l2_norm=1e-4)),
        "real-share-b": ("real data, shared boundary", "lsac", REAL | dict(share_b=True)),
    },
)  # fmt: skip

# Exploration of the point maze: a reward of 1 at four goals, so temperatures start low; environments are stepped
# five at a time. `python -m softpolicy.maze_study` then says what each run explored. A synthetic row is drawn 320 times
# before the next fit here too, hence steps of 1e-4; a run made before that was counted has steps of 1e-3.
ROUTES = MODEL | dict(refit_every=2_000, n_synth=2_000, init_log_alpha=-7.0, refine_lr=1e-4)
MAZE = Study(
    protocol=dict(env_id="softpolicy/PointMaze-v0", seeds=[0, 1, 2, 3, 4], steps=100_000, n_envs=5, warmup=5_000,
                  eval_every=2_500, eval_episodes=10, checkpoint_every=50_000),
    common=dict(width=64, batch=64),
    variants={
        "sac": ("SAC", "sac", dict(init_alpha=1e-3)),
        "greedy": ("SAC without entropy", "sac", dict(init_alpha=1e-6, learn_alpha=False)),
        "dsact": ("DSAC-T", "dsact", dict(init_log_alpha=-7.0)),
        "lsac": ("LSAC", "lsac", ROUTES),
        "lsac-large-refine": ("LSAC, refined by steps of 1e-3", "lsac", ROUTES | dict(refine_lr=1e-3)),
        "adam": ("LSAC with Adam", "lsac", ROUTES | dict(optimizer="adam")),
        "replicas-1": ("LSAC, 1 replica", "lsac", ROUTES | dict(replicas=1)),
        "mix-0": ("LSAC, real data only", "lsac", REAL | dict(init_log_alpha=-7.0)),
    },
)  # fmt: skip

# The maze at the size and under the protocol of the main runs, one update a step. With batches twice as large a
# synthetic row is drawn 640 times before the next fit, hence half the step.
MAZE_SMALL = Study(
    protocol=dict(env_id="softpolicy/PointMaze-v0", seeds=[0, 1, 2], steps=100_000, warmup=10_000, eval_every=5_000,
                  eval_episodes=10, checkpoint_every=20_000),
    common=SIZES["small"],
    variants={k: MAZE.variants[k] for k in ("sac", "dsact")}
    | {"lsac": ("LSAC", "lsac", ROUTES | dict(refine_lr=5e-5))},
)  # fmt: skip

# The first study with the robot in the place of the ball; its episodes are long, so fewer of them evaluate.
MAZE_ANT = Study(
    protocol=MAZE.protocol | dict(env_id="softpolicy/AntMaze-v0", eval_every=5_000, eval_episodes=2,
                                  checkpoint_every=10_000),
    common=MAZE.common,
    variants={k: MAZE.variants[k] for k in ("sac", "dsact", "lsac")},
)  # fmt: skip

# Under the protocol of the main runs: DSAC-T with LSAC's step size (how much of LSAC's lead over DSAC-T is the rate?),
# and LSAC without synthetic data (is it those that cost it return?).
LSAC_CONTROLS = Study(
    protocol=dict(env_id="HalfCheetah-v5", seeds=[0, 1, 2], steps=100_000, warmup=10_000, eval_every=5_000,
                  eval_episodes=10, checkpoint_every=20_000),
    common=SIZES["small"],
    variants={
        "dsact-lr-1e-3": (FASTER, "dsact", dict(lr=1e-3)),
        "dsact-lr-1e-3-dmc": (f"{FASTER}, cheetah-run", "dsact", dict(lr=1e-3)),
        "real-dmc": ("LSAC, real data only, cheetah-run", "lsac", REAL),
    },
    tasks={k: "dm_control/cheetah-run" for k in ("dsact-lr-1e-3-dmc", "real-dmc")},
)  # fmt: skip

# The protocol of LSAC's authors, twenty steps of as many environments for an update, at the steps of the main runs. Of
# the 5,000 updates none would see a fit, so fits come as often as in the main runs *by steps*; a fit makes as many rows
# as there are updates to the next, as there.
LSAC_TWENTY = Study(
    protocol=dict(env_id="HalfCheetah-v5", seeds=[0, 1, 2], steps=100_000, n_envs=20, warmup=10_000, eval_every=5_000,
                  eval_episodes=10, checkpoint_every=20_000),
    common=SIZES["small"],
    variants={
        "sac": ("SAC", "sac", {}),
        "dsact": ("DSAC-T", "dsact", {}),
        "lsac": ("LSAC", "lsac", dict(refit_every=500, n_synth=500)),
    },
)  # fmt: skip

# A time limit stored as an end of the task, as LSAC's code does in DeepMind Control, on a task whose episodes soon earn
# nearly the same in every step. Targets move fast, so that values come near their end within the run.
TIME_LIMIT = Study(
    protocol=dict(env_id="dm_control/cartpole-balance", seeds=[0, 1, 2, 3, 4], steps=25_000, warmup=1_000,
                  eval_every=2_500, eval_episodes=3, checkpoint_every=100_000),
    common=dict(width=64, batch=64, lr=1e-3, policy_lr=1e-3, init_log_alpha=-3.0, tau=0.05),
    variants={
        "limit": ("time limit not an end", "dsact", {}),
        "end": ("time limit stored as an end", "dsact", {}),
    },
    tasks={"end": "dm_control-terminal/cartpole-balance"},
)  # fmt: skip

STUDIES = {
    "langevin": LANGEVIN,
    "langevin-every-step": LANGEVIN_EVERY_STEP,
    "langevin-cheetah": LANGEVIN_CHEETAH,
    "stein-controls": STEIN_CONTROLS,
    "lsac": LSAC,
    "lsac-controls": LSAC_CONTROLS,
    "lsac-twenty": LSAC_TWENTY,
    "time-limit": TIME_LIMIT,
    "maze": MAZE,
    "maze-small": MAZE_SMALL,
    "maze-ant": MAZE_ANT,
}


def config(study: Study, variant: str):
    """The agent's settings of a variant: the study's common ones that the agent has, then the variant's own."""
    _, agent, changes = study.variants[variant]
    agent = importlib.import_module(f"softpolicy.agents.{agent}").Config
    known = {f.name for f in dataclasses.fields(agent)}
    return agent(**{k: v for k, v in study.common.items() if k in known} | changes)


class Stopped(Exception):
    """A run was stopped before its end, so that what follows it cannot be done yet."""


def protocol(study: Study, variant: str) -> dict:
    """The arguments of `train` for a variant."""
    return study.protocol | ({"env_id": study.tasks[variant]} if variant in study.tasks else {})


def run(study: Study, variant: str, out, **changes) -> pd.DataFrame:
    """Make or resume the runs of a variant in a folder below `out`; `changes` replace arguments of the protocol. Raises
    `Stopped` if SIGTERM or a time limit ended it early."""
    folder = Path(out) / variant
    rows = train(config(study, variant), out=folder, **(protocol(study, variant) | changes))
    found = runs.manifest(folder)
    if found["status"] == "stopped":
        raise Stopped(f"{folder} was stopped at step {found['step']} of {found['steps']}; the same command goes on")
    return rows


def load(study: Study, root) -> pd.DataFrame:
    """The rows of those variants that are there, with a column `variant` as pages call it."""
    tables = []
    for variant, (label, *_) in study.variants.items():
        rows = runs.load(Path(root) / variant)
        tables += [rows.assign(variant=label)] if len(rows) else []
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def check_variants(parser: argparse.ArgumentParser, study: Study, given: list[str] | None) -> None:
    """End with a usage error unless the study has all variants that were given."""
    for variant in given or ():
        if variant not in study.variants:
            parser.error(f"unknown variant '{variant}'; accepted are {', '.join(study.variants)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.studies", description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, one below it for each variant")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="only these, to be joined with the others (softpolicy.join)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = STUDIES[args.study]
    check_variants(parser, study, args.variants)
    changes = {"seeds": args.seeds} if args.seeds else {}
    for variant in args.variants or study.variants:
        try:
            rows = run(study, variant, args.out, **changes)
        except (ValueError, runs.RunError) as e:
            sys.exit(f"error: {e}")
        except Stopped as e:
            print(e)
            sys.exit(75)
        if rows.empty:
            print(f"{variant}: every seed diverged before the first evaluation", flush=True)
            continue
        last = rows[rows["step"] == rows["step"].max()]["return"]
        print(f"{variant}: {last.mean():.1f} at the last evaluation", flush=True)


if __name__ == "__main__":
    main()
