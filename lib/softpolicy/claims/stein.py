"""The claims of S2AC (arXiv 2405.00987); chapters *The entropy of a sampler* and *Stein soft actor-critic*."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from softpolicy import multigoal_study, report, runs, studies
from softpolicy.claims.verdicts import Claim, beats, difference, paired, remark

ENTROPY = "[The entropy of a sampler](entropy.ipynb)"
ACTION = "action, paper"  # rows of the benchmark
STEIN = "[Stein soft actor-critic](stein_soft_actor_critic.ipynb)"


def stein_claims() -> list[Claim]:
    """Chapters *The entropy of a sampler* and *Stein soft actor-critic*: the closed form, the multi-goal tasks, returns
    beside SAC and SQL, the amortised sampler."""
    place = runs.data_root() / "runs" / "multigoal"
    return [
        *entropy_claims(runs.data_root() / "entropy"),
        *multigoal_claims(place),
        *mujoco_claims(),
        *amortised_claims(place, runs.data_root() / "bench" / "cpu.json"),
    ]


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
        if task == "four":
            found.append(all_goals(place, score.get("S2AC")))
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


def all_goals(place: Path, rows: pd.DataFrame | None) -> Claim:
    """Whether S2AC's seeds reach all four goals and return what the soft-optimal policy does; the 15 is ours."""
    text = "S2AC reaches all four goals in most seeds, with a mean return within 15 of the soft-optimal policy's"
    if rows is None:
        return Claim(STEIN, text, "not run", "no run recorded")
    best = json.loads((place / "four" / "exact.json").read_text())["return"]
    every, short = (rows["goals"] == 4).sum(), best - rows["return"].mean()
    evidence = (
        f"all four in {every} of {len(rows)} seeds, {rows['goals'].mean():.1f} on average; return"
        f" {rows['return'].mean():.4g}, soft-optimal {best:.4g}"
    )
    return Claim(STEIN, text, "reproduced" if every > len(rows) / 2 and short <= 15 else "not reproduced", evidence)


def beyond(score: dict[str, pd.DataFrame], ours: str, others: tuple, column: str, sign: int, text: str) -> Claim:
    """A claim that a variant is ahead of others in a column of `multigoal_study.summary` (sign -1: lower is better).

    Where the others' verdicts differ it is "mixed" if one of them is "reproduced", and otherwise "not reproduced".
    """
    if not score.keys() >= {ours, *others}:
        return Claim(STEIN, text, "not run", "no run recorded")
    told = {o: difference(sign * score[ours][column], sign * score[o][column])[0] for o in others}
    means = ", ".join(f"{name} {score[name][column].mean():.3g}" for name in (ours, *others))
    evidence = f"{means} (n = {len(score[ours])} each)"
    word, *differing = set(told.values())
    if differing:
        word = "mixed" if "reproduced" in told.values() else "not reproduced"
        evidence += "".join(f"; beside {other}: {w}" for other, w in told.items())
    return Claim(STEIN, text, word, evidence)


def mujoco_claims() -> list[Claim]:
    """From the main runs: returns beside SAC and SQL, and in how many states S2AC's closed form is out of its bound."""
    found = []
    for task in ("Hopper-v5", "Walker2d-v5"):
        own = report.main_rows("s2ac", task, "small")
        for other in ("sac", "sql"):
            claim = beats("s2ac", other, task, STEIN, "returns more than")
            if claim.verdict != "not run":
                broken = own.loc[own["step"] == own["step"].max(), "invalid"].mean()
                claim = remark(claim, f"bound of S2AC's closed form broken in {broken:.0%} of the states")
            found.append(claim)
    return found


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
    rows = json.loads(bench.read_text())["rows"] if bench.exists() else []
    rows = [r for r in rows if r["what"] == ACTION and r["seeds"] == 1]
    rate = {r["name"]: r["per_second"] for r in rows}
    text = "The amortised sampler is faster than the particles"
    if not rate.keys() >= {"s2ac", "s2ac amortised"}:
        return [*found, Claim(STEIN, text, "not run", "no benchmark recorded")]
    ratio, how = rate["s2ac amortised"] / rate["s2ac"], f"({ACTION} size, 3 steps, one seed)"
    return [
        *found,
        Claim(STEIN, text, "reproduced" if ratio > 1 else "not reproduced", f"{ratio:.1f} times {how}"),
    ]
