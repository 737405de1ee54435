"""The counters that all workers share."""

from shared.observe.counters import LAG_BOUNDS_MS, Stats, lag_counts


def test_a_lag_is_counted_in_the_first_bound_that_holds_it() -> None:
    assert lag_counts([1000, 995, 994, 0], 1000) == {"lag:5": 2, "lag:10": 1, "lag:1000": 1, "lag_ms": 1011}


def test_a_lag_beyond_all_bounds_counts_as_well() -> None:
    assert lag_counts([0], LAG_BOUNDS_MS[-1] + 1)["lag:inf"] == 1


def test_a_receiver_whose_clock_is_ahead_makes_no_negative_lag() -> None:
    assert lag_counts([2000], 1000) == {"lag:5": 1, "lag_ms": 0}


def test_what_was_never_counted_is_zero() -> None:
    stats = Stats.of({})
    assert stats.outcomes == {"applied": 0, "duplicate": 0, "stale": 0, "failed": 0}
    assert stats.events == stats.changes == stats.users_online == sum(stats.lags) == 0
    assert stats.lag_below(0.99) is None


def test_a_share_of_the_lags_lies_below_a_bound() -> None:
    before = Stats.of({b"lag:5": b"100"})
    now = Stats.of({b"lag:5": b"100", b"lag:50": b"98", b"lag:inf": b"2"})
    assert now.lag_below(0.5) == 0.005
    assert now.lag_below(0.5, before) == 0.05
    assert now.lag_below(0.99, before) == float("inf")


def test_a_server_that_lost_its_last_second_has_no_lags_since_then() -> None:
    before, now = Stats.of({b"lag:5": b"7", b"lag:10": b"3"}), Stats.of({b"lag:5": b"6", b"lag:10": b"3"})
    assert now.lag_below(0.99, before) is None
    assert Stats.of({b"lag:5": b"6", b"lag:10": b"4"}).lag_below(0.5, before) == 0.01
