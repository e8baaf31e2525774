"""What torch and the system raise inside a run, said as the package's own error: in one sentence, with what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from uxnet.devices import first_sentence, lacks_memory, shows_frames
from uxnet.errors import TrainingError, plural
from uxnet.recipe import Stage

VALIDATING = ("whole cases", "Lower inference.batch or inference.patch, or leave this process more memory")
SAVING = ("a checkpoint", "Leave this process more memory, or take a smaller network")
"""What there is no memory for while validating, or saving, and what to do."""


@contextlib.contextmanager
def plain_errors(
    stage: Stage, device: torch.device | str, when: Callable[[], str], lacking: tuple[str, str] | None = None
) -> Iterator[None]:
    """Around the whole of a step, its batch, optimiser, average and checkpoint included, or of a validation.

    Args:
        when: such as "in step 3", asked for when something has failed.
        lacking: what there is no memory for, and what to do; by default a step of the recipe's.

    Raises:
        TrainingError: in place of errors that say that memory is lacking, and of those that show where in C++ they come from, with the
            first sentence that they say. Others stay what they are.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        why = first_sentence(error)
        if lacks_memory(error):
            what, remedy = lacking or _step(stage)
            raise TrainingError(f"stopped {when()}: {device} has not the memory for {what} ({why}). {remedy}") from error
        if not shows_frames(error):
            raise
        raise TrainingError(f"stopped {when()}: {why}") from error


def _step(stage: Stage) -> tuple[str, str]:
    patch, batch = "x".join(map(str, stage.sampling.patch)), stage.training.batch
    return (
        f"{plural(batch, 'patch', 'patches')} of {patch} voxels",
        "Raise training.accumulate, lower training.batch or sampling.patch, or take a smaller network",
    )
