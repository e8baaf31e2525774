"""The paper's tables 1 to 5 and figures 3 and 4, with what was run here beside what it prints.

Nothing is trained: tables 1 to 3 and the figures are made of the records of `uxnet crossval`, table 4 of the recipes in the box, table 5
of what `uxnet inspect` finds. What was not run is said to be so; the paper's figures stand as printed, with their known faults beside
them (docs/fidelity.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from uxnet.events import Report, silent
from uxnet.paper.ablations import ablation_table
from uxnet.paper.figures import curve_figure, slice_figure
from uxnet.paper.records import Trial, read_trials
from uxnet.paper.scores import score_table
from uxnet.paper.setup import hyperparameter_table, overview_table
from uxnet.paper.text import PaperTable, write_table
from uxnet.paper.transfer import transfer_figure

__all__ = [
    "PaperTable",
    "Table",
    "Trial",
    "curve_figure",
    "paper_table",
    "read_trials",
    "slice_figure",
    "transfer_figure",
    "write_table",
]

Table = Literal["table1", "table2", "table3", "table4", "table5"]


def paper_table(
    name: Table, trials: Sequence[Trial] = (), datasets: Sequence[str | Path] = (), *, workers: int = 1, report: Report = silent
) -> PaperTable:
    """One of the paper's tables.

    Args:
        trials: of tables 1 to 3, from `read_trials`.
        datasets: of table 5: inspections or datasets, see `overview_table`; workers: processes that read them.

    Raises:
        InputError, DatasetError, RecipeError: as the table's own function.
    """
    if name == "table3":
        return ablation_table(trials)
    if name == "table4":
        return hyperparameter_table()
    if name == "table5":
        return overview_table(datasets, workers=workers, report=report)
    return score_table(name, trials)
