"""Studies name runs that exist as settings and that can be made, loaded and told apart."""

import dataclasses

import pytest

from softpolicy import runs, studies


@pytest.mark.parametrize("study", [*studies.STUDIES.values(), *studies.MULTIGOAL.values()])
def test_variants_are_valid_and_all_different(study):
    settings = [(v[1], *dataclasses.astuple(studies.config(study, name))) for name, v in study.variants.items()]
    assert len(set(settings)) == len(settings)
    assert len({label for label, *_ in study.variants.values()}) == len(settings)


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
