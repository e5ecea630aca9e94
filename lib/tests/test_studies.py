"""Studies name runs that exist as settings and that can be made, loaded and told apart."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest

from softpolicy import runs, studies
from softpolicy.join import join
from softpolicy.settings import size_of

RECORDED = {
    "langevin-ablations": studies.LANGEVIN,
    "langevin-every-step": studies.LANGEVIN_EVERY_STEP,
    "langevin-cheetah": studies.LANGEVIN_CHEETAH,
    "lsac-ablations": studies.LSAC,
    "lsac-controls": studies.LSAC_CONTROLS,
    "lsac-twenty": studies.LSAC_TWENTY,
    "maze": studies.MAZE,
    "maze-small": studies.MAZE_SMALL,
    "maze-ant": studies.MAZE_ANT,
    "time-limit": studies.TIME_LIMIT,
    "stein-controls": studies.STEIN_CONTROLS,
    **{f"multigoal/{layout}": study for layout, study in studies.MULTIGOAL.items()},
}
FOLDERS = [out for place in RECORDED for out in runs.find(runs.data_root() / "runs" / place)]


@pytest.mark.parametrize("study", [*studies.STUDIES.values(), *studies.MULTIGOAL.values()])
def test_variants_are_valid_and_all_different(study):
    settings = [
        (v[1], *dataclasses.astuple(studies.config(study, name)), studies.protocol(study, name)["env_id"])
        for name, v in study.variants.items()
    ]
    assert study.tasks.keys() <= study.variants.keys()
    assert len(set(settings)) == len(settings)
    assert len({label for label, *_ in study.variants.values()}) == len(settings)


def test_settings_of_a_variant_come_before_those_of_its_study():
    assert studies.config(studies.LANGEVIN, "lql").lr == 1e-3
    assert studies.config(studies.LANGEVIN, "lql-annealed-lr").lr == 2e-3


@pytest.mark.parametrize("out", FOLDERS, ids=lambda out: f"{out.parent.name}/{out.name}")
def test_recorded_runs_are_what_the_study_would_make_today(out):
    """Settings, task, seeds and protocol; the version of the simulator, also in an identity, is the machine's."""
    study = RECORDED[str(out.parent.relative_to(runs.data_root() / "runs"))]
    config, found = studies.config(study, out.name), runs.manifest(out)
    expected = {"n_envs": 1} | studies.protocol(study, out.name) | {"agent": config.name, "size": size_of(config)}
    expected |= {f"{config.name}.{k}": v for k, v in dataclasses.asdict(config).items()}
    assert expected.pop("checkpoint_every") and found["steps"] == expected.pop("steps")
    assert {k: v for k, v in found["identity"].items() if k != "physics"} == expected


@pytest.mark.filterwarnings("ignore:more than half of the coordinates")
def test_a_study_is_made_and_loaded_variant_by_variant(tmp_path):
    short = dict(env_id="Line-v0", seeds=[0], steps=60, n_envs=5, warmup=20, eval_every=30, eval_episodes=1,
                 checkpoint_every=30)  # fmt: skip
    variants = {k: studies.LANGEVIN.variants[k] for k in ("lql", "nclql")}
    study = studies.Study(short, dict(width=8, batch=4), variants)
    assert len(studies.load(study, tmp_path)) == 0
    for variant in variants:
        studies.run(study, variant, tmp_path)
    rows = studies.load(study, tmp_path)
    assert rows.groupby("variant")["step"].max().to_dict() == {"LQL": 60, "NC-LQL": 60}
    assert runs.manifest(tmp_path / "lql")["identity"]["n_envs"] == 5


def test_an_unknown_variant_is_told_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["studies", "maze", "--out", str(tmp_path), "--variants", "sac", "scA"])
    with pytest.raises(SystemExit) as end:
        studies.main()
    assert end.value.code == 2 and not list(tmp_path.iterdir())
    assert "unknown variant 'scA'; accepted are sac," in capsys.readouterr().err


def test_a_variant_without_a_row_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(studies, "run", lambda *_, **__: pd.DataFrame())
    monkeypatch.setattr(sys, "argv", ["studies", "maze", "--out", str(tmp_path), "--variants", "sac", "greedy"])
    studies.main()
    assert capsys.readouterr().out.count("every seed diverged before the first evaluation") == 2


def test_a_study_that_is_stopped_begins_no_further_variant(tmp_path, monkeypatch, capsys):
    protocol = dict(env_id="Line-v0", seeds=[0], steps=60, warmup=20, eval_every=30, eval_episodes=1, max_seconds=1e-9)
    variants = {k: studies.STEIN[k] for k in ("sac", "sql")}
    monkeypatch.setitem(studies.STUDIES, "maze", studies.Study(protocol, dict(width=8, batch=4), variants))
    monkeypatch.setattr(sys, "argv", ["studies", "maze", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        studies.main()
    assert end.value.code == 75 and [p.name for p in tmp_path.iterdir()] == ["sac"]
    assert "was stopped at step 1 of 60; the same command goes on" in capsys.readouterr().out


def test_a_study_can_be_made_seed_by_seed(tmp_path, monkeypatch, capsys):
    short = dict(env_id="Line-v0", seeds=[0, 1], steps=60, warmup=20, eval_every=30, eval_episodes=1)
    study = studies.Study(short, dict(width=8, batch=4), {"sac": ("SAC", "sac", {})})
    monkeypatch.setitem(studies.STUDIES, "maze", study)
    for seed in ("1", "0"):
        monkeypatch.setattr(sys, "argv", ["studies", "maze", "--out", str(tmp_path / seed), "--seeds", seed])
        studies.main()
    joined = join(tmp_path / "both", tmp_path / "1/sac", tmp_path / "0/sac")
    whole = studies.run(study, "sac", tmp_path / "whole")
    pd.testing.assert_frame_equal(joined[["step", "seed", "length"]], whole[["step", "seed", "length"]])
    np.testing.assert_allclose(joined["return"], whole["return"], rtol=1e-3)
    assert runs.manifest(tmp_path / "both")["identity"] == runs.manifest(tmp_path / "whole/sac")["identity"]

    monkeypatch.setattr(sys, "argv", ["studies", "maze", "--out", str(tmp_path / "c"), "--seeds", "1", "1"])
    with pytest.raises(SystemExit, match="error: .*seeds"):
        studies.main()
