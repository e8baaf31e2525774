"""`uxnet cache`: what was kept of compiled engines, and clearing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

# What draws is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from uxnet.inference.engines.cache import CachedFile

EXAMPLES = """examples:
  uxnet cache
  uxnet cache --clear
  uxnet cache /scratch/uxnet-cache             a folder that predict was given by --cache
"""


def run(
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]")] = None,
    *,
    clear: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Show what is kept of the engines that OpenVINO compiled, or remove it.

    A network is converted once, compiled once for each processor, precision and number of threads, and its lower precision checked once.
    The folder holds at most 2 GB; what was not used for longest is removed first. Whatever is missing is made again when it is needed.

    Args:
        folder: the cache; by default the user's own.
        clear: remove all of it. Other files in the folder stay.
    """
    from uxnet.cli.render import Terminal
    from uxnet.errors import UsageError
    from uxnet.inference.engines.cache import LIMIT, cached_files, clear_cache, default_cache

    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    where = folder or default_cache()
    console = Terminal()
    found = clear_cache(where) if clear else cached_files(where)
    total = sum(file.size for file in found)
    count = f"{len(found)} file{'' if len(found) == 1 else 's'}"
    if clear:
        console.print(f"{where}: {count} removed, {_size(total)}", soft_wrap=True, highlight=False, markup=False)
        return 0
    _print_files(found)
    said = f"{where}: {count}, {_size(total)} of at most {_size(LIMIT)}" if found else f"{where}: empty"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
    return 0


def _print_files(found: Sequence[CachedFile]) -> None:
    from datetime import datetime

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import Terminal
    from uxnet.inference.engines.cache import KINDS, is_damaged

    if not found:
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("model", overflow="fold")
    table.add_column("what", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for file in reversed(found):
        damaged = file.kind != "part" and is_damaged(file)
        used = datetime.fromtimestamp(file.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(escape(file.model) or "unknown", KINDS[file.kind] + (", damaged" if damaged else ""), _size(file.size), used)
    Terminal().print(table)


def _size(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
