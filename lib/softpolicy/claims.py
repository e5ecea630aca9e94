"""The claims of the papers, each with what our recorded rows say about it: the table on page one and in the chapters.

`python -m softpolicy.claims` prints it in Markdown, for the site.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from softpolicy import multigoal_study, report, runs, stats, studies
from softpolicy.agents import dsact, lsac, sac


class Claim(NamedTuple):
    """A row of the table of claims: where it is tested, what is claimed by whom, and what our rows say."""

    chapter: str
    claim: str
    verdict: str
    evidence: str


def claims(root: Path | None = None) -> list[Claim]:
    """Every claim the book tests, with the verdict that the recorded rows give."""
    return [*sac_claims(root), *langevin_claims(root), *stein_claims(root), *lsac_claims(root)]


def sac_claims(root: Path | None = None) -> list[Claim]:
    """Chapter *Soft policies*: returns at 100k steps beside the reported ones."""
    table = report.against_reported(root=root)
    found = []
    for _, r in table[table["steps"] == 100_000].iterrows():
        evidence = "no run recorded"
        if r["n"]:
            evidence = (
                f"ours {r['ours']:.0f} {r['interval']} (n = {r['n']}); reported {r['reported']} on {r['reported_env']}"
            )
        text = f"SAC on {r['env_id']} at 100k steps returns what {r['source']} reports"
        found.append(Claim("[Soft policies](soft_policies.ipynb)", text, r["verdict"], evidence))
    return found


LANGEVIN = "[Langevin Q-learning](langevin_q_learning.ipynb)"


def langevin_claims(root: Path | None = None) -> list[Claim]:
    """Chapter *Langevin Q-learning*: mixing and coverage on the bandit, returns and cost beside SAC."""
    tasks = ["HalfCheetah-v5", "Hopper-v5"]
    return [
        *bandit_claims(runs.data_root() / "bandit"),
        *(beats("nclql", "sac", task, LANGEVIN, "returns at least as much as", root) for task in tasks),
        *(remark(beats("nclql", "lql", task, LANGEVIN, "returns at least as much as", root),
                 "LQL with its default step, which is too small") for task in tasks),
        *ablation_claims(runs.data_root() / "runs" / "langevin-ablations"),
        *cheetah_claims(runs.data_root() / "runs" / "langevin-cheetah", root),
        cost_claim(runs.data_root() / "bench" / "cpu.json"),
    ]  # fmt: skip


def remark(claim: Claim, words: str) -> Claim:
    """The claim with a remark at the end of its evidence."""
    return claim._replace(evidence=f"{claim.evidence}; {words}")


ENTROPY = "[The entropy of a sampler](entropy.ipynb)"
ACTION = "action, paper"  # rows of the benchmark
STEIN = "[Stein soft actor-critic](stein_soft_actor_critic.ipynb)"


def stein_claims(root: Path | None = None) -> list[Claim]:
    """Chapters *The entropy of a sampler* and *Stein soft actor-critic*: the closed form, the multi-goal tasks, returns
    beside SAC and SQL, the amortised sampler."""
    place = runs.data_root() / "runs" / "multigoal"
    return [
        *entropy_claims(runs.data_root() / "entropy"),
        *multigoal_claims(place),
        *(beats("s2ac", other, task, STEIN, "returns at least as much as", root)
          for task in ("Hopper-v5", "Walker2d-v5") for other in ("sac", "sql")),
        *amortised_claims(place, runs.data_root() / "bench" / "cpu.json"),
    ]  # fmt: skip


def entropy_claims(place: Path) -> list[Claim]:
    """From the recorded estimates: the closed form beside true entropies, with fixed and with adaptive bandwidths."""
    table, found = pd.read_csv(place / "estimates.csv"), []
    rule = table["bandwidth"] == "half-mean"
    for cases, words in (
        (~rule & (table["d"] == 2), "with a fixed bandwidth of 3 to 7, in 2 dimensions"),
        (~rule & (table["d"] == 10), "with a fixed bandwidth of 6.3, in 10 dimensions"),
        (rule, "with the adaptive bandwidth of the released code"),
    ):
        rows = table[cases].groupby(["target", "bandwidth"])[["estimate", "true", "bound"]].mean()
        error, bound = rows["estimate"] - rows["true"], rows["bound"]
        text = f"SVGD's closed form gives the entropy of known targets to 0.1 nats, {words}"
        cases = "case" if len(rows) == 1 else "cases"
        evidence = (
            f"errors {span(error)} nats, {len(rows)} {cases} of 10 seeds; bound of invertibility {span(bound)} (below 1"
            " it holds for the leave-one-out step)"
        )
        found.append(Claim(ENTROPY, text, paired(error.abs() <= 0.1), evidence))
    return found


def span(values: pd.Series) -> str:
    """The range of some numbers, or the only one."""
    return " to ".join(dict.fromkeys(f"{v:.2f}" for v in (values.min(), values.max())))


def multigoal_claims(place: Path) -> list[Claim]:
    """From the recorded multi-goal runs: nearness to the soft optimum, obstacles, what a learned start is worth, and
    what the steps add to it."""
    found = []
    for task in studies.MULTIGOAL:
        where = task.replace("-long", " goals, trained longer") if "-" in task else f"{task} goals"
        table = multigoal_study.summary(place, task)
        score = {label: rows for label, rows in table.groupby("variant")} if len(table) else {}
        for column, sign, text in (
            ("distance", -1, "S2AC splits its episodes among the goals more like the soft-optimal policy than"),
            ("soft", 1, "S2AC has a higher soft return than"),
            ("walled", 1, "S2AC reaches a goal more often, after a wall was put in, than"),
            ("elsewhere", 1, "S2AC ends more often at another goal than its favourite (it could spare that one) than"),
        ):
            found.append(beyond(score, "S2AC", ("SAC", "SQL"), column, sign, f"{text} SAC and SQL ({where})"))
        if task == "three":
            ours = "S2AC, learned start, 3 steps"
            start = "S2AC has a higher soft return with 3 steps from a learned start than with"
            steps = "SVGD steps add to a learned start: 3 steps have a higher soft return than none"
            for other, text in (
                ("S2AC, 3 steps", f"{start} 3 from a fixed one"),
                ("S2AC", f"{start} 10 from a fixed one"),
                ("S2AC, learned start, no step", steps),
            ):
                found.append(beyond(score, ours, (other,), "soft", 1, f"{text} ({where})"))
    return found


def beyond(score: dict[str, pd.DataFrame], ours: str, others: tuple, column: str, sign: int, text: str) -> Claim:
    """A claim that a variant is ahead of others in a column of `multigoal_study.summary` (sign -1: lower is better)."""
    if not score.keys() >= {ours, *others}:
        return Claim(STEIN, text, "not run", "no run recorded")
    words = {difference(sign * score[ours][column], sign * score[other][column])[0] for other in others}
    means = ", ".join(f"{name} {score[name][column].mean():.3g}" for name in (ours, *others))
    n = len(score[ours])
    return Claim(STEIN, text, words.pop() if len(words) == 1 else "mixed", f"{means} (n = {n} each)")


def amortised_claims(place: Path, bench: Path) -> list[Claim]:
    """From the recorded multi-goal runs and a benchmark: the amortised sampler beside the particles it replaces."""
    tables = [multigoal_study.shares(place, task, "S2AC") for task in studies.MULTIGOAL]
    tables = [table for table in tables if len(table)]
    same = "The amortised sampler acts like the particles: shares of the goals within 0.1"
    if not tables:
        return [Claim(STEIN, same, "not run", "no run recorded")]
    apart = pd.concat([(t.loc["amortised"] - t.loc["random"]).abs().max(axis=1) for t in tables])
    evidence = f"largest difference {apart.min():.2f} to {apart.max():.2f}, within 0.1 in {(apart <= 0.1).sum()} of"
    found = [Claim(STEIN, same, paired(apart <= 0.1), f"{evidence} {len(apart)} runs (multi-goal tasks, 10 steps)")]
    rows = [r for r in json.loads(bench.read_text())["rows"] if r["what"] == ACTION and r["seeds"] == 1]
    rate = {r["name"]: r["per_second"] for r in rows}
    text = "The amortised sampler is faster than the particles"
    if not rate.keys() >= {"s2ac", "s2ac amortised"}:
        return [*found, Claim(STEIN, text, "not run", "no benchmark recorded")]
    ratio, how = rate["s2ac amortised"] / rate["s2ac"], f"({ACTION} size, 3 steps, one seed)"
    return [
        *found,
        Claim(STEIN, text, "reproduced" if ratio > 1 else "not reproduced", f"{ratio:.1f} times {how}"),
    ]


LSAC = "[Langevin soft actor-critic](lsac.ipynb)"
LSAC_TASKS = ("HalfCheetah-v5", "dm_control/cheetah-run")


def lsac_claims(root: Path | None = None) -> list[Claim]:
    """Chapter *Langevin soft actor-critic*: optimiser, replicas, synthetic data, mazes, returns and cost beside SAC and
    DSAC-T."""
    recorded = runs.data_root() / "runs"
    return [
        *lsac_study_claims(recorded / "lsac-ablations"),
        *maze_claims(maze_table(recorded / "maze")),
        *(remark(beats("lsac", other, task, LSAC, "returns at least as much as", root),
                 f"step sizes of the critics {lsac.Config.lr:g} and {module.Config.lr:g}")
          for task in LSAC_TASKS for other, module in (("sac", sac), ("dsact", dsact))),
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


def maze_table(place: Path) -> pd.DataFrame:
    """The recorded runs in mazes that `maze_study` was applied to, a row a seed: coverage at the end and its gain since
    the warm-up, whose actions are uniform; and of the final policy the routes and goals to which 5 % of its episodes
    went, and the share that reached a goal."""
    labels, table = {folder: label for folder, (label, *_) in studies.MAZE.variants.items()}, []
    for out in sorted(runs.find(place), key=lambda out: [*labels, out.name].index(out.name)):
        if not ((out / "coverage.csv").exists() and (out / "routes.csv").exists()):
            continue
        identity, coverage = runs.manifest(out)["identity"], pd.read_csv(out / "coverage.csv")
        routes = pd.read_csv(out / "routes.csv", keep_default_na=False).query("source == 'policy'")
        for seed, rows in routes.groupby("seed"):
            share = rows["count"] / rows["count"].sum()
            taken, mine = rows[(share >= 0.05) & (rows["goal"] >= 0)], coverage[coverage["seed"] == seed]
            end, before = mine["coverage"].iloc[-1], mine[mine["step"] <= identity["warmup"]]["coverage"].max()
            table.append(
                {"env_id": identity["env_id"], "variant": labels.get(out.name, report.agent_name(identity["agent"])),
                 "seed": seed, "coverage": end, "gain": end - before, "steps": mine["step"].iloc[-1],
                 "routes": len(taken), "goals": taken["goal"].nunique(), "reached": share[rows["goal"] >= 0].sum(),
                 "folder": out}
            )  # fmt: skip
    return pd.DataFrame(table)


def maze_claims(table: pd.DataFrame) -> list[Claim]:
    """From `maze_table`: whether LSAC's final policy takes several routes, and whether it covers more than others."""
    found = []
    rate = {label: studies.config(studies.MAZE, k).lr for k, (label, *_) in studies.MAZE.variants.items()}
    for task in ("PointMaze", "AntMaze"):
        here = table[table["env_id"] == f"softpolicy/{task}-v0"] if len(table) else table
        score = {name: rows for name, rows in here.groupby("variant")} if len(here) else {}
        text, routes = f"LSAC's final policy takes several routes in {task}", pd.Series(dtype=int)
        if "LSAC" in score:
            routes = score["LSAC"]["routes"]
        evidence = f"routes of each seed: {' '.join(map(str, routes))}" if len(routes) else "no run recorded"
        found.append(Claim(LSAC, text, paired(routes > 1) if len(routes) else "not run", evidence))
        others = ("SAC", "SAC without entropy", "DSAC-T")
        pairs = [(other, "routes", "takes more routes than") for other in others]
        pairs += [
            (k, "coverage", "visits more of the maze than") for k in (*others, "LSAC with Adam", "LSAC, 1 replica")
        ]
        for other, column, words in pairs if task == "PointMaze" or score else ():
            both = [score[k][column] if k in score else pd.Series(dtype=float) for k in ("LSAC", other)]
            claim = Claim(LSAC, f"LSAC {words} {other} ({task})", *difference(*both))
            if column == "coverage" and claim.verdict != "not run":
                gains = " and ".join(f"{score[k]['gain'].mean():.3g}" for k in ("LSAC", other))
                claim = remark(claim, f"gained after the uniform warm-up {gains}")
            if rate[other] != rate["LSAC"]:
                claim = remark(claim, f"step sizes of the critics {rate['LSAC']:g} and {rate[other]:g}")
            found.append(claim)
    return found


def lsac_costs(bench: Path) -> dict[str, float]:
    """Milliseconds of one update at size paper from a recorded table of `ci/bench`, of SAC, DSAC-T, LSAC, and what
    LSAC's fits and generated transitions add to each; empty if one of them is not in the table."""
    rows = json.loads(bench.read_text())["rows"] if bench.exists() else []
    rate = {(r["what"], r["name"]): r["per_second"] for r in rows if r["seeds"] == 1}
    update, ours = "update, paper", "diffusion, ours"
    needed = [(update, name) for name in ("sac", "dsact", "lsac")] + [("training step", ours), ("transition", ours)]
    if not rate.keys() >= set(needed):
        return {}
    config = lsac.Config()
    fit = config.diffusion_steps / rate["training step", ours] + config.n_synth / rate["transition", ours]
    costs = {report.agent_name(name): 1e3 / rate[update, name] for name in ("sac", "dsact", "lsac")}
    return costs | {"LSAC's fits and generation": 1e3 * fit / config.refit_every}


def lsac_cost_claim(bench: Path) -> Claim:
    """Time of an update beside SAC and DSAC-T; "comparable" is at most twice as much, a bound of ours."""
    text, costs = (
        "LSAC's computing time an update is comparable to SAC's and DSAC-T's (at most twice)",
        lsac_costs(bench),
    )
    if not costs:
        return Claim(LSAC, text, "not run", "no benchmark recorded")
    ours = costs["LSAC"] + costs["LSAC's fits and generation"]
    ratio = pd.Series({name: ours / costs[name] for name in ("SAC", "DSAC-T")})
    evidence = ", ".join(f"{x:.1f} times {name}" for name, x in ratio.items())
    word = "mixed" if (ratio <= 2).nunique() == 2 else paired(ratio <= 2)
    return Claim(LSAC, text, word, f"{evidence} (paper size, one seed, fits included)")


def paired(better: pd.Series) -> str:
    """The verdict on a comparison made once for each training seed."""
    if better.all():
        return "reproduced"
    return "not reproduced" if better.mean() <= 0.5 else "mixed"


def bandit_claims(study: Path) -> list[Claim]:
    """From the recorded bandit study: mixing at an equal number of gradients, and coverage of modes."""
    table = pd.read_csv(study / "samplers.csv")
    scores, found = table.set_index(["critic", "sampler", "seed"]).sort_index(), []
    raw = ("LQL, 20 steps", "LQL, 20 steps of 0.003", "LQL, 20 steps of 0.005")
    unit = ("LQL, 20 unit steps", "LQL, 20 unit steps of 0.0003", "LQL, 20 unit steps of 0.001")
    soft = "mixes faster than LQL at 20 gradients: nearer to the soft policy, raw gradients, wide noise (ours), w = 10"
    for critic, ours, theirs, column, sign, text in (
        ("wide", "NC-LQL raw, T 2, w 10", raw[:1], "tv", -1, f"{soft}, LQL with steps of 0.001"),
        ("wide", "NC-LQL raw, T 2, w 10", raw, "tv", -1, f"{soft}, LQL with the best of three steps"),
        ("narrow", "NC-LQL as released, w 500", unit, "mean", 1,
         "finds more reward than LQL at 20 gradients: unit gradients, as released, w = 500, LQL with the best of three"
         " steps"),
    ):  # fmt: skip
        best = max(theirs, key=lambda name: sign * scores.loc[(critic, name), column].mean())  # noqa: B023
        a, b = scores.loc[(critic, ours), column], scores.loc[(critic, best), column]
        evidence = (
            f"{'mean reward' if column == 'mean' else 'total variation'} {a.mean():.2f} against {b.mean():.2f}"
            f" ({best}), better on {(sign * a > sign * b).sum()} of {len(a)} critics"
        )
        text = f"Annealed sampling of noise-conditioned critics {text}"
        found.append(Claim(LANGEVIN, text, paired(sign * a > sign * b), evidence))
    for critic, sampler in (("wide", "NC-LQL unit, w 100"), ("narrow", "NC-LQL as released, w 500")):
        rows = table[(table["critic"] == critic) & (table["sampler"] == sampler)]
        covers = (rows["modes"] > 6.5) & (rows["mean"] > 0.7)
        text = f"{sampler}, {critic} noise, covers a multimodal bandit: 6.5 of 8 modes at a mean reward of 0.7 or more"
        span = {name: f"{rows[name].min():.2f} to {rows[name].max():.2f}" for name in ("modes", "mean", "tv")}
        evidence = (
            f"{span['modes']} of 8 modes (none where no action is near one: {rows['modes'].isna().sum()}), mean reward"
            f" {span['mean']} over {len(rows)} critics; total variation to the"
            f" soft policy of the same w {span['tv']}"
        )
        found.append(Claim(LANGEVIN, text, paired(covers), evidence))
    return found


def beats(
    ours: str, theirs: str, env_id: str, chapter: str, words: str, root=None, size="small", step=100_000
) -> Claim:
    """Two agents on a task at the same number of steps and updates, from main runs of one size; see `difference`."""
    names = {agent: report.agent_name(agent) for agent in (ours, theirs)}
    text = f"{names[ours]} {words} {names[theirs]} on {env_id} ({step // 1000}k steps, size {size})"
    scores = []
    for agent in (ours, theirs):
        rows = runs.load(*(out for out in report.main_runs(agent, size, root) if report.on_task(out, env_id)))
        scores.append(report.score_at(rows, step) if len(rows) else pd.Series(dtype=float))
    return Claim(chapter, text, *difference(*scores, at_least="at least" in words))


def difference(ours: pd.Series, theirs: pd.Series, at_least: bool = False) -> tuple[str, str]:
    """Verdict and evidence on "ours is more than theirs", from the scores of runs: "reproduced" if the 95 % bootstrap
    interval of the difference lies above zero, "not reproduced" if below, else "undecided". With `at_least` on "ours
    is at least theirs": an interval that begins at zero is enough, as of equal scores that all runs share."""
    if len(ours) == 0 or len(theirs) == 0:
        return "not run", "no run recorded"
    low, high = stats.bootstrap_difference(ours, theirs)
    above = low >= 0 if at_least else low > 0
    word = "reproduced" if above else "not reproduced" if high < 0 else "undecided"
    both = " and ".join(f"{s.mean():.4g} (n = {len(s)})" for s in (ours, theirs))
    return word, f"{both}; difference [{low:.3g}, {high:.3g}]"


def ablation_claims(place: Path) -> list[Claim]:
    """From the recorded ablations: what noise conditioning and annealing are worth on the task of the study."""
    study = studies.LANGEVIN
    rows, task = studies.load(study, place), study.protocol["env_id"]
    score = (
        {label: report.score_at(r, study.protocol["steps"]) for label, r in rows.groupby("variant")}
        if len(rows)
        else {}
    )
    found, none = [], pd.Series(dtype=float)
    for other in ("LQL", "LQL, steps of 0.001", "LQL, annealed steps", "LQL, annealed steps, learning rate 0.002"):
        text = f"NC-LQL returns more than {other.replace(',', ' with', 1)}, at as many gradients, on {task}"
        text = f"{text} ({study.protocol['steps']:,} steps)"
        found.append(Claim(LANGEVIN, text, *difference(score.get("NC-LQL", none), score.get(other, none))))
    return found


def cheetah_claims(place: Path, root: Path | None = None) -> list[Claim]:
    """From recorded runs on HalfCheetah: NC-LQL beside annealed steps without noise conditioning."""
    study, label = studies.LANGEVIN_CHEETAH, studies.LANGEVIN_CHEETAH.variants["lql-annealed"][0]
    rows, task, step = studies.load(study, place), study.protocol["env_id"], study.protocol["steps"]
    ours = runs.load(*(out for out in report.main_runs("nclql", "small", root) if report.on_task(out, task)))
    pair = [ours, rows[rows["variant"] == label] if len(rows) else rows]
    text, found = f"NC-LQL returns more than {label.replace(',', ' with', 1)}, at as many gradients, on {task}", []
    for measure, score in (("last three evaluations", report.score_at), ("mean over training", report.mean_return)):
        scores = [score(r, step) if len(r) else pd.Series(dtype=float) for r in pair]
        claim = Claim(LANGEVIN, f"{text} ({step // 1000}k steps, size small, {measure})", *difference(*scores))
        found.append(remark(claim, "two Adam steps an update against one") if claim.verdict != "not run" else claim)
    return found


def cost_claim(bench: Path) -> Claim:
    """Time of an update and number of parameters, from a recorded table of `ci/bench` and the networks themselves."""
    text = (
        "NC-LQL: 1.0 times the training time and 0.98 times the parameters of a reference (second-hand; which, unknown)"
    )
    if not bench.exists():
        return Claim(LANGEVIN, text, "not run", "no benchmark recorded")
    table, names = json.loads(bench.read_text()), ("nclql", "sac", "lql")
    per_second = {(r["what"], r["name"], r["seeds"]): r["per_second"] for r in table["rows"]}
    rate = {name: per_second["update, paper", name, 1] for name in names}
    count = {}
    for name in names:
        agent = importlib.import_module(f"softpolicy.agents.{name}").Config().build(17, 6, [0])
        count[name] = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    each = (
        f"{rate[other] / rate['nclql']:.1f} and {count['nclql'] / count[other]:.2f} beside {report.agent_name(other)}"
        for other in ("sac", "lql")
    )
    return Claim(
        LANGEVIN, text, "not comparable", f"{', '.join(each)} (paper size, one seed, {table['about']['device']})"
    )


def claims_table(root: Path | None = None) -> str:
    """The claims as a Markdown table."""
    return pd.DataFrame(claims(root)).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    try:
        print(claims_table())
    except runs.RunError as e:
        sys.exit(f"{e}")
