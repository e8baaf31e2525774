"""Independent units of work, here or in a pool of processes. A unit that fails is reported and does not take the others with it."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from uxnet.errors import UxnetError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finished(Generic[Item, Result]):
    """A unit that is done: its item and either the result or the error."""

    item: Item
    result: Result | None
    error: Exception | None


def work(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Finished[Item, Result]]:
    """Runs `function` on every item and yields each as it finishes.

    Args:
        function: of the module level, so that another process can find it.
        workers: processes; 0 or 1 works in this one, in order.

    Yields:
        One `Finished` an item. UxnetErrors and OSErrors are what can be wrong with an item, and come back in it; any other
        exception is a defect and is raised as itself.
    """
    if workers <= 1 or len(items) <= 1:
        for item in items:
            yield _run(function, item)
        return
    # A fresh interpreter for each worker: forking a process whose libraries have threads can hang it.
    context = multiprocessing.get_context("spawn")
    left, workers = list(range(len(items))), min(workers, len(items))
    while left:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures: dict[Future[Finished[Item, Result]], int] = {}
            try:
                # A process that dies breaks the whole pool: what it left undone is taken up again below.
                with contextlib.suppress(BrokenProcessPool):
                    futures.update((pool.submit(_run, function, items[n]), n) for n in left)
                for future in as_completed(futures):
                    if not isinstance(future.exception(), BrokenProcessPool):
                        left.remove(futures[future])
                        yield future.result()
            finally:
                # Whoever stops listening (a cancellation) does not want the units that have not begun.
                pool.shutdown(cancel_futures=True)
        if left and workers == 1:
            # A single process works in order, so it died over the first unit that is left.
            yield Finished(items[left.pop(0)], None, UxnetError("the worker process died, perhaps for lack of memory"))
        # One at a time from here on: it is known then who dies, and there is more memory for each.
        workers = 1


def _run(function: Callable[[Item], Result], item: Item) -> Finished[Item, Result]:
    try:
        return Finished(item, function(item), None)
    except (UxnetError, OSError) as error:
        return Finished(item, None, error)
