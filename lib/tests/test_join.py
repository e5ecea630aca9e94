"""Seeds trained apart and put together against the same seeds trained at once."""

import contextlib

import numpy as np
import pandas as pd
import pytest
from run_checks import SHORT, TINY

from softpolicy import report, runs
from softpolicy.join import join
from softpolicy.train import train


def make(folder, seeds, steps=60, config=TINY, **more):
    train(config, "Line-v0", seeds, steps, folder, **SHORT | more)
    return folder


def test_seeds_put_together_are_the_run_of_all_of_them(tmp_path):
    whole = make(tmp_path / "whole", [1, 3, 12])
    parts = [make(tmp_path / "b", [12]), make(tmp_path / "a", [3, 1])]
    joined = join(tmp_path / "joined", *parts)
    expected = runs.load(whole)
    assert list(joined.columns) == list(expected.columns)
    keys = ["step", "seed"]
    assert joined[keys].values.tolist() == expected[keys].values.tolist()
    same = joined.select_dtypes("number").drop(columns="seconds")
    np.testing.assert_allclose(same, expected[same.columns], rtol=1e-3, atol=1e-3)

    found, one = runs.manifest(tmp_path / "joined"), runs.manifest(whole)
    assert found["identity"] == one["identity"] | {"seeds": [1, 3, 12]}
    assert [found[k] for k in ("status", "step", "steps", "diverged")] == ["complete", 60, 60, {}]
    assert found["seconds"] == pytest.approx(sum(runs.manifest(p)["seconds"] for p in parts))
    times = [pd.read_csv(p / "timing.csv").set_index("step")["seconds"] for p in parts]
    pd.testing.assert_series_equal(joined.groupby("step")["seconds"].first(), sum(times))
    assert "3 × 60" in report.status_table(tmp_path / "joined")


def test_to_every_digit_the_rows_are_those_of_the_parts_and_one_more_seed_can_be_joined_later(tmp_path):
    parts = [make(tmp_path / str(seed), [seed]) for seed in (0, 1, 2)]
    join(tmp_path / "two", *parts[:2])
    join(tmp_path / "three", parts[2], tmp_path / "two")
    lines = lambda folder: (folder / "rows.csv").read_text().splitlines()  # noqa: E731
    head = lines(parts[0])[0]
    assert lines(tmp_path / "three") == [
        head,
        *(li for at in zip(*(lines(p)[1:] for p in parts), strict=True) for li in at),
    ]


def test_a_seed_that_diverged_stays_so_and_its_time_stands_still(tmp_path):
    parts = make(tmp_path / "a", [0], 120), make(tmp_path / "b", [7], 120)
    with contextlib.closing(runs.Run(parts[1], runs.manifest(parts[1])["identity"])) as run:
        run.trim(60)
        run.write_manifest(status="diverged", step=61, diverged={"7": 61})
    rows = join(tmp_path / "both", *parts)
    found = runs.manifest(tmp_path / "both")
    assert (found["status"], found["step"], found["diverged"]) == ("complete", 120, {"7": 61})
    assert rows.groupby("seed")["step"].max().to_dict() == {0: 120, 7: 60}
    assert rows.groupby("step")["seconds"].first().is_monotonic_increasing


def test_tables_about_mazes_are_joined_seed_by_seed_and_asked_for_where_one_is_missing(tmp_path):
    parts = [make(tmp_path / str(seed), [seed]) for seed in (12, 3)]
    tables = {
        f"{seed}/{name}": f"{head}\n" + "".join(f"{row.format(seed)}\n" for row in rows)
        for seed in (12, 3)
        for name, head, rows in (
            ("coverage.csv", "step,seed,coverage", ["5,{},0.25", "10,{},0.50"]),
            ("routes.csv", "source,seed,route,first", ["warmup,{},NE,", "policy,{},none,7"]),
        )
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    join(tmp_path / "both", *parts)
    for name in ("coverage.csv", "routes.csv"):
        (head, *first), (_, *second) = (tables[f"{seed}/{name}"].splitlines() for seed in (3, 12))
        assert (tmp_path / "both" / name).read_text().splitlines() == [head, *first, *second]
    (parts[1] / "routes.csv").unlink()
    with pytest.raises(runs.RunError, match="3 holds no routes.csv; bring it back"):
        join(tmp_path / "again", *parts)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (dict(seeds=[1]), r"seeds of .* are \[1, 1\]; give each seed once"),
        (dict(seeds=[2], steps=90), "b, beside .*a, belongs to another run: steps is 90 there and 60 here"),
        (dict(seeds=[2], eval_episodes=1), "eval_episodes is 1 there and 2 here"),
        (dict(seeds=[2], max_seconds=1e-9), "is stopped at step 1 of 60; finish it first"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, more, words):
    a, b = make(tmp_path / "a", [1]), make(tmp_path / "b", **more)
    with pytest.raises(runs.RunError, match=words):
        join(tmp_path / "c", a, b)
    assert not (tmp_path / "c").exists()


def test_what_is_there_is_not_overwritten(tmp_path):
    a, b = make(tmp_path / "a", [1]), make(tmp_path / "b", [2])
    before = (b / "rows.csv").read_text()
    with pytest.raises(runs.RunError, match="holds a run already; give a new folder"):
        join(b, a, b)
    with pytest.raises(runs.RunError, match="in 1 run folder; give at least two"):
        join(tmp_path / "c", a)
    with pytest.raises(runs.RunError, match="is not a manifest of this library"):
        join(tmp_path / "c", a, tmp_path / "nothing")
    assert (b / "rows.csv").read_text() == before


def test_what_is_missing_or_of_another_library_is_named(tmp_path):
    a, b = make(tmp_path / "a", [1]), make(tmp_path / "b", [2])
    rows = pd.read_csv(b / "rows.csv")
    rows.rename(columns={"q": "value"}).to_csv(b / "rows.csv", index=False)
    with pytest.raises(runs.RunError, match="b/rows.csv has other columns than .*a/rows.csv: q, value"):
        join(tmp_path / "c", a, b)
    (b / "timing.csv").unlink()
    rows.to_csv(b / "rows.csv", index=False)
    with pytest.raises(runs.RunError, match="b holds no timing.csv; bring it back"):
        join(tmp_path / "c", a, b)
    (b / "rows.csv").unlink()  # as of a seed that diverged at once
    assert len(join(tmp_path / "c", a, b)) == 2
    (a / "rows.csv").unlink()
    with pytest.raises(runs.RunError, match="before they had a row"):
        join(tmp_path / "d", a, b)
    assert not (tmp_path / "d").exists()
