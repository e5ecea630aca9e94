"""What is said of a trained S2AC: from states that its run met, by its own checkpoint."""

import pandas as pd
import pytest

from softpolicy import runs
from softpolicy.agents import s2ac, sac
from softpolicy.stein_study import study
from softpolicy.train import train

SHORT = dict(warmup=10, eval_every=20, eval_episodes=1, checkpoint_every=100)


def test_the_closed_form_of_a_trained_run_is_compared_with_log_determinants(tmp_path):
    """Small steps bring both together; two studies of one checkpoint agree."""
    gaps = []
    for eps in (1e-2, 1e-3):
        out = tmp_path / f"{eps}"
        train(s2ac.Config(width=8, batch=8, svgd_lr=eps), "Line-v0", [0, 2], 40, out, **SHORT)
        table = study(out, states=10)
        assert table["seed"].tolist() == [0, 2] and (table["step"] == 40).all() and (table["log_det_gap"] > 0).all()
        first = pd.read_csv(out / "diagnosis.csv")
        study(out, states=10)
        pd.testing.assert_frame_equal(first, pd.read_csv(out / "diagnosis.csv"))
        gaps.append(table["log_det_gap"])
    assert (50 * gaps[1] < gaps[0]).all()


def test_other_runs_are_refused(tmp_path):
    train(sac.Config(width=4, batch=4), "Line-v0", [0], 40, tmp_path / "sac", **SHORT)
    with pytest.raises(runs.RunError, match="is a run of sac; give one of s2ac"):
        study(tmp_path / "sac")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        study(tmp_path / "sac", states=0)
    with pytest.raises(runs.RunError):
        study(tmp_path / "nothing")
