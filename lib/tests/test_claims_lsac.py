"""Claims on LSAC follow the rows of its studies and main runs, and the benchmark."""

import json

import pandas as pd
import pytest

from softpolicy import report, runs, studies
from softpolicy.agents import lsac
from softpolicy.claims import lsac as about_lsac


def study_rows(**returns):
    """Rows of LSAC's study, five seeds a variant: its return at the end, half of it before."""
    end = studies.LSAC.protocol["steps"]
    return pd.DataFrame(
        {"variant": name.replace("_", " "), "run": name, "seed": seed, "step": step, "return": share * r + 0.01 * seed}
        for name, r in returns.items()
        for seed in range(5)
        for step, share in ((end // 2, 0.5), (end, 1.0))
    )


@pytest.mark.parametrize(
    ("other", "word"), [(-9.0, "reproduced"), (-1.0, "not reproduced"), (-4.0, "undecided"), (None, "not run")]
)
def test_claims_on_the_parts_of_lsac_follow_the_study(monkeypatch, tmp_path, other, word):
    returns = {"LSAC": -4.0} | ({} if other is None else {"Adam": other, "real_data_only": other})
    monkeypatch.setattr(studies, "load", lambda *_: study_rows(**returns))
    found = {c.claim.split(" (Inv")[0]: c.verdict for c in about_lsac.lsac_study_claims(tmp_path)}
    adam = "Adam, which is not clipped and has bias correction"
    assert found[f"LSAC's critics by aSGLD return more than by {adam}"] == word
    assert found["Synthetic data with refined actions learn faster than real data alone"] == word
    assert found["Ten replicas return more than one"] == "not run"


def test_lsac_is_compared_with_dsact_at_both_step_sizes(monkeypatch, tmp_path):
    """Ahead of DSAC-T with its own small steps and behind it with equal ones: both are said."""
    returns = {"LSAC": 5.0, "DSAC-T": 1.0, "DSAC-T,_step_size_of_LSAC": 9.0}
    monkeypatch.setattr(studies, "load", lambda *_: study_rows(**returns))
    found = {c.claim.split(" (Inv")[0]: c.verdict for c in about_lsac.lsac_study_claims(tmp_path)}
    assert found["LSAC (critics by steps of 0.001) returns more than DSAC-T with its own 0.0001"] == "reproduced"
    assert found["LSAC (critics by steps of 0.001) returns more than DSAC-T with LSAC's 0.001"] == "not reproduced"


STEPS = studies.MAZE.protocol["steps"]
PLACE = "(PointMaze, 100k steps, 64 wide, 5 an update)"


def write_maze(root, agent, coverage, counts, steps=STEPS, found=(9, 9, 9, 9)):
    """A run in the maze of two seeds, with the episodes of its final policy and those of training along routes NE, NW,
    EN and none."""
    out = root / agent
    out.mkdir(parents=True)
    identity = {"agent": agent.replace("adam", "lsac"), "env_id": "softpolicy/PointMaze-v0", "warmup": steps // 2}
    (out / "manifest.json").write_text(json.dumps({"format": runs.FORMAT, "identity": identity}))
    times = (steps // 2, steps)
    curve = [{"step": t, "seed": s, "coverage": c * t / steps} for s, c in enumerate(coverage) for t in times]
    pd.DataFrame(curve).to_csv(out / "coverage.csv", index=False)
    ways = {"NE": 1, "NW": 0, "EN": 1, "none": -1}
    rows = [
        {"source": source, "seed": seed, "goal": goal, "route": route, "count": n, "first": ""}
        for source, many in (("policy", counts), ("training", found))
        for seed in range(2)
        for (route, goal), n in zip(ways.items(), many, strict=True)
    ]
    pd.DataFrame(rows).to_csv(out / "routes.csv", index=False)


def test_a_route_counts_if_a_twentieth_of_the_episodes_take_it(tmp_path):
    write_maze(tmp_path, "lsac", [0.5, 0.7], [50, 4, 6, 40])
    table = about_lsac.maze_table(tmp_path)
    assert table["variant"].tolist() == ["LSAC"] * 2 and table["coverage"].tolist() == [0.5, 0.7]
    assert table["gain"].tolist() == pytest.approx([0.25, 0.35])  # since half of the steps, the end of the warm-up
    assert table["routes"].tolist() == [2, 2] and table["goals"].tolist() == [1, 1]
    assert table["found"].tolist() == [3, 3]  # in training
    assert table["reached"].tolist() == pytest.approx([0.6, 0.6])


def test_tables_of_a_maze_run_before_its_end_are_not_compared(tmp_path):
    write_maze(tmp_path, "lsac", [0.5, 0.7], [50, 4, 6, 40], STEPS // 2)
    assert about_lsac.maze_table(tmp_path).empty
    assert not about_lsac.maze_table(tmp_path, studies.MAZE._replace(protocol={"steps": STEPS // 2})).empty


def test_a_maze_run_is_called_what_its_folder_is_in_the_study(tmp_path):
    for folder in ("lsac-other", "lsac-large-refine"):
        write_maze(tmp_path, folder, [0.5, 0.7], [50, 0, 50, 0])
    table = about_lsac.maze_table(tmp_path)
    assert set(table["variant"]) == {"LSAC, refined by steps of 1e-3"}
    found = {c.claim: c.verdict for c in about_lsac.maze_claims(table)}
    assert found[f"LSAC takes several routes with the final policy {PLACE}"] == "not run"
    assert found[f"LSAC, refined by steps of 1e-3 takes several routes with the final policy {PLACE}"] == "reproduced"


@pytest.mark.parametrize(("ours", "theirs", "word"), [
    ([50, 0, 50, 0], [100, 0, 0, 0], "reproduced"), ([100, 0, 0, 0], [50, 0, 50, 0], "not reproduced"),
])  # fmt: skip
def test_maze_claims_follow_routes_and_coverage(tmp_path, ours, theirs, word):
    assert {c.verdict for c in about_lsac.maze_claims(about_lsac.maze_table(tmp_path))} == {"not run"}
    high = [0.8, 0.9] if word == "reproduced" else [0.2, 0.1]
    write_maze(tmp_path, "lsac", high, ours)
    write_maze(tmp_path, "sac", [0.5, 0.5], theirs)
    write_maze(tmp_path, "adam", [0.5, 0.5], theirs)
    write_maze(tmp_path, "dsact", [0.5, 0.5], theirs)
    all_ = {c.claim: c for c in about_lsac.maze_claims(about_lsac.maze_table(tmp_path))}
    assert len(all_) == 15
    assert all_[f"LSAC visits more of the maze than DSAC-T {PLACE}"].evidence.endswith(
        "; step sizes of the critics 0.001 and 0.0001"
    )
    found = {name: c.verdict for name, c in all_.items()}
    policy = "with the final policy"
    assert found[f"LSAC takes several routes {policy} {PLACE}"] == word
    assert found[f"Baselines (SAC, DSAC-T) take one route or none {policy} {PLACE}"] == word
    for other in ("SAC", "DSAC-T"):
        assert found[f"LSAC takes more routes {policy} than {other} {PLACE}"] == word
        assert found[f"LSAC finds more routes in training than {other} {PLACE}"] == "undecided"  # three on both sides
    for other in ("SAC", "LSAC with Adam"):
        assert found[f"LSAC visits more of the maze than {other} {PLACE}"] == word
    assert found[f"LSAC takes more routes {policy} than SAC without entropy {PLACE}"] == "not run"
    assert found[f"LSAC finds several routes in training {PLACE}"] == "reproduced"
    assert found[f"Baselines (SAC, DSAC-T) find one route or none in training {PLACE}"] == "not reproduced"


def test_where_nobody_reaches_a_goal_nothing_is_said_of_routes(tmp_path):
    for agent, coverage in (("lsac", [0.8, 0.9]), ("sac", [0.5, 0.6])):
        write_maze(tmp_path, agent, coverage, [4, 0, 0, 96], found=[0, 0, 0, 9])
    routes, *rest = about_lsac.maze_claims(about_lsac.maze_table(tmp_path))
    assert (routes.claim, routes.verdict) == (f"LSAC takes several routes {PLACE}", "undecided")
    assert {c.claim.split(" (")[0]: c.verdict for c in rest if c.verdict != "not run"} == {
        "LSAC visits more of the maze than SAC": "reproduced"
    }


@pytest.mark.parametrize(
    ("ours", "other", "word"),
    [(5.02, 9.0, "not reproduced"), (5.02, 5.0, "reproduced"), (5.02, -1.0, "reproduced"), (-1.0, -9.0, "undecided")],
)
def test_lsac_is_compared_under_the_authors_protocol(monkeypatch, tmp_path, ours, other, word):
    end = studies.LSAC_TWENTY.protocol["steps"]
    rows = [{"variant": k, "run": k, "seed": s, "step": end, "return": r + 0.01 * s}
            for k, r in (("LSAC", ours), ("SAC", other)) for s in range(3)]  # fmt: skip
    monkeypatch.setattr(studies, "load", lambda *_: pd.DataFrame(rows))
    sac_, dsact_ = about_lsac.twenty_claims(tmp_path)
    assert "as much as SAC on HalfCheetah-v5 with 20 steps an update" in sac_.claim
    assert sac_.verdict == word and dsact_.verdict == "not run"


@pytest.mark.parametrize(("rate", "word"), [(60, "reproduced"), (40, "mixed"), (20, "not reproduced")])
def test_cost_counts_the_fits(tmp_path, rate, word):
    """SAC 100 and DSAC-T 50 updates a second; fits and generation add 1 ms to each of LSAC's."""
    bench, config = tmp_path / "cpu.json", lsac.Config()
    assert about_lsac.lsac_cost_claim(bench).verdict == "not run"
    fit = {"training step": config.diffusion_steps / 5, "transition": config.n_synth / 5}  # 10 seconds for 10,000
    rows = [{"what": "update, paper", "name": n, "per_second": r} for n, r in
            (("sac", 100), ("dsact", 50), ("lsac", rate))]  # fmt: skip
    rows += [{"what": what, "name": "diffusion, ours", "per_second": r} for what, r in fit.items()]
    bench.write_text(json.dumps({"rows": [row | {"seeds": 1} for row in rows]}))
    assert about_lsac.lsac_costs(bench)["LSAC's fits and generation"] == pytest.approx(1.0)
    assert about_lsac.lsac_costs(bench, "small") == {}  # not measured
    assert about_lsac.lsac_cost_claim(bench).verdict == word


@pytest.mark.parametrize(
    ("control", "word"), [(9.0, "not reproduced"), (1.0, "reproduced"), (5.0, "undecided"), (None, "not run")]
)
@pytest.mark.parametrize("variant", studies.LSAC_CONTROLS.variants)
def test_lsac_is_compared_with_its_controls_task_by_task(monkeypatch, tmp_path, variant, control, word):
    """LSAC returns about 5 on the control's task, there is no run of it on the other, and of no other control."""
    returns, here = {"main": 5.0, variant: control}, studies.protocol(studies.LSAC_CONTROLS, variant)["env_id"]

    def load(*folders):
        found = [returns.get(folder.name) for folder in folders]
        rows = [{"run": "a", "seed": s, "step": 100_000, "return": r + s / 100} for r in found if r for s in range(3)]
        return pd.DataFrame(rows)

    monkeypatch.setattr(report, "main_runs", lambda *_: [tmp_path / "main"])
    monkeypatch.setattr(report, "on_task", lambda out, task: task == here)
    monkeypatch.setattr(runs, "load", load)
    for name, claim in zip(studies.LSAC_CONTROLS.variants, about_lsac.control_claims(tmp_path), strict=True):
        assert studies.protocol(studies.LSAC_CONTROLS, name)["env_id"] in claim.claim
        assert claim.verdict == (word if name == variant else "not run")


def test_end_and_course_of_training_are_told_apart(monkeypatch, tmp_path):
    """A run that begins well and ends badly: DSAC-T's control is about the end, that of the data about the course."""
    course = {"main": [0.0] * 9 + [3.0, 3.0, 3.0], "control": [9.0] * 9 + [1.0, 1.0, 1.0]}

    def load(*folders):
        rows = course["main" if folders[0].name == "main" else "control"]
        return pd.DataFrame(
            [{"run": "a", "seed": s, "step": 100_000 - 11 + k, "return": r + s / 100}
             for s in range(3) for k, r in enumerate(rows)]
        )  # fmt: skip

    monkeypatch.setattr(report, "main_runs", lambda *_: [tmp_path / "main"])
    monkeypatch.setattr(report, "on_task", lambda *_: True)
    monkeypatch.setattr(runs, "load", load)
    verdicts = {c.claim: c.verdict for c in about_lsac.control_claims(tmp_path)}
    assert {v for k, v in verdicts.items() if "DSAC-T" in k} == {"reproduced"}
    assert {v for k, v in verdicts.items() if "real data" in k} == {"not reproduced"}
