"""`uxnet`: finds the verb, hands it its arguments, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

VERBS = {
    "demo": "make phantoms, train on them, segment and score the rest, write a page of pictures",
    "inspect": "check a dataset and print its fingerprint",
    "synthesise": "make a training dataset of synthetic images from label maps",
    "plan": "write a recipe for a dataset, each of its keys with a reason",
    "train": "train a network on a dataset by a recipe",
    "predict": "segment scans with a model",
    "evaluate": "score predictions against references",
    "crossval": "train and test several networks on every fold of a dataset, on equal terms",
    "compare": "compare networks on the same test cases: intervals, ranks, paired tests",
    "reproduce": "make the paper's tables and figures again, with what was run beside what it prints",
    "quantise": "add int8 variants of its networks to a model, with the Dice that they cost",
    "convert": "make a model of weights from elsewhere",
    "models": "list the models in the box, or print the card of one",
    "info": "print what a model is and where it came from",
    "cache": "show what is kept of compiled engines, or clear it",
    "networks": "count the networks of the paper's tables, beside what it prints",
    "doctor": "check whether this machine trains right, and in which precision it is fastest",
}

_HELP = """usage: uxnet VERB [arguments]

Volumetric medical image segmentation around the 3D UX-Net. Not a medical device.

{verbs}

  uxnet VERB --help     everything about a verb
  uxnet --version

a first round:
  uxnet demo -o demo
  uxnet inspect Task04_Hippocampus/
  uxnet train Task04_Hippocampus/ --recipe hippocampus --fold 0 -o runs/hippocampus
  uxnet predict runs/hippocampus/model.uxnet scan.nii.gz -o out/
  uxnet evaluate out/ labels/ -o metrics.json

exit codes: 0 done; 1 something failed, or part of a batch did (the rest was done): a file, a model, the machine;
2 arguments that are wrong by themselves; 75 a training was asked to make room and is saved, go on with --resume;
130 interrupted (Ctrl-C); 143 terminated (SIGTERM)"""


_ARGUMENTS = "device|group_by|half|init_from|keep_labels|max_drop|overwrite|resume|size|tensorboard|threads|tolerance_mm"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: all is left in order as after an interruption."""


def program() -> NoReturn:
    """Runs the command line of this process, and ends it."""
    # Commands that have more to do before they end listen for it themselves. Whoever had it ignored keeps it so.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        code = main()
    except Exception:  # noqa: BLE001  # a defect, shown as Python shows it
        traceback.print_exc()
        code = 1
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # One of several processes: at once. Torch's farewell to the others waits, with Python's lock held, for threads that may need that
        # lock to finish: now and then a process would never end (pytorch/pytorch issues 56297 and 190489). All is written by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # A second one is not to disturb what the first one makes it tidy up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:<11}{line}" for verb, line in VERBS.items())))
        return 0
    if arguments[0] == "--version":
        import uxnet

        print(f"uxnet {uxnet.__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"uxnet: there is no verb {verb!r}; there are {', '.join(VERBS)}. Try uxnet --help", file=sys.stderr)
        return 2
    # Imported here: asking for help must not wait for what a verb needs.
    import tyro

    from uxnet.errors import Cancelled, Preempted, UsageError, UxnetError, printable

    module = import_module(f"uxnet.cli.{verb}")
    description = f"{module.run.__doc__}\n\n{module.EXAMPLES}"
    try:
        return int(tyro.cli(module.run, prog=f"uxnet {verb}", args=arguments[1:], description=_without_args(description)))
    except Preempted as error:
        print(f"uxnet {verb}: {printable(in_flags(str(error)))}", file=sys.stderr)
        return 75
    except Terminated:
        print(f"uxnet {verb}: terminated", file=sys.stderr)
        return 143
    except (KeyboardInterrupt, Cancelled) as error:
        print(f"uxnet {verb}: {printable(in_flags(str(error))) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has closed it (| head): nothing to say, and nobody to say it to when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"uxnet {verb}: {printable(said)}", file=sys.stderr)
        return 1
    except UxnetError as error:
        print(f"uxnet {verb}: {printable(in_flags(str(error)))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def in_flags(message: str) -> str:
    """A library's message, which names arguments as Python writes them, as the command line does: resume=True is --resume."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2] or ""
        return f"--{name}" if value in ("", "True") else f"--{name} {value}"

    named = re.sub(rf"(?<![\w.\-])({_ARGUMENTS})=('[^']*'|\w+)", flag, message)
    return re.sub(r"(?<![\w.\-/])(group_by|init_from|max_drop|tolerance_mm)(?![\w.=/])()", flag, named)


def _without_args(text: str) -> str:
    """A docstring without its "Args:" section, which the table of arguments already shows."""
    lines, kept, skipping = text.splitlines(), [], False
    for line in lines:
        stripped = line.strip()
        skipping = stripped == "Args:" or (skipping and (not stripped or line.startswith("        ")))
        if not skipping:
            kept.append(line.removeprefix("    "))
    return "\n".join(kept)


if __name__ == "__main__":
    program()
