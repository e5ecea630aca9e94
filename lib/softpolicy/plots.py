"""The figures of the book and their one style. Functions return the matplotlib figure and save nothing."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from softpolicy import stats

PALETTE = "colorblind"


def style() -> None:
    """Set the book's style: opaque white (legible in the dark theme too), colour-blind-safe, 110 dpi."""
    sns.set_theme(style="whitegrid", palette=PALETTE, context="notebook", font_scale=0.9)
    plt.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 110, "figure.facecolor": "white", "figure.figsize": (6.4, 4)}
    )


def scale_note(rows) -> str:
    """What a figure of `rows` must say about itself: steps reached of a million, seeds and size."""
    reached, each = rows["step"].max(), rows.groupby(["agent", "run"])["seed"].nunique()
    few, many = each.min(), each.max()
    count = f"{many}" if few == many else f"{few} to {many}"
    seeds = f"{count} seed" + ("s" if many > 1 else "")
    return f"{_steps(reached)} of 1M steps, {seeds}, size: {', '.join(sorted(rows['size'].unique()))}"


def _steps(n: int) -> str:
    return f"{n / 1e6:g}M" if n >= 1e6 else f"{n / 1e3:g}k"


def learning_curves(
    rows, value="return", x="step", hue="agent", aggregate=np.mean, reference=None, axes=None
) -> Figure:
    """One panel a task: thin lines for seeds, `aggregate` over seeds in bold, its 95 % bootstrap interval as a band.

    rows       tidy rows (`runs.load`)
    x          "step", "updates" or "seconds"
    aggregate  `np.mean` or `stats.iqm`; takes `axis`
    reference  rows of a table of reported returns (`runs.reported`) to draw as points with their spread

    ValueError for a reference with rows of several tasks.
    """
    tasks = list(dict.fromkeys(rows["env_id"]))
    if reference is not None and len(tasks) > 1:
        raise ValueError(f"a reference belongs to one task, the rows have {', '.join(tasks)}; draw them one by one")
    if axes is None:
        _, axes = plt.subplots(
            1, len(tasks), figsize=(4.4 * len(tasks) + 1.2, 3.6), squeeze=False, layout="constrained"
        )
    names = list(dict.fromkeys(rows[hue]))
    colors = dict(zip(names, sns.color_palette(PALETTE, len(names)), strict=True))
    for ax, task in zip(np.ravel(axes), tasks, strict=True):
        here = rows[rows["env_id"] == task]
        for name, group in here.groupby(hue, sort=False):
            _curve(ax, group, value, x, aggregate, name, colors[name])
        if reference is not None:
            _points(ax, reference, len(colors))
        ax.set(title=f"{task}\n{scale_note(here)}", ylabel=value.replace("_", " "))
        ax.set_xlabel({"step": "environment steps", "seconds": "training time (s)"}.get(x, x.replace("_", " ")))
        ax.title.set_fontsize("medium")
        ax.legend(fontsize="small", framealpha=0.6)
    return np.ravel(axes)[0].figure


def _curve(ax, group, value, x, aggregate, name, color) -> None:
    table = group.pivot(index="step", columns=["run", "seed"], values=value)
    at = group.groupby("step")[x].mean() if x != "step" else table.index  # a mean clock, if there are several runs
    ax.plot(at, table, color=color, lw=0.7, alpha=0.5)
    full = table.dropna()  # the aggregate needs every seed; a diverged one is told in the manifest
    at = np.asarray(at)[table.notna().all(axis=1)]
    ax.plot(at, aggregate(full.to_numpy(), axis=1), color=color, lw=2.2, label=name)
    band = np.array([stats.stratified_bootstrap(v, aggregate) for v in full.to_numpy()])
    if len(band) and full.shape[1] > 1:
        ax.fill_between(at, band[:, 0], band[:, 1], color=color, alpha=0.2, lw=0)


def _points(ax, reference, offset: int) -> None:
    colors = sns.color_palette(PALETTE, offset + len(reference))[offset:]
    for (_, row), color in zip(reference.iterrows(), colors, strict=True):
        label = f"{row['source']}, {row['env_id']}"
        ax.errorbar(row["steps"], row["mean"], yerr=row["spread"], fmt="D", ms=5, capsize=3, color=color, label=label)


def maze(ax, layout, start="C2", goals="C1") -> Figure:
    """Walls, start and goals of a map (`mazes.MAP`), one unit a cell, the origin in the middle, to draw paths upon."""
    height, width = len(layout), len(layout[0])
    colors = {"#": "0.75", "S": start, "G": goals}
    for i, row in enumerate(layout):
        for j, kind in enumerate(row):
            if kind in colors:
                alpha = 1 if kind == "#" else 0.3
                corner = (j - width / 2, height / 2 - i - 1)
                ax.add_patch(plt.Rectangle(corner, 1, 1, facecolor=colors[kind], alpha=alpha, lw=0, zorder=0))
    ax.set(xlim=(-width / 2, width / 2), ylim=(-height / 2, height / 2), aspect="equal", xticks=[], yticks=[])
    return ax.figure
