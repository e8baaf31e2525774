"""A unit of work, wherever it runs, and what is said about it."""

from __future__ import annotations

import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from uxnet.errors import Cancelled, UxnetError
from uxnet.events import Report


@dataclass(frozen=True)
class Task:
    """What workers do. Nothing but this and items is sent to them."""

    function: Callable[[Any, Any, Report], Any]
    start: Callable[[Report], Any]


@dataclass(frozen=True)
class Reply:
    """What became of a unit: its result, what is wrong with its item, or what is wrong with the code; nothing if it might not begin."""

    result: Any = None
    error: Exception | None = None
    defect: BaseException | None = None


@dataclass(frozen=True)
class Lost:
    """The worker died over a unit; `how` says all that is known."""

    how: str


class Bench:
    """A worker's place: the task, and the state, which is made when the first unit comes."""

    def __init__(self, task: bytes) -> None:
        self.task = task
        self.making = threading.Lock()
        self.made: tuple[Task, Any] | None = None

    def run(self, item: bytes, report: Report) -> Reply:
        """Runs a unit; whatever it raises is in the reply, in a form that can travel."""
        try:
            with self.making:
                if self.made is None:
                    task: Task = pickle.loads(self.task)
                    self.made = (task, task.start(report))
        except BaseException as defect:  # noqa: BLE001  # it is raised by the caller
            return as_defect(defect)
        task, state = self.made
        try:
            return Reply(result=task.function(state, pickle.loads(item), report))
        except Cancelled as defect:
            return as_defect(defect)
        except (UxnetError, OSError) as error:
            return Reply(error=error) if _travels(error) else Reply(error=UxnetError(str(error)))
        except BaseException as defect:  # noqa: BLE001  # it is raised by the caller
            return as_defect(defect)


def stateless(function: Callable[[Any], Any], state: None, item: Any, report: Report) -> Any:
    """A function of the item alone, in the form that workers call."""
    return function(item)


def nothing(report: Report) -> None:
    """The `start` of units that have nothing in common."""


def as_defect(error: BaseException) -> Reply:
    """The reply that makes the caller raise `error`, with a note of where it was raised."""
    where = "In a worker process:\n" + "".join(traceback.format_exception(error)).rstrip()
    # What leaves a process on purpose would end this one, too.
    leaves = isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit)
    defect = error if _travels(error) and not leaves else RuntimeError(f"{type(error).__name__}: {error}")
    defect.add_note(where)
    return Reply(defect=defect)


def _travels(thing: Any) -> bool:
    try:
        pickle.loads(pickle.dumps(thing))
    except Exception:  # noqa: BLE001  # pickling runs the thing's own code, which may raise anything
        return False
    return True


Done = Generator[tuple[int, Reply | Lost], None, None]
"""The numbers of units, each with what became of it."""

Shift = Callable[[Sequence[int], int, int], Done]
"""Does the units of these numbers with so many workers, so many abreast. What a worker died over is not tried again."""


Admit = Callable[[int], bool]
"""Whether a unit may begin, asked in the caller's process right before it is given to a worker."""


def dealt(waiting: deque[int], crew: Sequence[Any], abreast: int, admit: Admit, refused: list[int]) -> Iterator[tuple[int, Any]]:
    """Who gets which unit next: nobody gets a second one while another has none. Those that may not begin are added to `refused`."""
    for depth in range(1, abreast + 1):
        for worker in crew:
            while waiting and len(worker.held) < depth:
                n = waiting.popleft()
                if admit(n):
                    yield n, worker
                else:
                    refused.append(n)
