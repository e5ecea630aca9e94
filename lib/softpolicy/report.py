"""What the pages say about the recorded runs, worked out from their rows: scores, verdicts, the status table.

`python -m softpolicy.report` prints the status table, in Markdown, which the site includes.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from softpolicy import runs, stats
from softpolicy.settings import SIZES, sized
from softpolicy.train import train

# What makes two runs comparable besides their settings: the defaults of `train`.
PROTOCOL = {
    name: inspect.signature(train).parameters[name].default
    for name in ("n_envs", "warmup", "eval_every", "eval_episodes")
}


def verdict(ours: float, low: float, high: float, reported: float, spread: float) -> str:
    """Ours, with interval [low, high], against a reported mean and spread (0 if none was given).

    "reproduced": ours lies within the reported mean +- spread. "within interval": the reported mean lies in our
    interval. Otherwise "higher" or "lower".
    """
    if abs(ours - reported) <= spread:
        return "reproduced"
    if low <= reported <= high:
        return "within interval"
    return "higher" if ours > reported else "lower"


def score_at(rows: pd.DataFrame, step: int, last: int = 3, value: str = "return") -> pd.Series:
    """Each seed's mean `value` over the last `last` evaluations up to `step`; only seeds that got there. The attribute
    `attrs["seeds"]` is how many the run was begun with."""
    if len(found := rows[[c for c in ("agent", "env_id", "size", "run") if c in rows]].drop_duplicates()) > 1:
        raise ValueError(f"scores are those of one run, got rows of {', '.join(map(' '.join, found.to_numpy()))}")
    begun = rows["seeds"].max() if "seeds" in rows else rows["seed"].nunique()
    reached = rows.groupby("seed")["step"].transform("max") >= step
    rows = rows[reached & (rows["step"] <= step)].sort_values("step")
    scores = rows.groupby("seed")[value].apply(lambda r: r.tail(last).mean())
    scores.attrs["seeds"] = begun
    return scores


def mean_return(rows: pd.DataFrame, step: int) -> pd.Series:
    """Each seed's mean return over all evaluations up to `step`; only seeds that got there."""
    return score_at(rows, step, last=len(rows))


def main_runs(agent: str, size: str = "paper", root: Path | None = None) -> list[Path]:
    """The recorded runs of an agent at a size with default settings and `PROTOCOL`, one a task: no ablation, no study.

    Raises `runs.RunError` if there are two on a task.
    """
    found = {}
    for out in runs.find(root):
        i = runs.manifest(out)["identity"]
        same = (i["agent"], i["size"]) == (agent, size) and all(i.get(k) == v for k, v in PROTOCOL.items())
        if not same or changed_settings(i):
            continue
        first = found.setdefault(i["env_id"], out)
        if first is not out:
            raise runs.RunError(
                f"{first} and {out} are both runs of {agent} at size {size} on {i['env_id']} with default settings;"
                " move one of them out of the recorded runs"
            )
    return list(found.values())


def main_rows(agent: str, env_id: str, size: str, root: Path | None = None) -> pd.DataFrame:
    """The rows of the recorded run of an agent on a task at a size, see `main_runs`; empty if there is none."""
    return runs.load(*(out for out in main_runs(agent, size, root) if on_task(out, env_id)))


def against_reported(agent: str = "sac", root: Path | None = None) -> pd.DataFrame:
    """Our returns beside the reported ones of `data/reported/AGENT.csv` at the same task and number of steps.

    Ours: mean over seeds of each seed's last three evaluations up to that step, with its bootstrap interval, in the
    main run of the task at size paper; a seed that diverged has no score. Task versions differ (see the columns). A
    reported row without a run of ours has the verdict "not run", one beside a single seed "undecided", one whose
    column `comparable` says no (its note tells why) "not comparable".
    """
    table, rows = [], runs.load(*main_runs(agent, root=root))
    for _, r in runs.reported(agent).iterrows():
        base = r["env_id"].split("-v")[0]
        env_id = base if base.startswith("dm_control/") else f"{base}-v5"
        here = rows[rows["env_id"] == env_id] if len(rows) else rows
        scores = score_at(here, r["steps"]) if len(here) else here
        row = {"env_id": env_id, "steps": r["steps"], "ours": np.nan, "interval": "", "n": len(scores)}
        word = "not run"
        if len(scores):
            row["ours"], word = round(scores.mean(), 1), "undecided"
        if len(scores) > 1:
            low, high = stats.stratified_bootstrap(scores, np.mean)
            spread = 0.0 if pd.isna(r["spread"]) else r["spread"]
            word = verdict(scores.mean(), low, high, r["mean"], spread)
            word = word if r["comparable"] == "yes" else "not comparable"
            row["interval"] = f"[{low:.0f}, {high:.0f}]"
        reported = f"{r['mean']:.0f}" + ("" if pd.isna(r["spread"]) else f" ± {r['spread']:.0f}")
        table.append(row | {"reported": reported, "reported_n": r["n"], "source": r["source"],
                            "url": r["url"], "reported_env": r["env_id"], "verdict": word})  # fmt: skip
    return pd.DataFrame(table)


def on_task(out: Path, env_id: str | None = None, n_envs: int = 1) -> bool:
    """Whether a run is on the task (on any, for None) with so many environments a seed."""
    identity = runs.manifest(out)["identity"]
    return identity["n_envs"] == n_envs and env_id in (None, identity["env_id"])


def agent_name(agent: str) -> str:
    """An agent's name in a sentence."""
    return {"nclql": "NC-LQL", "s2ac": "S2AC", "dsact": "DSAC-T"}.get(agent, agent.upper())


def changed_settings(identity: dict) -> str:
    """The agent's settings in which a run differs from the defaults of its size, in words."""
    config = importlib.import_module(f"softpolicy.agents.{identity['agent']}").Config
    preset = dataclasses.asdict(sized(config, identity["size"] if identity["size"] in SIZES else "paper"))
    found = {k: identity.get(f"{identity['agent']}.{k}", v) for k, v in preset.items()}
    return ", ".join(f"{k} {v}" for k, v in found.items() if v != preset[k])


def state(manifest: dict) -> str:
    """What is to be said of a run that is not complete with all its seeds."""
    words = [manifest["status"]] * (manifest["status"] != "complete")
    words += [f"{len(manifest['diverged'])} diverged"] * bool(manifest["diverged"])
    return "".join(f", {word}" for word in words)


def made_by(slices: list[dict]) -> str:
    """The commit of a run, or the first and the last of its slices, with a + if a slice was made from a library that
    held uncommitted changes."""
    commits = [s["commit"] or "unknown" for s in slices]
    names = list(dict.fromkeys(c[:7] for c in commits))  # seeds trained apart may share commits
    last = f" to {names[-1]}" * (len(names) > 1)
    return names[0] + last + "+" * any(c.endswith("+changes") for c in commits)


def status_table(root: Path | None = None) -> str:
    """One row a recorded run, from its manifest alone, as a Markdown table, and what the runs were made with; those
    with the default settings of a size come first."""
    table, made_with = [], {}
    for out in runs.find(root):
        m = runs.manifest(out)
        i, last = m["identity"], m["slices"][-1]
        versions = ", ".join(f"{k} {last['versions'][k]}" for k in ("torch", "gymnasium", "mujoco"))
        number = made_with.setdefault(f"{last['device']}; {versions}", len(made_with) + 1)
        settings = [i["size"]] * (i["size"] in SIZES) + [changed_settings(i)] * bool(changed_settings(i))
        settings += [f"n_envs {i['n_envs']}"] * (i["n_envs"] != PROTOCOL["n_envs"])
        table.append(
            {
                "run": f"{i['agent']} on {i['env_id'].removeprefix('softpolicy/')}",
                "settings": ", ".join(settings),
                "seeds × steps": f"{len(i['seeds'])} × {m['step']:,}"
                + ("" if m["step"] == m["steps"] else f" of {m['steps']:,}")
                + state(m),
                "hours": f"{m.get('seconds', 0) / 3600:.2f}",
                "date": last["started"][:10],
                "made by": f"{made_by(m['slices'])} ({number})",
            }
        )
    if not table:
        return "No run has been recorded yet."
    table.sort(key=lambda row: row["settings"] not in SIZES)
    rows = pd.DataFrame(table).to_markdown(index=False, disable_numparse=True)
    notes = "; ".join(f"({number}) {what}" for what, number in made_with.items())
    return (
        f"{rows}\n\n*Date*: when the last slice of the run began. *Made by*: the commit, or the first and the last of"
        " a run in slices, with a + if the library held uncommitted changes; in brackets, with what the last slice was"
        f" made: {notes}."
    )


if __name__ == "__main__":
    try:
        print(status_table())
    except runs.RunError as e:
        sys.exit(f"{e}")
