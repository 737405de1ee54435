"""What every child process of ours has in common."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)
#: Looked up before any fork: in the child, a lock that another thread held at that moment would never be released.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Called between fork and exec: the kernel will stop the child if its parent is killed. Linux only."""
    if _prctl:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
