"""`uxnet predict`: scans in, label maps out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from uxnet.cohort.scans import Scan
    from uxnet.cohort.unit import Outcome
    from uxnet.events import Event, Progress, Report
    from uxnet.inference.settings import Located, Mirror
    from uxnet.model.catalogue import Chosen
    from uxnet.model.file import Model

EXAMPLES = """examples:
  uxnet predict hippocampus heads/ -o out/                     a model in the box (uxnet models): whole heads, or crops
  uxnet predict model.uxnet scan.nii.gz -o out/
  uxnet predict model.uxnet imagesTs/ more/scan_7.nii.gz -o out/
  uxnet predict model.uxnet scans.json -o out/                 scans.json: {"patient 1": ["t1.nii.gz", "t2.nii.gz"], ...}
  uxnet predict fold_*/model.uxnet imagesTs/ -o out/           the folds' logits are averaged
  uxnet predict model.uxnet ct/ -o out/ --memory-limit 4GB --largest liver --largest spleen
  uxnet predict model.uxnet ct/ -o out/ --workers 4            on four processes
  uxnet predict model.uxnet ct/ -o out/ --shard 3/20           the third of twenty jobs, into the folder of all
  uxnet predict model.uxnet ct/ -o out/ --ray auto             on the Ray cluster that this machine belongs to
  uxnet predict runs/x/model.uxnet imagesTr/ -o out/ --fold 0 --split runs/x/split.json     the cases that a fold holds out
"""

# Of longer lists only what failed is shown.
_LONGEST_TABLE = 30


def run(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL... INPUT...")],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")],
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    region: Literal["auto", "crop", "head"] = "auto",
    box: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    engine: Literal["auto", "openvino", "torch"] = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto",
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None,
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None,
    fold: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    overlap: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None,
    mirror: Annotated[str, tyro.conf.arg(metavar="AXES")] = "none",
    largest: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")] = (),
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    memory_limit: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    skip_air: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    no_skip_air: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> int:
    """Segment scans with a model.

    Each scan gives OUT/NAME.nii.gz, named after its input, on the input's own grid (shape, affine, sform and qform with their codes,
    units), in the smallest integer type. OUT/labels.json says what the values mean; OUT/predict.json lists every scan with its time
    and peak memory. A scan that cannot be segmented is named, and the rest goes on. Images that are no NIfTI files are named, too.

    The same command again takes up what an interrupted one left: outputs that were made from the same content (of input, models and
    settings) are known by OUT/predict.jsonl and left as they are. Anything else that is there is not touched without --overwrite.
    Several calls at a time may write into one OUT: a scan that one of them has in hand is left to it.

    The exit code is 0 if every scan was segmented; 1 if one was not, or a file, a model or the machine is not as needed; 2 if the
    arguments are wrong by themselves; 130 after Ctrl-C and 143 after SIGTERM, which leave nothing half made.

    Args:
        paths: the model, a .uxnet file (several are folds, whose logits are averaged) or the name of one in the box (uxnet models lists
            them; a file or folder of that name goes before it), and what to segment: NIfTI files, folders of them, or manifests
            (.json: {"name": "file"} or {"name": ["channel 0", "channel 1"]}).
            Files named NAME_0000, NAME_0001, ... are the channels of one scan.
        output: folder for the label maps.
        overwrite: replace label maps that are there and were made from something else. If their values mean something else, too, this
            call must replace all of the folder's.
        region: of models in the box that know crops and can be led to them in whole heads: what the scans are. auto goes by their extent
            in mm. A head in which the structures are not found on both sides, or in absurd places, fails and is named.
        box: folder of models with cards, instead of the ones that come with uxnet.
        device: auto, cpu, cuda, cuda:N or mps.
        engine: what computes the network; auto takes openvino on a CPU and torch elsewhere.
        precision: of the computation; auto takes bfloat16 where the device has it.
        threads: threads of a worker; 0 shares the cores among the workers. With --ray, the CPUs that each asks for (0: 4).
        workers: processes, each with a model of its own. 0 works in this process; by default one scan does, and more get one
            process, which is replaced if it dies. With --ray, by default as many as the cluster holds.
        shard: do part I of N of the scans, in the order of their names; for jobs that share OUT, such as those of a job array.
        ray: do the work on a Ray cluster (pip install 'uxnet[ray]'): auto (the one that this machine belongs to), HOST:PORT, or
            local, which begins one on this machine. Its machines must see the same files.
        fold: segment only the cases that this fold of --split holds out: its test cases, or where it has none those that validate. INPUT
            may be the dataset's folder, too.
        split: the file of folds, as train and crossval write it (split.json).
        overlap: least share of a side that neighbouring windows have in common, 0 or more and below 1; the recipe's by default.
        mirror: also compute windows mirrored along these axes of the prepared image, such as ij, and average; 2, 4 or 8 times the
            work. none, or recipe for the axes that training mirrored.
        largest: keep only the largest connected component of this structure; can be given several times, or all.
        probabilities: also write OUT/NAME_probs.nii.gz, the probability of each class.
        memory_limit: the most memory that a process may take, such as 4GB, 512MB or 1.5GiB. With a limit a process has one scan in hand
            at a time; without one it reads the next and writes the last while it segments. Within a limit logits may be kept in half
            precision, so outputs of another limit count as made from something else.
        skip_air: leave out windows that hold nothing above the recipe's crop_above, even if the recipe does not. A recipe without one is
            refused.
        no_skip_air: compute such windows even if the recipe leaves them out.
        cache: folder for compiled engines; by default the user's own cache folder.
    """
    from uxnet.cli.fold import cases_of_fold
    from uxnet.cli.render import Terminal, reporting
    from uxnet.cohort.run import find_scans, predict, read_models
    from uxnet.cohort.scans import unread_images
    from uxnet.errors import Cancelled, UsageError
    from uxnet.events import Progress
    from uxnet.inference.memory import parse_size
    from uxnet.inference.settings import Settings
    from uxnet.model.catalogue import choose

    chosen = choose(paths, box)
    models = list(chosen.models)
    if not chosen.rest:
        raise UsageError("no input: name at least one file or folder to segment, after the model")
    if skip_air and no_skip_air:
        raise UsageError("--skip-air and --no-skip-air contradict each other; give one of them, or none for the recipe's choice")
    cases = cases_of_fold(fold, split)
    described = read_models(models)
    found: list[Event] = []
    channels = len(described[0].channels)
    scans = find_scans(chosen.rest, channels, found.append) if cases is None else _of_cases(chosen.rest, channels, cases, found.append)
    located = _located(chosen, scans, region)
    settings = Settings(
        device=device,
        engine=engine,
        precision=precision,
        threads=_at_least(0, threads, "--threads"),
        cache=cache,
        overlap=_share(overlap),
        mirror=_mirror(mirror, described[0]),
        largest=_structures(largest, described[0]),
        skip_air=True if skip_air else False if no_skip_air else None,
        memory_limit=None if memory_limit is None else parse_size(memory_limit),
        located=located,
    )
    last = Progress("scans", 0, len(scans))

    def heard(event: Event) -> None:
        nonlocal last
        last = event if isinstance(event, Progress) and event.task == "scans" else last
        report(event)

    try:
        with reporting(Terminal(stderr=True)) as report:
            for event in found:
                report(event)
            _say_what_is_taken(chosen, scans, located, box, report)
            outcomes = predict(
                models,
                scans,
                output,
                settings=settings,
                workers=None if workers is None else _at_least(0, workers, "--workers"),
                part=shard,
                cluster=ray,
                probabilities=probabilities,
                overwrite=overwrite,
                report=heard,
            )
    except (KeyboardInterrupt, Cancelled):
        show_stopped(Terminal(), last, output)
        raise
    show(Terminal(), outcomes, output, left_out=len(unread_images(chosen.rest)))
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def show(console: Console, outcomes: Sequence[Outcome], output: Path, *, left_out: int = 0) -> None:
    """Prints what became of the scans: a table where it is short enough to be read, else the names of those that failed; and the totals.

    Why a scan failed was said when it did.

    Args:
        left_out: images that lie among the scans and are of formats that are not read.
    """
    from rich.markup import escape

    from uxnet.errors import plural, shortened

    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    already = sum(outcome.status == "already" for outcome in outcomes)
    if 1 < len(outcomes) <= _LONGEST_TABLE:
        _print_table(console, outcomes)
    elif failed and len(outcomes) > 1:
        names = shortened((escape(outcome.name) for outcome in failed), _LONGEST_TABLE)
        console.print(f"[red]failed:[/] {names} (why is said above, and in predict.json)", soft_wrap=True, highlight=False)
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    colour = "red" if failed else "green"
    one = len(outcomes) == 1
    ready = "" if one and not failed else f"{len(done) + already} of "
    told = f"[{colour}]{ready}{plural(len(outcomes), 'scan')} segmented[/] into {escape(str(output))}"
    if already:
        told += ", it was done already" if one else f", {already} of them {'was' if already == 1 else 'were'} done already"
    if len(done) > 1:
        told += f"; {sum(outcome.seconds for outcome in done) / len(done):.1f} s a scan"
        peaks = [outcome.peak_memory_mb for outcome in done if outcome.peak_memory_mb is not None]
        told += f", peak memory of a process {max(peaks)} MB" if peaks else ""
    if left_out:
        told += f"; [yellow]left out, since they are not NIfTI: {left_out}[/]"
    console.print(told, soft_wrap=True, highlight=False)


def show_stopped(console: Console, last: Progress, output: Path) -> None:
    """Prints how far a call had come that was stopped."""
    from rich.markup import escape

    from uxnet.errors import plural

    failed = int(last.values.get("failed", 0))
    told = f"stopped: {last.done - failed} of {plural(last.total, 'scan')} segmented into {escape(str(output))}"
    told += f", {failed} failed" if failed else ""
    console.print(f"[red]{told}[/]; the same command goes on from there", soft_wrap=True, highlight=False)


def _print_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from uxnet.errors import printable

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("scan", overflow="fold")
    table.add_column("status")
    for name in ("seconds", "peak MB", "windows", "windows/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        colour = {"done": "green", "already": "dim", "failed": "red"}[outcome.status]
        network = outcome.timings.get("network")
        table.add_row(
            escape(printable(outcome.name)),  # before it is laid out: what a terminal may not see takes more room
            f"[{colour}]{outcome.status}[/]",
            f"{outcome.seconds:.1f}",
            "-" if outcome.peak_memory_mb is None else str(outcome.peak_memory_mb),
            "-" if outcome.windows is None else str(outcome.windows),
            "-" if outcome.windows is None or not network else f"{outcome.windows / network:.2f}",
        )
    console.print(table)


def _of_cases(inputs: Sequence[Path], channels: int, cases: Sequence[str], report: Report) -> list[Scan]:
    """The scans of these cases, among those of files, folders, manifests and datasets."""
    from uxnet.cohort.run import Scan, find_scans
    from uxnet.dataset.manifest import read_dataset
    from uxnet.errors import InputError, UsageError, plural, shortened
    from uxnet.events import Note
    from uxnet.io import images_in

    datasets = [path for path in inputs if path.is_dir() and not images_in(path).read]
    found = find_scans([path for path in inputs if path not in datasets], channels, report)
    found += [Scan(case.name, case.images) for folder in datasets for case in read_dataset(folder).cases if case.images]
    scans = {scan.name: scan for scan in found if scan.name in cases}
    if missing := [name for name in cases if name not in scans]:
        raise InputError(
            f"{' and '.join(map(str, inputs))}: there is no scan of {plural(len(missing), 'case')} of the fold: {shortened(missing)}"
        )
    if twice := [scan for scan in found if scan.name in cases and scan is not scans[scan.name]]:
        raise UsageError(f"{twice[0].files[0]}: {scans[twice[0].name].files[0]} is of the same case; give only one of them")
    report(Note(f"{plural(len(scans), 'case')} of the fold, of {len(found)} that are there"))
    return list(scans.values())


def _located(chosen: Chosen, scans: Sequence[Scan], region: str) -> Located | None:
    """How the scans' structures are found first, if the scans are whole ones."""
    from uxnet.cohort.scans import are_whole
    from uxnet.errors import UsageError
    from uxnet.inference.settings import Located
    from uxnet.model.catalogue import in_the_box, model_file

    if chosen.whole is None:
        if region == "head":
            raise UsageError(f"--region head: it takes a model {in_the_box(chosen.box)} whose card says how crops are found in a head")
        return None
    if region == "crop" or (region == "auto" and not are_whole(scans, chosen.whole)):
        return None
    return Located(model_file(chosen.whole.localiser, chosen.box).absolute(), chosen.whole)


def _say_what_is_taken(chosen: Chosen, scans: Sequence[Scan], located: Located | None, box: Path | None, report: Report) -> None:
    from uxnet.events import Note
    from uxnet.model.catalogue import names

    for path in chosen.models:
        if path.parent.resolve() == chosen.box.resolve():
            report(Note(f"{path.stem}: the model in the box, {path}"))
    for path in chosen.rest:
        if str(path) in names(box):
            report(Note(f"{path}: the {'folder' if path.is_dir() else 'file'} here, to be segmented; not the model in the box"))
    if chosen.whole and any(_has_extent(scan) for scan in scans):
        what = "a whole head" if len(scans) == 1 else "whole heads"
        crops = "a crop" if len(scans) == 1 else "crops"
        sides = " and ".join(chosen.whole.sides)
        report(Note(f"taken for {what}: {sides} are located first" if located else f"taken for {crops} around one {chosen.models[0].stem}"))


def _has_extent(scan: Scan) -> bool:
    """Whether a scan's header can be read; of one that cannot, nobody knows what it shows."""
    from uxnet.errors import VolumeError
    from uxnet.io import read_geometry

    try:
        read_geometry(scan.files[0])
    except VolumeError:
        return False
    return True


def _at_least(least: int, number: int, flag: str) -> int:
    from uxnet.errors import UsageError

    if number < least:
        raise UsageError(f"{flag} {number}: give {least} or more")
    return number


def _share(overlap: float | None) -> float | None:
    from uxnet.errors import UsageError

    if overlap is not None and not 0 <= overlap < 1:
        raise UsageError(f"--overlap {overlap:g}: give a share of a window's side, 0 or more and below 1")
    return overlap


def _mirror(axes: str, model: Model) -> Mirror:
    from uxnet.errors import UsageError

    if axes == "none":
        return (False, False, False)
    if axes == "recipe":
        return model.recipe.stages[0].augment.mirror
    if not axes or not set(axes) <= set("ijk") or len(set(axes)) < len(axes):
        raise UsageError(f"--mirror {axes!r}: give none, recipe, or letters of i, j and k, such as ij")
    return ("i" in axes, "j" in axes, "k" in axes)


def _structures(names: Sequence[str], model: Model) -> tuple[str, ...]:
    from uxnet.errors import UsageError

    classes = model.labels.classes
    if "all" in names:
        return classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise UsageError(f"--largest {unknown[0]!r}: the model knows no such structure, but {', '.join(classes)}; or give all")
    return tuple(name for name in classes if name in names)
