"""Seeds that were trained apart, each as a job of its own, put together as one run.

`python -m softpolicy.join OUT FOLDER FOLDER ...` writes the rows, times and manifest of a run with all their seeds, and
the tables of `maze_study` where folders have them. No seed depends on another, so these are rows as one run of all
seeds could have given.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import pandas as pd

from softpolicy import runs


def join(out, *folders) -> pd.DataFrame:
    """Write the run of all seeds of `folders` into the new folder `out` and return its rows.

    Seconds are summed. There is no checkpoint: to go on, go on with each run and join them anew. `runs.RunError` for
    less than two folders, if `out` holds a run, if settings, steps, protocol or simulator differ, if a seed comes twice
    or a run is not finished, if there are no rows or times to join, and if only some have a table of `maze_study`.
    """
    out, found = Path(out), [runs.manifest(folder) for folder in folders]
    if len(found) < 2:
        raise runs.RunError(f"there is nothing to join in {len(found)} run folder; give at least two")
    if (out / "manifest.json").exists():
        raise runs.RunError(f"{out} holds a run already; give a new folder")
    common = lambda m: {k: v for k, v in m["identity"].items() if k != "seeds"} | {"steps": m["steps"]}  # noqa: E731
    for folder, m in zip(folders, found, strict=True):
        runs.check_same(common(m), common(found[0]), f"{folder}, beside {folders[0]},")
        if m["status"] not in ("complete", "diverged"):
            raise runs.RunError(f"{folder} is {m['status']} at step {m['step']} of {m['steps']}; finish it first")
    seeds = sorted(seed for m in found for seed in m["identity"]["seeds"])
    if len(set(seeds)) < len(seeds):
        raise runs.RunError(f"the seeds of {', '.join(map(str, folders))} are {seeds}; give each seed once")

    rows, timing = read(folders, "rows.csv"), read(folders, "timing.csv")
    rows = pd.concat(rows).sort_values(["step", "seed"], key=lambda column: column.astype(int))
    clocks = [t.astype(float).set_index("step")["seconds"] for t in timing]
    clocks = pd.concat(clocks, axis=1).sort_index().ffill()  # of a seed that diverged the time stands still
    seconds = clocks.sum(axis=1).round(2).rename("seconds").rename_axis("step").reset_index().astype({"step": int})
    tables = {"rows.csv": rows, "timing.csv": seconds}
    for name in ("coverage.csv", "routes.csv"):
        if any((Path(folder) / name).exists() for folder in folders):
            tables[name] = pd.concat(read(folders, name)).sort_values(
                "seed", key=lambda s: s.astype(int), kind="stable"
            )
    slices = [{"seeds": m["identity"]["seeds"]} | s for m in found for s in m["slices"]]
    with contextlib.closing(runs.Run(out, found[0]["identity"] | {"seeds": seeds})) as run:
        for name, table in tables.items():
            runs.write_atomically(out / name, table.to_csv(index=False).encode())
        run.write_manifest(
            status="complete" if any(m["status"] == "complete" for m in found) else "diverged",
            steps=found[0]["steps"],
            step=max(m["step"] for m in found),
            diverged={seed: step for m in found for seed, step in m["diverged"].items()},
            slices=sorted(slices, key=lambda s: s["started"]),
            seconds=round(sum(m["seconds"] for m in found), 1),
        )
    return runs.load(out)


def read(folders, name: str) -> list[pd.DataFrame]:
    """The tables `name` of the folders that have rows (a run that diverged at once has none), every number as it is
    written there; RunError if there is none, one is missing, or their columns differ."""
    with_rows = [Path(f) for f in folders if (Path(f) / "rows.csv").exists()]
    if not with_rows:
        raise runs.RunError("all seeds diverged before they had a row; there is nothing to join")
    if missing := [str(f) for f in with_rows if not (f / name).exists()]:
        raise runs.RunError(f"{', '.join(missing)} holds no {name}; bring it back")
    tables = [pd.read_csv(f / name, dtype=str, keep_default_na=False) for f in with_rows]
    for folder, table in zip(with_rows, tables, strict=True):
        if odd := set(table) ^ set(tables[0]):
            raise runs.RunError(
                f"{folder / name} has other columns than {with_rows[0] / name}: {', '.join(sorted(odd))}"
            )
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.join", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    args = parser.parse_args()
    try:
        join(args.out, *args.folders)
    except runs.RunError as e:
        sys.exit(f"error: {e}")
    print(f"{args.out}: seeds {', '.join(map(str, runs.manifest(args.out)['identity']['seeds']))}")


if __name__ == "__main__":
    main()
