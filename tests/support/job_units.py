"""Units of work that tests hand to other processes, which find them by import."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from uxnet.errors import UxnetError
from uxnet.events import Note, Progress


def plain(item):
    """A unit without a state: does what its item says."""
    return _do(item)


def count(folder, report):
    """The `start` of the units below: leaves a file for every time it was called."""
    made = Path(folder) / f"start.{os.getpid()}.{time.monotonic_ns()}"
    made.touch()
    report(Note("made"))
    return made


def unit(state, item, report):
    """A unit with a state: tells of itself, and gives the state's name with its result."""
    report(Progress("steps", 1, 2))
    report(Note(f"doing {item}"))
    return state.name, _do(item)


def unmakeable(report):
    raise UxnetError("no state can be made of this")


def meet(state, item, report):
    """Ends only when another unit of the same process is in hand at the same time."""
    state.wait(timeout=60)
    return os.getpid()


def make_meeting(report):
    return threading.Barrier(2)


def _do(item):
    """What an item asks for; it is a string with a blank before what it is about."""
    what, _, about = str(item).partition(" ")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(int(about))
    if what == "die-once":
        # The first to come makes the file and dies.
        try:
            Path(about).touch(exist_ok=False)
        except FileExistsError:
            return "survived"
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        sys.exit(int(about))
    if what == "bad":
        raise UxnetError(f"{about} is bad")
    if what == "broken":
        raise Unsendable(about)
    if what == "closure":
        return lambda: about
    if what == "wait":
        # Says who it is, then waits for what never comes.
        Path(about).write_text(str(os.getpid()))
        threading.Event().wait()
    if what == "defect":
        raise KeyError(about)
    return item


class Unsendable(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first, second="given"):
        super().__init__(first)
        self.hold = threading.Lock()
