"""The claims of LSAC (arXiv 2501.17827); chapter *Langevin soft actor-critic*."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from softpolicy import report, runs, studies
from softpolicy.agents import dsact, lsac, sac
from softpolicy.claims.verdicts import Claim, beats, difference, paired, remark

LSAC = "[Langevin soft actor-critic](lsac.ipynb)"
LSAC_TASKS = ("HalfCheetah-v5", "dm_control/cheetah-run")


def lsac_claims() -> list[Claim]:
    """Chapter *Langevin soft actor-critic*: optimiser, replicas, synthetic data, mazes, returns and cost beside SAC and
    DSAC-T."""
    recorded = runs.data_root() / "runs"
    return [
        *lsac_study_claims(recorded / "lsac-ablations"),
        *maze_claims(maze_table(recorded / "maze")),
        *maze_claims(maze_table(recorded / "maze-small", studies.MAZE_SMALL), studies.MAZE_SMALL),
        *maze_claims(maze_table(recorded / "maze-ant", studies.MAZE_ANT), studies.MAZE_ANT),
        *(remark(beats("lsac", other, task, LSAC, "returns at least as much as"),
                 f"step sizes of the critics {lsac.Config.lr:g} and {module.Config.lr:g}")
          for task in LSAC_TASKS for other, module in (("sac", sac), ("dsact", dsact))),
        *control_claims(recorded / "lsac-controls"),
        *twenty_claims(recorded / "lsac-twenty"),
        lsac_cost_claim(runs.data_root() / "bench" / "cpu.json"),
    ]  # fmt: skip


def lsac_study_claims(place: Path) -> list[Claim]:
    """From the recorded study: what aSGLD, replicas, synthetic data and refinement are worth on its task."""
    rows, protocol = studies.load(studies.LSAC, place), studies.LSAC.protocol
    scale, by_label = f"{protocol['env_id']}, {protocol['steps']:,} steps", {}
    if len(rows):
        by_label = dict(list(rows.groupby("variant")))
    found, real, at_end, over = [], "real data only", report.score_at, report.mean_return
    rate = {k: f"{studies.config(studies.LSAC, k).lr:g}" for k in ("lsac", "sac", "dsact", "dsact-lr-1e-3")}
    steps = f"LSAC (critics by steps of {rate['lsac']}) returns more than"
    adam = "Adam, which is not clipped and has bias correction"
    for ours, other, score, text in (
        ("LSAC", "Adam", at_end, f"LSAC's critics by aSGLD return more than by {adam}"),
        (real, "real data, Adam", at_end, f"Critics by aSGLD return more than by {adam}, on real data only"),
        (real, "real data, noise 1e-8", at_end,
         f"Langevin noise of {lsac.Config.noise_scale:g} returns more than noise of 1e-8, on real data only"),
        ("LSAC", "1 replica", at_end, "Ten replicas return more than one"),
        (real, "real data, 1 replica", at_end, "Ten replicas return more than one, on real data only"),
        ("LSAC", "SAC", at_end, f"{steps} SAC ({rate['sac']})"),
        ("LSAC", "DSAC-T", at_end, f"{steps} DSAC-T with its own {rate['dsact']}"),
        ("LSAC", "DSAC-T, step size of LSAC", at_end, f"{steps} DSAC-T with LSAC's {rate['dsact-lr-1e-3']}"),
        ("LSAC", real, over, "Synthetic data with refined actions learn faster than real data alone"),
        ("larger diffusion model", real, over, "Those of a larger diffusion model learn faster than real data alone"),
        ("LSAC", "no refinement", over, "Synthetic data learn faster with refined actions than as generated"),
    ):  # fmt: skip
        pair = [
            score(by_label[label], protocol["steps"]) if label in by_label else pd.Series(dtype=float)
            for label in (ours, other)
        ]
        measure = "last three evaluations" if score is at_end else "mean over training"
        found.append(Claim(LSAC, f"{text} ({scale}, {measure})", *difference(*pair)))
    return found


def control_claims(place: Path) -> list[Claim]:
    """LSAC's main runs beside their controls, from the recorded study of those: DSAC-T with LSAC's step size, and LSAC
    on real data only."""
    study, found = studies.LSAC_CONTROLS, []
    for variant, (_, agent, _) in study.variants.items():
        task, steps = (studies.protocol(study, variant)[k] for k in ("env_id", "steps"))
        scale = f"{steps // 1000}k steps, size small"
        if agent == "dsact":
            score, words = report.score_at, "LSAC returns at least as much as DSAC-T with LSAC's step size"
        else:
            score, words = report.mean_return, "Synthetic data with refined actions learn faster than real data alone"
            scale = f"{scale}, mean over training"
        both = report.main_rows("lsac", task, "small"), runs.load(place / variant)
        scores = (score(rows, steps) if len(rows) else pd.Series(dtype=float) for rows in both)
        verdict = difference(*scores, at_least="at least" in words)
        found.append(Claim(LSAC, f"{words} on {task} ({scale})", *verdict))
    return found


def twenty_claims(place: Path) -> list[Claim]:
    """From the recorded study under the authors' protocol, twenty environment steps an update. Nothing is decided
    between agents that earn less than a robot at rest, 0: neither has learned to run, and they differ in their costs of
    control."""
    study, score = studies.LSAC_TWENTY, {}
    rows, steps = studies.load(study, place), study.protocol["steps"]
    if len(rows):
        score = {label: report.score_at(own, steps) for label, own in rows.groupby("variant")}
    ours, *others = (score.get(k, pd.Series(dtype=float)) for k in ("LSAC", "SAC", "DSAC-T"))
    where = f"{study.protocol['env_id']} with {study.protocol['n_envs']} steps an update ({steps // 1000}k steps"
    found = []
    for name, theirs in zip(("SAC", "DSAC-T"), others, strict=True):
        verdict, evidence = difference(ours, theirs, at_least=True)
        if verdict != "not run" and max(ours.mean(), theirs.mean()) <= 0:
            verdict, evidence = "undecided", f"{evidence}; neither earns more than a robot at rest (0)"
        found.append(Claim(LSAC, f"LSAC returns at least as much as {name} on {where}, size small)", verdict, evidence))
    return found


def maze_table(place: Path, study: studies.Study = studies.MAZE) -> pd.DataFrame:
    """The runs of a study of mazes below `place` that `maze_study` was applied to, a row a seed: coverage at the end
    and its gain since the warm-up, whose actions are uniform; the routes that 5 % of the episodes after the warm-up
    took (found); and of the final policy the routes and goals to which 5 % of its episodes went, and the share that
    reached a goal. Folders that are no variant are left alone, and tables of a run before its end."""
    table = []
    for folder, (label, *_) in study.variants.items():
        out = Path(place) / folder
        if not ((out / "coverage.csv").exists() and (out / "routes.csv").exists()):
            continue
        identity, coverage = runs.manifest(out)["identity"], pd.read_csv(out / "coverage.csv")
        if coverage["step"].max() < study.protocol["steps"]:
            continue
        routes = pd.read_csv(out / "routes.csv", keep_default_na=False)
        share = routes["count"] / routes.groupby(["source", "seed"])["count"].transform("sum")
        often = routes[(share >= 0.05) & (routes["goal"] >= 0)]
        for seed, mine in coverage.groupby("seed"):
            taken, found = (often[(often["seed"] == seed) & (often["source"] == k)] for k in ("policy", "training"))
            ended = routes[(routes["seed"] == seed) & (routes["source"] == "policy")]
            end, before = mine["coverage"].iloc[-1], mine[mine["step"] <= identity["warmup"]]["coverage"].max()
            table.append(
                {"env_id": identity["env_id"], "variant": label, "seed": seed, "coverage": end, "gain": end - before,
                 "steps": mine["step"].iloc[-1], "found": len(found), "routes": len(taken),
                 "goals": taken["goal"].nunique(), "folder": out,
                 "reached": ended.loc[ended["goal"] >= 0, "count"].sum() / ended["count"].sum()}
            )  # fmt: skip
    return pd.DataFrame(table)


def maze_claims(table: pd.DataFrame, study: studies.Study = studies.MAZE) -> list[Claim]:
    """From `maze_table` of a study: whether LSAC goes several ways, the baselines one or none, and LSAC more than they;
    and whether it visits more of the maze. Routes are judged twice on both sides: those found in training, and those of
    the final policy. LSAC with other steps of refinement is judged as far as it is recorded. Where no agent goes any
    route, this is all that is said of routes."""
    config = {label: studies.config(study, k) for k, (label, *_) in study.variants.items()}
    score = dict(list(table.groupby("variant"))) if len(table) else {}
    steps, n_envs = study.protocol["steps"] // 1000, study.protocol.get("n_envs", 1)
    task = study.protocol["env_id"].removeprefix("softpolicy/").removesuffix("-v0")
    place = f"({task}, {steps}k steps, {config['LSAC'].width} wide, {n_envs} an update)"
    others = [k for k in ("SAC", "SAC without entropy", "DSAC-T") if k in config]
    refined, found = [k for k in score if k.startswith("LSAC, refined by")], []

    def each_seed(name: str, agents: list[str], text: str, holds) -> None:
        """A claim on the number of routes of every seed of some agents."""
        seen = {k: score[k][name] for k in agents if k in score}
        counts = "; ".join(f"{k} {' '.join(map(str, routes))}" for k, routes in seen.items())
        verdict = paired(holds(pd.concat(seen))) if seen else "not run"
        found.append(Claim(LSAC, f"{text} {place}", verdict, f"by seed: {counts}" if seen else "no run recorded"))

    def more(name: str, other: str, text: str) -> None:
        """A claim that LSAC has more of something than another agent."""
        both = [score[k][name] if k in score else pd.Series(dtype=float) for k in ("LSAC", other)]
        claim = Claim(LSAC, f"LSAC {text} {other} {place}", *difference(*both))
        if name == "coverage" and claim.verdict != "not run":
            gains = " and ".join(f"{score[k]['gain'].mean():.3g}" for k in ("LSAC", other))
            claim = remark(claim, f"gained after the uniform warm-up {gains}")
        rates = [config[k].lr for k in ("LSAC", other)]
        if rates[0] != rates[1]:
            claim = remark(claim, "step sizes of the critics {:g} and {:g}".format(*rates))
        found.append(claim)

    ways = [("found", "find", "in training"), ("routes", "take", "with the final policy")]
    if "LSAC" in score and not table[["found", "routes"]].to_numpy().any():
        evidence = f"none of {', '.join(score)} takes a route to a goal in 5 % of the episodes of a seed"
        found, ways = [Claim(LSAC, f"LSAC takes several routes {place}", "undecided", evidence)], []
    for name, verb, when in ways:
        for ours in ("LSAC", *refined):
            each_seed(name, [ours], f"{ours} {verb}s several routes {when}", lambda n: n > 1)
        text = f"Baselines ({', '.join(k for k in others if k in score) or ', '.join(others)}) {verb} one route or none"
        each_seed(name, others, f"{text} {when}", lambda n: n <= 1)
        for other in others:
            more(name, other, f"{verb}s more routes {when} than")
    for other in (*others, *(k for k in ("LSAC with Adam", "LSAC, 1 replica") if k in config)):
        more("coverage", other, "visits more of the maze than")
    return found


def lsac_costs(bench: Path, size: str = "paper") -> dict[str, float]:
    """Milliseconds of one update at a size from a recorded table of `ci/bench`, of SAC, DSAC-T, LSAC, and what LSAC's
    fits and generated transitions, whose size is one, add to each; empty if one of them is not in the table."""
    rows = json.loads(bench.read_text())["rows"] if bench.exists() else []
    rate = {(r["what"], r["name"]): r["per_second"] for r in rows if r["seeds"] == 1}
    update, ours = f"update, {size}", "diffusion, ours"
    needed = [(update, name) for name in ("sac", "dsact", "lsac")] + [("training step", ours), ("transition", ours)]
    if not rate.keys() >= set(needed):
        return {}
    config = lsac.Config()
    fit = config.diffusion_steps / rate["training step", ours] + config.n_synth / rate["transition", ours]
    costs = {report.agent_name(name): 1e3 / rate[update, name] for name in ("sac", "dsact", "lsac")}
    return costs | {"LSAC's fits and generation": 1e3 * fit / config.refit_every}


def lsac_cost_claim(bench: Path) -> Claim:
    """Time of an update beside SAC and DSAC-T; the paper says comparable, twice is a bound of ours."""
    text = "LSAC's computing time an update, with our small diffusion model, is at most twice SAC's and DSAC-T's"
    costs = lsac_costs(bench)
    if not costs:
        return Claim(LSAC, text, "not run", "no benchmark recorded")
    ours = costs["LSAC"] + costs["LSAC's fits and generation"]
    ratio = pd.Series({name: ours / costs[name] for name in ("SAC", "DSAC-T")})
    evidence = ", ".join(f"{x:.1f} times {name}" for name, x in ratio.items())
    word = "mixed" if (ratio <= 2).nunique() == 2 else paired(ratio <= 2)
    return Claim(LSAC, text, word, f"{evidence} (paper size, one seed, fits included)")
