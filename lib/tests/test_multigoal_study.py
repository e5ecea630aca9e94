"""What the multi-goal study measures, on policies whose answers are known."""

import json
import math
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from softpolicy import multigoal, runs, studies
from softpolicy import multigoal_study as study
from softpolicy import streams as rng
from softpolicy.claims import stein

SPREAD = 0.1
GAUSSIAN_ENTROPY = 1 + math.log(2 * math.pi * SPREAD**2)


class Walker:
    """Seed i goes towards goal i of the three in steps of 0.4, with Gaussian noise in each coordinate."""

    def __init__(self, noise: float):
        self.noise = noise

    def act(self, obs, streams):
        goals = torch.as_tensor(multigoal.GOALS["three"], dtype=torch.float32)[: len(obs), None]
        step = 0.4 * (goals - obs) / (goals - obs).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return step + self.noise * rng.normal(streams, obs.shape[1], 2)


def test_ends_of_straight_walks():
    """Three seeds, three goals at distance 5 that end within 0.5: 12 steps of 0.4; the wall stops only seed 1."""
    free = study.ends(Walker(0.0), [0, 1, 2], "three", 7)
    assert free[["g0", "g1", "g2"]].to_numpy().tolist() == np.eye(3).tolist()
    assert (free["none"] == 0).all() and (free["steps"] == 12).all() and free["recovered"].isna().all()
    distance = 5 - 0.4 * np.arange(1, 13)
    assert free["return"].to_numpy() == pytest.approx(10 - 12 * 30 * 0.16 - np.square(distance).sum(), rel=1e-5)
    walled = study.ends(Walker(0.0), [0, 1, 2], "three", 7, True)
    assert walled["collided"].tolist() == [0, 1, 0] and walled["none"].tolist() == [0, 1, 0]
    assert walled["recovered"][1] == 0 and math.isnan(walled["recovered"][0])


def test_entropies_of_a_gaussian_policy():
    position = np.zeros((2, 11, 2))
    h = study.entropies(Walker(SPREAD), [3, 4], position, 200, "here")
    assert h.shape == (2, 11)
    assert h.mean() == pytest.approx(GAUSSIAN_ENTROPY, abs=0.1)


def test_soft_return_of_a_gaussian_policy():
    """Along paths the entropy is the Gaussian's; the soft return is that of the rewards plus its discounted sum."""
    table = study.along_paths(Walker(SPREAD), [0, 1], "three", 0.9, 2.0, episodes=12, draws=200)
    path, soft = table[table["where"] == "path"], table[table["where"] == "soft"].set_index("seed")["entropy"]
    assert path["entropy"].to_numpy() == pytest.approx(GAUSSIAN_ENTROPY, abs=0.25)
    assert (path[path["at"] == 0]["n"] == 12).all()
    found = multigoal.simulate(study.policy(Walker(SPREAD), [0, 1], "paths"), "three", (2, 12))
    for s in (0, 1):
        sums = []
        for i in range(12):
            gained = [multigoal.reward(b, b - a, multigoal.GOALS["three"])
                      for a, b in zip(found.path[:-1, s, i], found.path[1:, s, i], strict=True)]  # fmt: skip
            n = found.steps[s, i]
            sums.append(sum(0.9**t * (gained[t] + 2.0 * GAUSSIAN_ENTROPY) for t in range(n)))
        assert soft[s] == pytest.approx(np.mean(sums), abs=1.0)


def test_an_agents_own_entropy_is_kept_beside_the_measured_one():
    class Knowing(Walker):
        def entropy(self, obs, streams):
            return obs.sum(-1)

    table = study.along_paths(Knowing(SPREAD), [0, 1], "three", 0.9, 2.0, episodes=2, draws=16)
    own = table[table["where"] == "own"].pivot(index="seed", columns="at", values="entropy").to_numpy()
    assert own == pytest.approx(np.tile(multigoal.PROBES["three"].sum(1), (2, 1)), abs=1e-5)
    assert "own" not in set(study.along_paths(Walker(SPREAD), [0], "three", 0.9, 2.0, 2, 16)["where"])


def test_the_longer_study_is_the_same_task_with_other_steps():
    assert study.layout_of("three-long") == study.layout_of("three") == "three"
    long, short = studies.MULTIGOAL["three-long"], studies.MULTIGOAL["three"]
    differ = {k for k in long.protocol if long.protocol[k] != short.protocol[k]}
    assert differ == {"steps"} and {k for k in long.common if long.common[k] != short.common[k]} == {"lr"}
    assert studies.config(long, "s2ac").lr == studies.config(long, "sac").lr == 3e-4


def test_each_selection_is_measured_with_and_without_the_wall():
    chosen = []

    class Chooser(Walker):
        config = types.SimpleNamespace(evaluate="softmax", amortised=True)

        def act(self, obs, streams, select):
            chosen.append(select)
            return super().act(obs, streams)

    table = study.final(Chooser(0.0), [0, 1, 2], "three")
    assert set(chosen) == {"random", "best", "softmax", "amortised"} == set(table["select"])
    assert table.groupby(["select", "walls"]).size().eq(3).all()


def test_a_variant_is_followed_once(tmp_path):
    short, folder = dict(steps=30, warmup=20, eval_every=1), tmp_path / "three" / "sac"
    with pytest.raises(studies.Stopped):
        study.follow("three", "sac", tmp_path, max_seconds=1e-9, **short)
    assert not (folder / "progress.csv").exists()  # it is not at the first slice's end
    study.follow("three", "sac", tmp_path, **short)
    progress = pd.read_csv(folder / "progress.csv")
    assert progress["step"].unique().tolist() == list(range(21, 31)) and len(progress) == 10 * 5
    shares = progress[["g0", "g1", "g2", "none"]].sum(axis=1)
    assert shares.to_numpy() == pytest.approx(1.0, abs=1e-3)
    before = {p.name: p.read_bytes() for p in folder.glob("*.csv")}
    study.follow("three", "sac", tmp_path, **short)
    assert before == {p.name: p.read_bytes() for p in folder.glob("*.csv")}
    assert runs.manifest(folder)["status"] == "complete"
    assert (studies.load(studies.MULTIGOAL["three"], tmp_path / "three")["variant"] == "SAC").all()


def test_seeds_that_diverged_are_left_out(tmp_path, monkeypatch):
    """The agent of seed 3 acts with numbers that are none, as its weights would be."""
    manifest, trained = runs.manifest, study.trained

    def poisoned(folder):
        agent = trained(folder)
        for p in agent.actor.parameters():
            p.data[3] = float("nan")
        return agent

    monkeypatch.setattr(study, "trained", poisoned)
    monkeypatch.setattr(runs, "manifest", lambda out: manifest(out) | {"diverged": {"3": 21}})
    study.follow("three", "sac", tmp_path, steps=30, warmup=20, eval_every=1)
    for name in ("progress", "final", "entropy", "paths"):
        table = pd.read_csv(tmp_path / "three" / "sac" / f"{name}.csv")
        assert set(table["seed"]) == {0, 1, 2, 4}
        assert table.drop(columns="recovered", errors="ignore").notna().all(axis=None)


def test_summary_and_claims_of_recorded_tables(tmp_path):
    """Two seeds of each agent: S2AC goes to all goals alike, SAC to one; SAC has the higher soft return."""
    place = tmp_path / "runs" / "multigoal"
    best = {"three": [1 / 3] * 3, "four": [1 / 4] * 4}
    for layout, shares in best.items():
        (place / layout).mkdir(parents=True)
        (place / layout / "exact.json").write_text(json.dumps({"shares": shares}))
        for variant, split in (("s2ac", shares), ("sac", [1.0] + [0.0] * (len(shares) - 1))):
            rows = [{"seed": s, **{f"g{i}": x for i, x in enumerate(split)}, "none": 0.5 * walls * (variant == "sac"),
                     "select": select, "walls": bool(walls)}
                    for s in (0, 1) for select in ("random", "amortised") for walls in (0, 1)]  # fmt: skip
            soft = [
                {"where": "soft", "at": 0, "seed": s, "entropy": -100.0 - 10 * (variant == "s2ac") - s} for s in (0, 1)
            ]
            (place / layout / variant).mkdir()
            runs.write_table(place / layout / variant / "final.csv", pd.DataFrame(rows))
            runs.write_table(place / layout / variant / "entropy.csv", pd.DataFrame(soft))
    table = study.summary(place, "three").set_index(["variant", "seed"])
    assert table["goals"].to_dict() == {("SAC", 0): 1, ("SAC", 1): 1, ("S2AC", 0): 3, ("S2AC", 1): 3}
    assert table["distance"].to_numpy() == pytest.approx([2 / 3, 2 / 3, 0, 0], abs=1e-4)
    assert table["walled"].tolist() == [0.5, 0.5, 1, 1]
    assert table["elsewhere"].to_numpy() == pytest.approx([0, 0, 2 / 3, 2 / 3], abs=1e-4)
    score = dict(list(study.summary(place, "three").groupby("variant")))
    words = [stein.beyond(score, "S2AC", ("SAC",), c, sign, "").verdict
             for c, sign in (("distance", -1), ("soft", 1), ("walled", 1))]  # fmt: skip
    assert words == ["reproduced", "not reproduced", "reproduced"]
    assert stein.beyond(score, "S2AC", ("SQL",), "soft", 1, "").verdict == "not run"
    same, _ = stein.amortised_claims(place, Path(__file__).parents[2] / "data" / "bench" / "cpu.json")
    assert same.verdict == "reproduced" and "4 runs" in same.evidence
    rate = {("s2ac", 1): 10.0, ("s2ac", 5): 50.0, ("s2ac amortised", 1): 40.0, ("s2ac amortised", 5): 41.0}
    rows = [{"what": stein.ACTION, "name": k, "seeds": n, "per_second": r} for (k, n), r in rate.items()]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    _, faster = stein.amortised_claims(place, tmp_path / "bench.json")
    assert faster.verdict == "reproduced" and "4.0 times" in faster.evidence  # one seed beside one seed


@pytest.mark.parametrize(
    ("goals", "value", "verdict"),
    [([4, 4, 1], -125.0, "reproduced"), ([4, 3, 3], -125.0, "not reproduced"), ([4, 4, 4], -135.0, "not reproduced")],
)
def test_all_goals_are_reached_by_most_seeds_at_nearly_the_optimal_return(tmp_path, goals, value, verdict):
    (tmp_path / "four").mkdir()
    (tmp_path / "four/exact.json").write_text(json.dumps({"return": -117.0}))
    assert stein.all_goals(tmp_path, pd.DataFrame({"goals": goals, "return": value})).verdict == verdict
    assert stein.all_goals(tmp_path, None).verdict == "not run"


@pytest.mark.parametrize(
    ("sac", "sql", "verdict"),
    [(-9, -9, "reproduced"), (-9, 0, "mixed"), (-9, 9, "mixed"), (0, 0, "undecided"), (0, 9, "not reproduced"),
     (9, 9, "not reproduced")],
)  # fmt: skip
def test_a_claim_beside_two_agents_is_mixed_only_if_it_holds_beside_one(sac, sql, verdict):
    score = {k: pd.DataFrame({"soft": [v - 1.0, v, v + 1.0]}) for k, v in (("S2AC", 0), ("SAC", sac), ("SQL", sql))}
    claim = stein.beyond(score, "S2AC", ("SAC", "SQL"), "soft", 1, "")
    assert claim.verdict == verdict and ("beside SAC" in claim.evidence) == (sac != sql)


def test_a_learned_start_is_compared_with_itself_without_steps(monkeypatch, tmp_path):
    """Three steps from it are far ahead of a fixed start and no better than none: only the first is reproduced."""
    soft = {"S2AC, learned start, 3 steps": -130.0, "S2AC, learned start, no step": -130.0, "S2AC, 3 steps": -300.0}
    table = pd.DataFrame({"variant": name, "soft": value + s} for name, value in soft.items() for s in (-1, 0, 1))
    monkeypatch.setattr(study, "summary", lambda *_: table)
    found = {c.claim: c.verdict for c in stein.multigoal_claims(tmp_path)}
    start = "S2AC has a higher soft return with 3 steps from a learned start than with"
    assert found[f"{start} 3 from a fixed one (three goals)"] == "reproduced"
    assert found[f"{start} 10 from a fixed one (three goals)"] == "not run"
    steps = "SVGD steps add to a learned start: 3 steps have a higher soft return than none (three goals)"
    assert found[steps] == "undecided"
