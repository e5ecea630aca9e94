"""What all claims share: a row of the table, and the rules by which rows of runs become a verdict."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from softpolicy import report, stats


class Claim(NamedTuple):
    """A row of the table of claims: where it is tested, what is claimed by whom, and what our rows say."""

    chapter: str
    claim: str
    verdict: str
    evidence: str


def paired(better: pd.Series) -> str:
    """The verdict on a comparison made once for each training seed."""
    if better.empty:
        return "not run"
    if better.all():
        return "reproduced"
    return "not reproduced" if better.mean() <= 0.5 else "mixed"


def counted(scores: pd.Series) -> str:
    """How many seeds have a score, and of how many, if others diverged or did not get so far."""
    begun = scores.attrs.get("seeds", 0)
    return f"n = {len(scores)}" + (f" of {begun}" if begun > len(scores) else "")


def difference(ours: pd.Series, theirs: pd.Series, at_least: bool = False) -> tuple[str, str]:
    """Verdict and evidence on "ours is more than theirs", from the scores of runs: "reproduced" if the 95 % bootstrap
    interval of the difference lies above zero, "not reproduced" if below, else "undecided", as with a single run on a
    side, which has no interval. With `at_least` on "ours is at least theirs": an interval that begins at zero is
    enough, as of equal scores that all runs share."""
    if len(ours) == 0 or len(theirs) == 0:
        begun = any(len(s) == 0 and s.attrs.get("seeds", 0) for s in (ours, theirs))
        return "not run", "no seed got so far" if begun else "no run recorded"
    both = " and ".join(f"{s.mean():.4g} ({counted(s)})" for s in (ours, theirs))
    if min(len(ours), len(theirs)) == 1:
        return "undecided", f"{both}; one run has no interval"
    low, high = (round(x, 9) for x in stats.bootstrap_difference(ours, theirs))  # equal scores are equal
    above = low >= 0 if at_least else low > 0
    word = "reproduced" if above else "not reproduced" if high < 0 else "undecided"
    return word, f"{both}; difference [{low:.3g}, {high:.3g}]"


def beats(
    ours: str, theirs: str, env_id: str, chapter: str, words: str, root=None, size="small", step=100_000
) -> Claim:
    """Two agents on a task at the same number of steps and updates, from main runs of one size; see `difference`."""
    names = {agent: report.agent_name(agent) for agent in (ours, theirs)}
    text = f"{names[ours]} {words} {names[theirs]} on {env_id} ({step // 1000}k steps, size {size})"
    scores = []
    for agent in (ours, theirs):
        rows = report.main_rows(agent, env_id, size, root)
        scores.append(report.score_at(rows, step) if len(rows) else pd.Series(dtype=float))
    return Claim(chapter, text, *difference(*scores, at_least="at least" in words))


def remark(claim: Claim, words: str) -> Claim:
    """The claim with a remark at the end of its evidence, if there is any."""
    return claim if claim.verdict == "not run" else claim._replace(evidence=f"{claim.evidence}; {words}")
