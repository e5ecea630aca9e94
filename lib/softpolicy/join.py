"""Seeds that were trained apart, each as a job of its own, put together as one run.

`python -m softpolicy.join OUT FOLDER FOLDER ...` writes the rows, times and manifest that one run of all their seeds
would have. Seeds never depend on each other, so only the rounding of sums may differ from such a run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from softpolicy import runs


def join(out, *folders) -> pd.DataFrame:
    """Write the run of all seeds of `folders` into the new folder `out` and return its rows.

    Seconds are summed, as if one process had trained all seeds. There is no checkpoint: to go on, go on with each.
    `runs.RunError` if there is no folder, `out` holds a run, the runs differ in anything but their seeds and commits,
    a seed comes twice, or a run is not finished.
    """
    out, found = Path(out), [runs.manifest(folder) for folder in folders]
    if not found:
        raise runs.RunError("there is nothing to join; give at least one run folder")
    if (out / "manifest.json").exists():
        raise runs.RunError(f"{out} holds a run already; give a new folder")
    common = lambda m: {k: v for k, v in m["identity"].items() if k != "seeds"} | {"steps": m["steps"]}  # noqa: E731
    for folder, m in zip(folders, found, strict=True):
        runs.check_same(common(m), common(found[0]), folder)
        if m["status"] not in ("complete", "diverged"):
            raise runs.RunError(f"{folder} is {m['status']} at step {m['step']} of {m['steps']}; finish it first")
    seeds = sorted(seed for m in found for seed in m["identity"]["seeds"])
    if len(set(seeds)) < len(seeds):
        raise runs.RunError(f"the seeds of {', '.join(map(str, folders))} are {seeds}; give each seed once")

    with_rows = [Path(f) for f in folders if (Path(f) / "rows.csv").exists()]  # none if it diverged at once
    if not with_rows:
        raise runs.RunError("all seeds diverged before they had a row; there is nothing to join")
    read = lambda name: pd.concat(pd.read_csv(f / name, dtype=str, keep_default_na=False) for f in with_rows)  # noqa: E731
    rows = read("rows.csv").sort_values(["step", "seed"], key=lambda column: column.astype(int))
    timing = read("timing.csv").astype(float).groupby("step", as_index=False).sum().astype({"step": int})
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("rows", rows), ("timing", timing.round(2))):
        runs.write_atomically(out / f"{name}.csv", table.to_csv(index=False).encode())
    slices = [{"seeds": m["identity"]["seeds"]} | s for m in found for s in m["slices"]]
    with_all = runs.Run(out, found[0]["identity"] | {"seeds": seeds})
    with_all.write_manifest(
        status="complete" if any(m["status"] == "complete" for m in found) else "diverged",
        steps=found[0]["steps"],
        step=max(m["step"] for m in found),
        diverged={seed: step for m in found for seed, step in m["diverged"].items()},
        slices=sorted(slices, key=lambda s: s["started"]),
        seconds=round(sum(m["seconds"] for m in found), 1),
    )
    with_all.close()
    return runs.load(out)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m softpolicy.join", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    args = parser.parse_args()
    try:
        rows = join(args.out, *args.folders)
    except runs.RunError as e:
        sys.exit(f"error: {e}")
    print(f"{args.out}: seeds {', '.join(map(str, sorted(rows['seed'].unique())))}")


if __name__ == "__main__":
    main()
