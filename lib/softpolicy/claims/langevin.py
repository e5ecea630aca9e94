"""The claims of LQL and NC-LQL (arXiv 2602.07873); chapter *Langevin Q-learning*."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pandas as pd

from softpolicy import report, runs, studies
from softpolicy.claims.verdicts import Claim, beats, difference, paired, remark

LANGEVIN = "[Langevin Q-learning](langevin_q_learning.ipynb)"


def langevin_claims() -> list[Claim]:
    """Chapter *Langevin Q-learning*: mixing and coverage on the bandit, returns and cost beside SAC."""
    tasks = ["HalfCheetah-v5", "Hopper-v5"]
    return [
        *bandit_claims(runs.data_root() / "bandit"),
        *(beats("nclql", "sac", task, LANGEVIN, "returns at least as much as") for task in tasks),
        *(remark(beats("nclql", "lql", task, LANGEVIN, "returns at least as much as"),
                 "LQL with its default step, which is too small") for task in tasks),
        *ablation_claims(runs.data_root() / "runs" / "langevin-ablations"),
        *cheetah_claims(runs.data_root() / "runs" / "langevin-cheetah"),
        cost_claim(runs.data_root() / "bench" / "cpu.json"),
    ]  # fmt: skip


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


def cheetah_claims(place: Path) -> list[Claim]:
    """From recorded runs on HalfCheetah: NC-LQL beside annealed steps without noise conditioning."""
    study, label = studies.LANGEVIN_CHEETAH, studies.LANGEVIN_CHEETAH.variants["lql-annealed"][0]
    rows, task, step = studies.load(study, place), study.protocol["env_id"], study.protocol["steps"]
    pair = [report.main_rows("nclql", task, "small"), rows[rows["variant"] == label] if len(rows) else rows]
    text, found = f"NC-LQL returns more than {label.replace(',', ' with', 1)}, at as many gradients, on {task}", []
    for measure, score in (("last three evaluations", report.score_at), ("mean over training", report.mean_return)):
        scores = [score(r, step) if len(r) else pd.Series(dtype=float) for r in pair]
        claim = Claim(LANGEVIN, f"{text} ({step // 1000}k steps, size small, {measure})", *difference(*scores))
        late = "; measure added when the rows had been seen" * (score is report.mean_return)
        found.append(remark(claim, f"two Adam steps an update against one{late}"))
    return found


def cost_claim(bench: Path) -> Claim:
    """Time of an update and number of parameters, from a recorded table of `ci/bench` and the networks themselves."""
    text = "NC-LQL: 1.0 times the training time and 0.98 times the parameters of a reference that is not named"
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
