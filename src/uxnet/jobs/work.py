"""Independent units of work: in this process, in a pool of processes, or on a Ray cluster.

A unit that fails is reported and does not take the others with it, and neither does one that kills its process (a segmentation fault,
too little memory): the process is replaced and the others go on. What it had in hand is tried once more at the end, alone, and what
kills its process then, too, has failed.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from uxnet.errors import Cancelled, UsageError, UxnetError
from uxnet.events import Report, silent
from uxnet.jobs.cluster import Cluster, connected, ray_shift
from uxnet.jobs.processes import process_shift
from uxnet.jobs.unit import Lost, Reply, Shift, Task, nothing, stateless

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

# So many units, and two a worker more, lost before anything at all was finished: it is not the units that are bad.
_HOPELESS = 10


@dataclass(frozen=True)
class Finished(Generic[Item, Result]):
    """A unit that is done: its item and either the result or the error."""

    item: Item
    result: Result | None
    error: Exception | None


def always(item: Any) -> bool:
    """The `admit` of units that may begin whenever there is a worker for them."""
    return True


@overload
def work(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Finished[Item, Result], None, None]: ...  # fmt: skip


@overload
def work(
    function: Callable[[State, Item, Report], Result],
    items: Sequence[Item],
    workers: int,
    *,
    start: Callable[[Report], State],
    report: Report = silent,
    abreast: int = 1,
    cluster: Cluster | None = None,
    admit: Callable[[Item], bool] = always,
) -> Generator[Finished[Item, Result], None, None]: ...


def work(
    function: Callable[..., Any],
    items: Sequence[Any],
    workers: int,
    *,
    start: Callable[[Report], Any] | None = None,
    report: Report = silent,
    abreast: int = 1,
    cluster: Cluster | None = None,
    admit: Callable[[Any], bool] = always,
) -> Generator[Finished[Any, Any], None, None]:
    """Runs `function` on every item and yields each as it finishes.

    To stop before the end, close what this returns (`contextlib.closing`), or raise `Cancelled` out of `report`: the processes end at
    once. They also end when this process dies, however it does.

    Args:
        function: of the module level, so that another process can find it. It is called as `function(item)`; with `start` as
            `function(state, item, report)`, where `report` is heard by this process's (on a cluster when the unit is done, and
            without its Progress).
        workers: processes. 0 works in this one, in order; without `start` 1 does so, too. On a cluster, 0 takes as many as it holds.
        start: makes, in each worker and before its first unit, what all its units use: `state = start(report)`.
        report: hears what `start` and the units tell.
        abreast: units that a process has in hand at a time, each in a thread of its own, so that one can read or write while another
            computes; what may not happen side by side the state must keep apart. In this process units run one after the other.
        cluster: work there instead of in processes of this machine.
        admit: asked in this process right before an item is begun; where it says no, the item is left, and comes back with neither
            result nor error. Of an item that is tried once more it is asked again.

    Yields:
        One `Finished` an item. UxnetErrors and OSErrors are what can be wrong with an item, and come back in it; any other
        exception is a defect, and is raised as itself with a note of where it was raised. So is every exception of `start`.

    Raises:
        UsageError: if there are fewer than no workers.
        UxnetError: if workers die one after the other before anything is done, or there is no Ray or no such cluster.
    """
    if workers < 0:
        raise UsageError(f"{workers} workers: give 0 to work in this process, or the number of processes")
    if not items:
        return
    task = Task(functools.partial(stateless, function), nothing) if start is None else Task(function, start)

    def admitted(n: int) -> bool:
        return admit(items[n])

    if cluster is not None:
        with connected(cluster) as ray:
            yield from _with_second_chance(
                functools.partial(ray_shift, ray, task, items, report, cluster, admitted), items, workers, abreast
            )
    elif workers == 0 or (start is None and (workers <= 1 or len(items) == 1)):
        yield from _here(task, items, report, admit)
    else:
        yield from _with_second_chance(functools.partial(process_shift, task, items, report, admitted), items, workers, abreast)


def shard(items: Sequence[Item], which: str) -> list[Item]:
    """Part i of n of the items, of "i/n": every n-th, beginning with the i-th. The parts are disjoint and together everything.

    Args:
        items: in an order that is the same whenever a part is taken.

    Raises:
        UsageError: if `which` is not i/n with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", which)
    part, parts = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UsageError(f"{which!r} is no shard; write i/n, such as 1/4, 2/4, 3/4 and 4/4 for four parts")
    return list(items[part - 1 :: parts])


def _here(task: Task, items: Sequence[Any], report: Report, admit: Callable[[Any], bool]) -> Iterator[Finished[Any, Any]]:
    state = task.start(report)
    for item in items:
        try:
            finished = Finished(item, task.function(state, item, report) if admit(item) else None, None)
        except Cancelled:
            raise
        except (UxnetError, OSError) as error:
            finished = Finished(item, None, error)
        yield finished


def _with_second_chance(shift: Shift, items: Sequence[Any], workers: int, abreast: int) -> Iterator[Finished[Any, Any]]:
    lost: list[int] = []
    anything = False
    # Shifts are closed with this generator: their workers must not wait until nobody refers to them any more.
    with contextlib.closing(shift(range(len(items)), workers, abreast)) as units:
        for n, reply in units:
            if isinstance(reply, Reply):
                anything = True
                yield _finished(items[n], reply)
                continue
            lost.append(n)
            if not anything and len(lost) >= _HOPELESS + 2 * workers * abreast:
                raise UxnetError(
                    f"worker processes died over {len(lost)} units one after the other ({reply.how}) and nothing was done; "
                    "is there enough memory for so many workers? Work in this process shows what happens"
                )
    # Alone: it is known then who dies, and there is more memory for each.
    with contextlib.closing(shift(lost, 1, 1)) as units:
        for n, reply in units:
            yield _finished(items[n], reply)


def _finished(item: Any, reply: Reply | Lost) -> Finished[Any, Any]:
    if isinstance(reply, Lost):
        died = f"the worker process died twice over this ({reply.how}); is there enough memory?"
        return Finished(item, None, UxnetError(died))
    if reply.defect is not None:
        raise reply.defect
    return Finished(item, reply.result, reply.error)
