"""The literal names that other services read."""

from pathlib import Path

from openim_presence.keys import Keys

ROOT = Path(__file__).parents[2]
PACKAGES = ("openim_presence", "receiver", "worker", "shared")


def test_each_name_is_the_contracts() -> None:
    keys = Keys("presence")
    assert keys.user("user123") == "presence:user123"
    assert keys.changes == "presence-changes"
    assert keys.stats == "presence-stats"
    assert keys.leases == "presence-leases"
    assert keys.ignored == "presence-ignored"
    assert keys.receivers == "presence-receivers"
    assert keys.sweep == "presence-sweep"
    assert keys.sweeper == "presence-sweeper"
    assert keys.reconcile == "presence-reconcile"
    assert keys.reconcile_todo == "presence-reconcile-todo"
    assert keys.reconciler == "presence-reconciler"
    assert keys.doubtful == "presence-doubtful"
    assert keys.queue == "presence"


def test_another_prefix_changes_them_all() -> None:
    keys = Keys("x")
    assert (keys.user("u"), keys.changes, keys.stats, keys.queue) == ("x:u", "x-changes", "x-stats", "x")


def test_no_other_module_builds_a_name() -> None:
    for path in [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.*")]:
        if path.suffix in (".py", ".lua") and path.name != "keys.py":
            text = path.read_text()
            assert "presence:{" not in text, path
            assert '"presence-' not in text, path
