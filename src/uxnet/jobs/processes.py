"""Units in processes of this machine, each at the other end of a pipe: whichever of the two dies, the other notices."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from uxnet.events import Event, Report
from uxnet.jobs.unit import Admit, Bench, Done, Lost, Reply, Task, as_defect, dealt

# How long an idle worker may take to end by itself.
_FAREWELL_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class _Worker:
    """A process, this end of its pipe, and the numbers of the units that it has in hand."""

    process: SpawnProcess
    pipe: Connection[Any, Any]
    held: list[int]


def process_shift(task: Task, items: Sequence[Any], report: Report, admit: Admit, units: Sequence[int], workers: int, abreast: int) -> Done:
    """Does the units of these numbers in processes, see `unit.Shift`. Closing it ends the processes at once."""
    # A fresh interpreter for each worker: forking a process whose libraries have threads can hang it.
    context, blob = multiprocessing.get_context("spawn"), pickle.dumps(task)
    waiting, crew = deque(units), list[_Worker]()
    try:
        while waiting or any(worker.held for worker in crew):
            while len(crew) < min(workers, len(waiting) + sum(len(worker.held) > 0 for worker in crew)):
                crew.append(_hire(context, blob, abreast))
            refused: list[int] = []
            for n, worker in dealt(waiting, crew, abreast, admit, refused):
                worker.held.append(n)
                # Who died meanwhile is noticed below.
                with contextlib.suppress(OSError):
                    worker.pipe.send((n, pickle.dumps(items[n])))
            if refused:
                yield from ((n, Reply()) for n in refused)
                continue
            ready = wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                try:
                    n, message = worker.pipe.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    how = _died(worker)
                    yield from ((n, Lost(how)) for n in worker.held)
                    continue
                if isinstance(message, Reply):
                    worker.held.remove(n)
                    yield n, message
                else:
                    report(message)
    finally:
        _dismiss(crew)


def _hire(context: SpawnContext, task: bytes, abreast: int) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, task, abreast), daemon=True)
    process.start()
    # Only the worker may hold the other end: its death is then the end of this one.
    there.close()
    return _Worker(process, here, [])


def _serve(pipe: Connection[Any, Any], task: bytes, abreast: int) -> None:
    """What a worker process does: units in threads, while the main thread listens to the caller and ends with it."""
    # An interruption from the keyboard reaches every process of the terminal; it is the caller that decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bench, sending = Bench(task), threading.Lock()
    inbox: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()

    def send(n: int, message: Reply | Event) -> None:
        # A caller that is gone is noticed by the main thread.
        with sending, contextlib.suppress(OSError):
            pipe.send((n, message))

    def toil() -> None:
        while True:
            n, item = inbox.get()
            reply = bench.run(item, functools.partial(send, n))
            try:
                send(n, reply)
            except Exception as defect:  # noqa: BLE001  # a result that cannot be pickled; it is raised by the caller
                send(n, as_defect(defect))

    for _ in range(abreast):
        threading.Thread(target=toil, daemon=True).start()
    while True:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            # At once, whatever the threads are doing.
            os._exit(1)
        if order is None:
            return
        inbox.put(order)


def _died(worker: _Worker) -> str:
    worker.pipe.close()
    worker.process.join(_FAREWELL_SECONDS)
    worker.process.kill()
    worker.process.join()
    code = worker.process.exitcode or 0
    worker.process.close()
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _dismiss(crew: Sequence[_Worker]) -> None:
    for worker in crew:
        if worker.held:
            worker.process.kill()
        else:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
    for worker in crew:
        worker.process.join(_FAREWELL_SECONDS)
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()
