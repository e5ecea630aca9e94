import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from softpolicy import streams as rng
from softpolicy.replay import Replay


def transition(s, t, n=1, n_obs=3, n_act=2):
    """Transitions t .. t+n-1 of every seed, each entry telling seed and time."""
    time = torch.arange(t, t + n)[None, :, None].expand(s, n, 1)
    code = torch.arange(s)[:, None, None] * 1000.0 + time  # [S, N, 1]
    return code.expand(s, n, n_obs), code.expand(s, n, n_act) / 1e4, code, code.expand(s, n, n_obs) + 0.5, time % 2


@settings(max_examples=30, deadline=None)
@given(s=st.integers(1, 3), capacity=st.integers(1, 9), rounds=st.integers(1, 25), n=st.integers(1, 9))
def test_holds_exactly_the_last_transitions_of_each_seed(s, capacity, rounds, n):
    n, added = min(n, capacity), rounds * min(n, capacity)
    replay = Replay(capacity, s, 3, 2)
    for t in range(0, added, n):
        replay.add(*transition(s, t, n))
    batch = replay.sample(400, rng.generators(range(s), "sample"))
    expected = set(range(max(0, added - capacity), added))
    for i in range(s):
        seen = batch.reward[i] - 1000 * i
        assert set(seen.int().tolist()) == expected  # 400 draws of at most 9 values miss one with chance < 1e-19
        torch.testing.assert_close(batch.obs[i], batch.reward[i][:, None].expand(-1, 3))
        torch.testing.assert_close(batch.action[i] * 1e4, batch.reward[i][:, None].expand(-1, 2))
        torch.testing.assert_close(batch.next_obs[i], batch.obs[i] + 0.5)
        torch.testing.assert_close(batch.terminated[i], seen % 2)


def test_sampling_is_uniform():
    replay = Replay(50, 1, 3, 2)
    for t in range(40):
        replay.add(*transition(1, t))
    drawn = replay.sample(40_000, rng.generators([0], "sample")).reward[0].int().numpy()
    assert stats.chisquare(np.bincount(drawn, minlength=40)).pvalue > 1e-3


def test_a_seeds_draws_do_not_depend_on_the_others():
    alone, among = Replay(20, 1, 3, 2), Replay(20, 3, 3, 2)
    for t in range(15):
        row = transition(3, t)
        among.add(*row)
        alone.add(*(x[1:2] for x in row))
    a = alone.sample(8, rng.generators([3], "sample"))
    b = among.sample(8, rng.generators([1, 3, 5], "sample"))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[0], y[1])


@pytest.mark.parametrize("added", [0, 3, 10, 17])
def test_restored_replay_continues_as_the_original(added):
    first = Replay(10, 2, 3, 2)
    for t in range(added):
        first.add(*transition(2, t))
    second = Replay(10, 2, 3, 2)
    second.restore(first.save())
    for t in range(added, added + 4):
        first.add(*transition(2, t)), second.add(*transition(2, t))
    draws = [r.sample(30, rng.generators([0, 1], "sample")) for r in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


def test_refuses_what_does_not_fit():
    full = Replay(4, 1, 3, 2)
    for t in range(6):
        full.add(*transition(1, t))
    with pytest.raises(ValueError, match="cannot grow"):
        Replay(8, 1, 3, 2).restore(full.save())
    with pytest.raises(ValueError, match="does not fit"):
        Replay(4, 2, 3, 2).restore(full.save())
    with pytest.raises(ValueError, match="at least 1"):
        Replay(0, 1, 3, 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_of_actions_written_twice_the_later_one_stays(threads):
    slot = torch.arange(5 * 1280).view(5, 1280) % 300
    action, last = torch.arange(5 * 1280 * 6.0).view(5, 1280, 6), torch.zeros(5, 300, 6)
    for new, at, mine in zip(action, slot, last, strict=True):
        for k in range(1280):
            mine[at[k]] = new[k]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            replay = Replay(300, 5, 3, 6)
            replay.rows.zero_()
            replay.put_actions(slot, action)
            assert torch.equal(replay.rows[..., 3:9], last)
            assert not replay.rows[..., :3].any() and not replay.rows[..., 9:].any()
    finally:
        torch.set_num_threads(before)


def test_saved_size_follows_what_was_stored_and_not_the_capacity():
    replay = Replay(1000, 1, 3, 2)
    replay.add(*transition(1, 0))
    assert replay.save()["rows"].untyped_storage().nbytes() == 4 * sum(replay.widths)
