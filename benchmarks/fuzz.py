"""Reads thousands of damaged files as the commands read them, and counts what becomes of each.

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --only json --cases 500 --seed 7
    python benchmarks/fuzz.py --only json --first 137 --cases 1      # one of them again

A file is accepted, or refused by an error of the package's own. Anything else is a fault: another exception, more than a second of
processor time, more memory than the limit, the death of the process. The exit status is 1 where there is any.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import PARTS

from uxnet.cohort.unit import reset_peak
from uxnet.errors import UxnetError

SECONDS = 1.0
MEGABYTES = 512
_ADDRESSES = 4 << 30


@dataclass(frozen=True)
class Case:
    """What became of a case: "accepted", "refused", "crashed", "slow", "memory" or "died"; and why."""

    number: int
    target: str
    end: str
    why: str = ""


class TooSlow(BaseException):
    """Raised into whatever reads for too long; no reader may catch it."""


def run_part(part: str, numbers: range, seed: int, folder: Path) -> Iterator[Case]:
    """Reads the cases of these numbers, one after the other, in this process."""
    targets = PARTS[part](folder / "base")
    work = folder / "work"
    with warnings.catch_warnings(), _watched():
        warnings.simplefilter("ignore")
        for number in numbers:
            rng = random.Random(f"{seed} {part} {number}")
            target = targets[number % len(targets)]
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(target.base, work)
            target.change(rng, work)
            end, why = _end_of(target.read, work)
            yield Case(number, target.name, end, why)


def _end_of(read, work: Path) -> tuple[str, str]:
    end, why = "accepted", ""
    measured, before = reset_peak(), _resident_mb()
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 5 * SECONDS)
    try:
        read(work)
    except UxnetError as error:
        end, why = "refused", f"{type(error).__name__}: {str(error)[:200]}"
    except TooSlow:
        end, why = "slow", f"stopped after {5 * SECONDS:g} s in {_where(sys.exc_info()[2])}"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        end, why = "crashed", f"{type(error).__name__} in {_where(error.__traceback__)}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - began
    if end in ("accepted", "refused") and seconds > SECONDS:
        return "slow", f"{seconds:.1f} s, {end}"
    grown = _resident_mb("VmHWM") - before if measured else 0
    if end in ("accepted", "refused") and grown > MEGABYTES:
        return "memory", f"{grown:.0f} MB, {end}"
    return end, why


class _watched:
    """Time that is up is raised; more addresses than any case may need are not given."""

    def __enter__(self) -> None:
        self.handler = signal.signal(signal.SIGPROF, self._stop)
        self.limit = resource.getrlimit(resource.RLIMIT_AS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else None
        if held:
            resource.setrlimit(resource.RLIMIT_AS, (held + _ADDRESSES, self.limit[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.limit)
        signal.signal(signal.SIGPROF, self.handler)

    @staticmethod
    def _stop(*_: object) -> None:
        raise TooSlow


def _where(trace) -> str:
    """The last line of the package's own, and what it called."""
    frames = traceback.extract_tb(trace)
    own = [f for f in frames if "uxnet" in Path(f.filename).parts and "benchmarks" not in Path(f.filename).parts]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _resident_mb(key: str = "VmRSS") -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith(key))


def in_processes(part: str, first: int, count: int, seed: int) -> Iterator[Case]:
    """The same in a process of its own; where it dies, another one goes on after the case that killed it."""
    end = first + count
    while first < end:
        command = [sys.executable, __file__, "--worker", "--only", part, "--first", str(first), "--cases", str(end - first)]
        with subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout:
                case = Case(**json.loads(line))
                first = case.number + 1
                yield case
        if worker.returncode == 0:
            return
        if worker.returncode > 0:
            raise SystemExit(f"{part}: the worker ended with {worker.returncode} before case {first}")
        yield Case(first, "?", "died", f"signal {-worker.returncode}")
        first += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of each part")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        with tempfile.TemporaryDirectory() as folder:
            for case in run_part(given.only, range(given.first, given.first + given.cases), given.seed, Path(folder)):
                print(json.dumps(asdict(case)), flush=True)
        return 0
    ends = ("accepted", "refused", "crashed", "slow", "memory", "died")
    print(f"{'part':10}{'cases':>8}" + "".join(f"{end:>10}" for end in ends))
    faults: list[tuple[str, Case]] = []
    for part in [given.only] if given.only else PARTS:
        cases = list(in_processes(part, given.first, given.cases, given.seed))
        counts = Counter(case.end for case in cases)
        print(f"{part:10}{len(cases):8}" + "".join(f"{counts[end]:10}" for end in ends), flush=True)
        faults += [(part, case) for case in cases if case.end not in ("accepted", "refused")]
        if given.cases == 1:
            print(cases[0].end, cases[0].why)
    alike = Counter(
        (part, case.target, case.end, case.why.partition(":")[0] if case.end == "memory" else case.why[:90]) for part, case in faults
    )
    for (part, target, end, why), count in alike.most_common():
        first = next(c.number for p, c in faults if (p, c.target, c.end) == (part, target, end) and c.why.startswith(why))
        print(f"{part} {target}: {end} {count} times, first at --first {first}: {why}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
