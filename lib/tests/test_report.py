"""What pages say about runs follows from their rows."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softpolicy import claims, plots, report, runs, stats
from softpolicy.agents import sac
from softpolicy.claims import langevin, verdicts

finite = st.floats(-1e4, 1e4)


@given(finite, st.floats(0, 1e3), st.floats(0, 1e3), finite, st.floats(0, 1e3))
def test_verdict_is_one_of_four_and_agrees_with_its_definition(ours, below, above, reported, spread):
    word = report.verdict(ours, ours - below, ours + above, reported, spread)
    inside = ours - below <= reported <= ours + above
    if word == "reproduced":
        assert abs(ours - reported) <= spread
    elif word == "within interval":
        assert inside and abs(ours - reported) > spread
    else:
        assert not inside and word == ("higher" if ours > reported else "lower")


def write_run(root, env_id, returns, steps, status="complete", **changes):
    """A recorded run whose seed i returns `returns[i]` at every evaluation."""
    out = root / "-".join([env_id.replace("/", "-"), "paper", *changes])
    defaults = {f"sac.{k}": v for k, v in dataclasses.asdict(sac.Config()).items()} | changes
    identity = defaults | report.PROTOCOL | {"agent": "sac", "env_id": env_id, "size": "paper"}
    identity["seeds"] = list(range(len(returns)))
    versions = {"torch": "1", "gymnasium": "2", "mujoco": "3"}
    slices = [{"versions": versions, "device": "a CPU", "started": "2026-01-02T03:04:05Z", "commit": "abc"}]
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(
        json.dumps({"format": runs.FORMAT, "identity": identity, "status": status, "steps": 10**6, "step": steps,
                    "diverged": {"1": 77}, "seconds": 1800, "slices": slices})
    )  # fmt: skip
    rows = [{"step": t, "seed": s, "return": r} for t in range(5_000, steps + 1, 5_000) for s, r in enumerate(returns)]
    pd.DataFrame(rows).to_csv(out / "rows.csv", index=False)
    return out


def reported_at(env_id, steps, source):
    table = runs.reported("sac")
    return table[(table["env_id"] == env_id) & (table["steps"] == steps) & table["source"].str.contains(source)].iloc[0]


def test_ours_stands_beside_reported_rows_of_the_same_task_and_steps_only(tmp_path):
    jaxrl = reported_at("HalfCheetah-v2", 100_000, "jaxrl")
    near = jaxrl["mean"] + np.array([-10.0, 0.0, 40.0])
    write_run(tmp_path, "HalfCheetah-v5", near, 100_000)
    write_run(tmp_path, "HalfCheetah-v5", near - 5_000, 100_000, **{"sac.lr": 0.1})  # a study, left out
    table = report.against_reported(root=tmp_path)
    ran = table[table["verdict"] != "not run"]
    assert set(ran["steps"]) == {100_000} and set(ran["env_id"]) == {"HalfCheetah-v5"}
    row = ran[ran["source"] == jaxrl["source"]].iloc[0]
    assert row["verdict"] == "reproduced" and row["n"] == 3 and row["url"] == jaxrl["url"]
    assert row["ours"] == pytest.approx(near.mean(), abs=0.1)
    assert len(table) == len(runs.reported("sac"))


def test_a_figure_that_may_count_steps_otherwise_is_not_judged(tmp_path):
    write_run(tmp_path, "dm_control/cheetah-run", np.full(3, 310.1), 100_000)
    table = report.against_reported(root=tmp_path)
    ran = table[table["verdict"] != "not run"]
    assert set(ran["env_id"]) == {"dm_control/cheetah-run"} and set(ran["verdict"]) == {"not comparable"}
    assert runs.reported("sac").query("comparable == 'no'")["note"].str.contains("does not say").all()


def test_a_score_is_the_mean_of_three_evaluations():
    rows = pd.DataFrame({"run": "one", "seed": 0, "step": [10, 20, 30, 40, 50], "return": [1.0, 2.0, 4.0, 8.0, 16.0]})
    assert report.score_at(rows, 50)[0] == pytest.approx((4 + 8 + 16) / 3)
    assert report.score_at(rows, 40)[0] == pytest.approx((2 + 4 + 8) / 3)
    assert report.mean_return(rows, 40)[0] == pytest.approx((1 + 2 + 4 + 8) / 4)


def test_seeds_that_did_not_get_so_far_are_told(tmp_path):
    out = write_run(tmp_path, "Hopper-v5", [1.0, 2.0, 3.0, 9.0], 100_000)
    rows = pd.read_csv(out / "rows.csv")
    rows[(rows["seed"] != 3) | (rows["step"] < 50_000)].to_csv(out / "rows.csv", index=False)
    scores = report.score_at(runs.load(out), 100_000)
    assert scores.tolist() == [1, 2, 3]
    assert "2 (n = 3 of 4) and 2 (n = 3 of 4)" in verdicts.difference(scores, scores)[1]
    later = report.score_at(runs.load(out), 150_000)
    assert verdicts.difference(scores, later) == ("not run", "no seed got so far")
    assert verdicts.difference(scores, pd.Series(dtype=float)) == ("not run", "no run recorded")


def test_a_run_that_is_not_there_yet_gets_no_verdict(tmp_path):
    write_run(tmp_path, "HalfCheetah-v5", [1.0, 2.0], 95_000)
    table = report.against_reported(root=tmp_path)
    assert set(table["verdict"]) == {"not run"}


def test_a_diverged_seed_has_no_score():
    rows = pd.DataFrame({"run": "a", "seed": [0, 0, 1], "step": [10, 20, 10], "return": [1.0, 3.0, 100.0]})
    assert report.score_at(rows, 20).to_dict() == {0: 2.0}


def test_claims_and_status_come_from_the_runs(tmp_path):
    assert "No run has been recorded" in report.status_table(tmp_path)
    assert {c.verdict for c in claims.sac_claims(tmp_path)} == {"not run"}
    write_run(tmp_path, "HalfCheetah-v5", [1.0, 2.0, 3.0], 100_000, "running")
    verdicts = {(c.claim.split()[2], c.verdict) for c in claims.sac_claims(tmp_path)}
    assert ("HalfCheetah-v5", "lower") in verdicts and ("Hopper-v5", "not run") in verdicts
    status = report.status_table(tmp_path)
    assert "100,000 of 1,000,000" in status and "running, 1 diverged" in status and "0.50" in status
    assert status.count("(1)") == 2  # one run, one line that says what made it


def test_claims_fold_by_chapter_under_the_count_of_their_verdicts(monkeypatch):
    words = [("A", "reproduced"), ("A", "not run"), ("A", "reproduced"), ("B", "mixed")]
    found = [verdicts.Claim(f"[{c}](x.ipynb)", f"text {k}", word, "-") for k, (c, word) in enumerate(words)]
    monkeypatch.setattr(claims, "all_claims", lambda: found)
    a, b, end = claims.claims_table().split("</details>")
    assert "<summary>A: 2 reproduced, 1 not run</summary>" in a and "Chapter [A](x.ipynb)." in a
    assert "<summary>B: 1 mixed</summary>" in b and end == ""
    assert (a.count("| text "), b.count("| text ")) == (3, 1)


def test_claims_of_one_setting_share_a_table():
    texts = "A beats B (on X, 3 steps)", "speed", "A (a) beats C (on Y)", "A beats D (on X, 3 steps)"
    found = [verdicts.Claim("[c](x.ipynb)", text, "mixed", f"row {k}") for k, text in enumerate(texts)]
    on_x, on_y, others = claims.by_setting(found).split("\n\n**")
    assert on_x.startswith("**on X, 3 steps**") and on_y.startswith("on Y**") and others.startswith("Others**")
    rows = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()[4:]]
            for part in (on_x, on_y, others)]  # fmt: skip
    assert rows == [[["A beats B", "mixed", "row 0"], ["A beats D", "mixed", "row 3"]],
                    [["A (a) beats C", "mixed", "row 2"]], [["speed", "mixed", "row 1"]]]  # fmt: skip
    assert "**" not in claims.by_setting(found[1:2])


@pytest.mark.parametrize(
    ("commits", "says"),
    [(["abcdef012345"], "abcdef0"), (["abcdef012345+changes"], "abcdef0+"), ([""], "unknown"),
     (["abcdef012345+changes", "abcdef012345"], "abcdef0+"), (["a" * 12, "b" * 12, "c" * 12], "aaaaaaa to ccccccc"),
     (["a" * 12, "b" * 12 + "+changes", "c" * 12], "aaaaaaa to ccccccc+")],
)  # fmt: skip
def test_status_tells_the_date_the_commits_and_uncommitted_changes(tmp_path, commits, says):
    out = write_run(tmp_path, "HalfCheetah-v5", [1.0], 10_000)
    found = json.loads((out / "manifest.json").read_text())
    (first,) = found["slices"]
    found["slices"] = [first | {"commit": c, "started": f"2026-01-1{k}T00:00:00Z"} for k, c in enumerate(commits)]
    (out / "manifest.json").write_text(json.dumps(found))
    _, date, made_by, _ = report.status_table(tmp_path).splitlines()[2].rsplit("|", 3)
    assert (date.strip(), made_by.strip()) == (f"2026-01-1{len(commits) - 1}", f"{says} (1)")


def write_pair(root, ours, theirs, **identity):
    """Recorded small runs of two agents on Hopper-v5."""
    for agent, returns in (("nclql", ours), ("sac", theirs)):
        out = write_run(root / agent, "Hopper-v5", returns, 100_000)
        found = json.loads((out / "manifest.json").read_text())
        found["identity"] = (
            report.PROTOCOL | {"agent": agent, "env_id": "Hopper-v5", "size": "small", "seeds": [0, 1, 2]} | identity
        )
        (out / "manifest.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("ours", "theirs", "more", "at_least"),
    [([2, 3], [1, 1], "reproduced", "reproduced"), ([5, 5], [5, 5], "undecided", "reproduced"),
     ([1, 1], [1, 2], "undecided", "undecided"), ([1, 1], [2, 3], "not reproduced", "not reproduced"),
     ([9], [1, 2], "undecided", "undecided"), ([1, 2], [9], "undecided", "undecided")],
)  # fmt: skip
def test_more_is_strict_and_at_least_is_not(ours, theirs, more, at_least):
    scores = pd.Series(ours, dtype=float), pd.Series(theirs, dtype=float)
    assert verdicts.difference(*scores)[0] == more and verdicts.difference(*scores, at_least=True)[0] == at_least


@pytest.mark.parametrize(
    ("words", "word"), [("returns more than", "undecided"), ("returns at least as much as", "reproduced")]
)
def test_the_wording_of_a_claim_decides_what_equal_returns_mean(tmp_path, words, word):
    write_pair(tmp_path, [5, 5, 5], [5, 5, 5])
    assert verdicts.beats("nclql", "sac", "Hopper-v5", "here", words, tmp_path).verdict == word


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [([9, 10, 11], [1, 2, 3], "reproduced"), ([1, 2, 3], [9, 10, 11], "not reproduced"),
     ([1, 5, 9], [2, 5, 8], "undecided")],
)  # fmt: skip
def test_one_agent_beats_another_only_if_the_interval_of_the_difference_says_so(tmp_path, ours, theirs, word):
    write_pair(tmp_path, ours, theirs)
    claim = verdicts.beats("nclql", "sac", "Hopper-v5", "here", "beats", tmp_path)
    assert claim.verdict == word and "(n = 3)" in claim.evidence
    assert verdicts.beats("nclql", "sac", "Walker2d-v5", "here", "beats", tmp_path).verdict == "not run"


def test_ablations_that_are_not_recorded_have_no_verdict(tmp_path):
    assert {c.verdict for c in langevin.ablation_claims(tmp_path)} == {"not run"}


@pytest.mark.parametrize("changes", [dict(n_envs=5), dict(warmup=1_000), dict(eval_every=100), dict(eval_episodes=1)])
def test_runs_of_another_protocol_are_not_compared(tmp_path, changes):
    write_pair(tmp_path, [1, 2, 3], [1, 2, 3], **changes)
    assert verdicts.beats("nclql", "sac", "Hopper-v5", "here", "beats", tmp_path).verdict == "not run"


def test_two_runs_of_an_agent_on_a_task_are_refused_by_name(tmp_path):
    first = write_run(tmp_path / "a", "HalfCheetah-v5", [1.0, 2.0], 100_000)
    assert report.main_runs("sac", root=tmp_path) == [first]
    second = write_run(tmp_path / "b", "HalfCheetah-v5", [1.0, 2.0], 100_000)
    write_run(tmp_path, "Hopper-v5", [1.0, 2.0], 100_000)
    for use in (
        lambda: report.against_reported(root=tmp_path),
        lambda: verdicts.beats("lql", "sac", "HalfCheetah-v5", "here", "beats", tmp_path, "paper"),
    ):
        with pytest.raises(runs.RunError, match="are both runs of sac at size paper on HalfCheetah-v5") as e:
            use()
        assert str(first) in str(e.value) and str(second) in str(e.value) and "move one of them out" in str(e.value)


def test_mean_return_is_over_training_and_leaves_out_who_stopped():
    rows = pd.DataFrame({"run": "a", "seed": [0, 0, 1], "step": [10, 20, 10], "return": [1.0, 3.0, 100.0]})
    assert report.mean_return(rows, 20).to_dict() == {0: 2.0}


@given(st.lists(st.booleans(), min_size=1))
def test_a_comparison_seed_by_seed_is_reproduced_only_if_every_seed_says_so(better):
    word = verdicts.paired(pd.Series(better))
    assert (word == "reproduced") == all(better)
    assert (word == "not reproduced") == (sum(better) <= len(better) / 2)


def test_settings_that_differ_from_the_defaults_are_named():
    identity = {"agent": "sac", "size": "small", "sac.width": 128, "sac.batch": 128, "sac.lr": 0.001, "sac.gamma": 0.99}
    assert report.changed_settings(identity) == "lr 0.001"
    assert report.changed_settings(identity | {"sac.lr": 3e-4}) == ""


def test_scores_of_runs_of_one_name_are_not_mixed(tmp_path):
    for agent in ("sac", "lql"):
        write_run(tmp_path / agent, "Hopper-v5", [1.0, 2.0], 100_000)
    both = runs.load(*runs.find(tmp_path))
    both["run"] = "Hopper-v5-small"
    both.loc[both.index[0], "agent"] = "lql"
    with pytest.raises(ValueError, match="scores are those of one run"):
        report.score_at(both, 100_000)


def test_learning_curves_show_every_seed_and_say_their_scale(tmp_path):
    rows = runs.load(write_run(tmp_path, "HalfCheetah-v5", [1.0, 2.0, 6.0], 200_000))
    fig = plots.learning_curves(rows)
    (ax,) = fig.axes
    assert "200k of 1M steps, 3 seeds, size: paper" in ax.get_title()
    thin = [line for line in ax.lines if line.get_linewidth() < 1]
    bold = [line for line in ax.lines if line.get_linewidth() > 1]
    assert sorted(line.get_ydata()[0] for line in thin) == [1.0, 2.0, 6.0]
    assert np.allclose(bold[0].get_ydata(), 3.0) and len(bold) == 1
    (band,) = ax.collections
    low, high = stats.stratified_bootstrap([1.0, 2.0, 6.0], np.mean)
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((low, high)) and low < 3 < high
    plt.close(fig)


def test_a_learning_curve_may_show_the_interquartile_mean(tmp_path):
    """Of 0, 1, 2, 3, 4, 5, 6, 100 that of the middle four, 3.5, whatever the largest is."""
    rows = runs.load(write_run(tmp_path, "HalfCheetah-v5", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0], 200_000))
    fig = plots.learning_curves(rows, aggregate=stats.iqm)
    (bold,) = (line for line in fig.axes[0].lines if line.get_linewidth() > 1)
    assert np.allclose(bold.get_ydata(), 3.5)
    plt.close(fig)


def test_a_figure_of_runs_with_more_and_fewer_seeds_says_so(tmp_path):
    three = runs.load(write_run(tmp_path / "a", "HalfCheetah-v5", [1.0, 2.0, 6.0], 200_000))
    one = runs.load(write_run(tmp_path / "b", "HalfCheetah-v5", [1.0], 200_000)).assign(agent="other")
    assert "1 to 3 seeds, " in plots.scale_note(pd.concat([three, one]))
    assert "1 seed, " in plots.scale_note(one)


def test_many_variants_have_colours_of_their_own_and_references_are_drawn_beside_them(tmp_path):
    rows = runs.load(write_run(tmp_path, "HalfCheetah-v5", [1.0], 10_000))
    many = pd.concat([rows.assign(agent=f"variant {k}", run=f"run {k}") for k in range(12)])
    reported = pd.DataFrame({"source": ["a", "b"], "env_id": "X", "steps": 10_000, "mean": 1.0, "spread": 0.5})
    fig = plots.learning_curves(many, reference=reported)
    labels = fig.axes[0].get_legend_handles_labels()[1]
    assert len(labels) == 14 and {"a, X", "b, X"} < set(labels)
    plt.close(fig)


def test_a_reference_belongs_to_one_task(tmp_path):
    rows = [runs.load(write_run(tmp_path / task, task, [1.0], 10_000)) for task in ("HalfCheetah-v5", "Hopper-v5")]
    with pytest.raises(ValueError, match="belongs to one task, the rows have HalfCheetah-v5, Hopper-v5"):
        plots.learning_curves(pd.concat(rows), reference=pd.DataFrame())


def test_nothing_is_remarked_on_what_was_not_run():
    done = verdicts.Claim("c", "text", "mixed", "rows")
    assert verdicts.remark(done, "so").evidence == "rows; so"
    assert verdicts.remark(done._replace(verdict="not run"), "so").evidence == "rows"


def test_no_seed_is_no_verdict():
    assert verdicts.paired(pd.Series(dtype=bool)) == "not run"


def test_two_runs_of_one_name_share_a_mean_clock(tmp_path):
    tables = []
    for k, seconds in enumerate(([10.0, 20.0], [100.0, 200.0])):
        out = write_run(tmp_path / str(k), "HalfCheetah-v5", [1.0, 2.0], 10_000)
        pd.DataFrame({"step": [5_000, 10_000], "seconds": seconds}).to_csv(out / "timing.csv", index=False)
        tables.append(runs.load(out).assign(run=str(k)))
    fig = plots.learning_curves(pd.concat(tables), x="seconds")
    assert list(fig.axes[0].lines[0].get_xdata()) == [55.0, 110.0]
    plt.close(fig)


def test_a_curve_over_seconds_needs_and_uses_the_timing(tmp_path):
    out = write_run(tmp_path, "HalfCheetah-v5", [1.0, 2.0], 10_000)
    pd.DataFrame({"step": [5_000, 10_000], "seconds": [30.0, 70.0]}).to_csv(out / "timing.csv", index=False)
    fig = plots.learning_curves(runs.load(out), x="seconds")
    assert list(fig.axes[0].lines[0].get_xdata()) == [30.0, 70.0]
    plt.close(fig)
