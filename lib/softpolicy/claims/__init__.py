"""The claims of the papers, each with what our recorded rows say about it: the table on page one and in the chapters.

`python -m softpolicy.claims` prints it in Markdown, for the site. `verdicts` has the rules; each paper has a module.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pandas as pd

from softpolicy import report
from softpolicy.claims.langevin import langevin_claims
from softpolicy.claims.lsac import LSAC_TASKS, lsac_claims, lsac_costs, maze_table
from softpolicy.claims.stein import stein_claims
from softpolicy.claims.verdicts import Claim

__all__ = ["LSAC_TASKS", "by_setting", "langevin_claims", "lsac_claims", "lsac_costs", "maze_table", "stein_claims"]


def all_claims() -> list[Claim]:
    """Every claim the book tests, with the verdict that the recorded rows give."""
    return [*sac_claims(), *langevin_claims(), *stein_claims(), *lsac_claims()]


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


def claims_table() -> str:
    """The claims in Markdown: for each chapter its tables, folded under the count of its verdicts."""
    parts = []
    for chapter, own in itertools.groupby(all_claims(), lambda claim: claim.chapter):
        name, found = chapter[1 : chapter.index("]")], list(own)  # without its link
        counts = ", ".join(f"{n} {word}" for word, n in Counter(claim.verdict for claim in found).most_common())
        head = f"<details><summary>{name}: {counts}</summary>\n\nChapter {chapter}."
        parts.append(f"{head}\n\n{by_setting(found)}\n\n</details>")
    return "\n\n".join(parts)


def by_setting(found: list[Claim]) -> str:
    """Claims in Markdown: a table for each setting, named in the brackets at the end of their texts, under its name;
    those without brackets come last."""
    table = pd.DataFrame(found)[["claim", "verdict", "evidence"]]
    parts = table["claim"].str.extract(r"^(?P<claim>.*?)(?: \((?P<setting>[^()]*)\))?$")
    table["claim"], setting = parts["claim"], parts["setting"]
    groups = list(table.groupby(setting, sort=False))
    if setting.isna().any():
        groups.append(("Others" if groups else "", table[setting.isna()]))
    text = [(name, own.to_markdown(index=False, disable_numparse=True)) for name, own in groups]
    return "\n\n".join(f"**{name}**\n\n{rows}" if name else rows for name, rows in text)
