"""The paper's Tables 1 and 3 counted again: parameters and multiply-accumulates, with the figures it prints beside them.

Source: the 3D UX-Net's paper (arXiv:2209.15076). What its figures turn out to be stands in the notes, and in docs/networks.md. Whether a
figure agrees is decided by comparing numbers, never written down, and only where what is counted is what the paper counted.

Networks are built on the meta device, so nothing is computed and no weight takes memory. They are counted while training: nnU-Net's
auxiliary heads run then, and the paper's counter saw them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from uxnet.errors import RecipeError, UsageError
from uxnet.networks.blocks import Triple
from uxnet.networks.build import NETWORKS, architecture, build
from uxnet.networks.macs import Macs, count_macs

TABLE_1_PATCH = (96, 96, 96)
TABLE_1_CLASSES = 8
"""FeTA's seven and the background: what Table 1's FLOPs were counted with."""
TABLE_3_CLASSES = 5
"""FLARE's four and the background. Table 3 has no FLOPs, and its parameters print the same at 5 and at 8 classes."""


LONGEST_SIDE, MOST_CHANNELS = 4096, 4096
"""Of patches, and of images and logits; torch's shapes overflow some way beyond."""


@dataclass(frozen=True)
class Printed:
    """What the paper prints, digit for digit: millions of parameters, and GMac (its "FLOPs (G)"); None where it prints nothing."""

    parameters_m: str | None = None
    flops_g: str | None = None


TABLE_1: Mapping[str, Printed] = {
    "unet": Printed("4.81", "135.9"),
    "segresnet": Printed("1.18", "15.6"),
    "rapnet": Printed("38.2", "101.2"),
    "nnunet": Printed("31.2", "743.3"),
    "transbts": Printed("31.6", "110.4"),
    "unetr": Printed("92.8", "82.6"),
    "nnformer": Printed("149.3", "240.2"),
    "swinunetr": Printed("62.2", "328.4"),
    "uxnet": Printed("53.0", "639.4"),
}

TABLE_3: Sequence[tuple[str, str, Mapping[str, Any], Printed]] = (
    ("swinunetr", "SwinUNETR", {}, Printed("62.2")),
    ("uxnet", "standard conv.", {"convolution": "standard"}, Printed("186.9")),
    ("uxnet", "depthwise conv.", {}, Printed("53.0")),
    ("uxnet", "kernel 7", {}, Printed("53.0")),
    ("uxnet", "kernel 9", {"kernel": 9}, Printed("53.6")),
    ("uxnet", "kernel 11", {"kernel": 11}, Printed("54.4")),
    ("uxnet", "kernel 13", {"kernel": 13}, Printed("55.7")),
    ("uxnet", "no MLP", {"scaling": "none"}, Printed("51.1")),
    ("uxnet", "MLP", {"scaling": "mlp"}, Printed("56.3")),
    ("uxnet", "DCS", {}, Printed("53.0")),
    ("uxnet", "block of Eq. 1", {"block": "paper"}, Printed()),
)
"""(network, title, settings, printed): the rows of Table 3 in its order, and the text's reading of the block."""

IDLE: Mapping[str, str] = {
    "unetr": "are norms that it never uses; MONAI before 1.3 did not have them.",
    "transbts": "reach no output, in the authors' network as here.",
}
"""What is said of parameters that no gradient reaches."""

BOTH_AGREE = "Both figures are as printed."
PARAMETERS_AGREE = "The parameters are as printed."
OTHER_THAN_TABLE_1 = "The printed figures are for 96x96x96, 1 channel, 8 classes and the size of the paper; they are not compared."
OTHER_THAN_TABLE_3 = "The printed figures are for 1 channel, 5 classes and the size of the paper; they are not compared."

REASONS: Mapping[str, str] = {
    "unet": "The printed row mixes two networks: its 135.9 GMac are those of MONAI's BasicUNet, which has 5.75 M parameters (135.9 with 5 "
    "classes, 136.0 with 8).",
    "rapnet": "No reading was found that gives the printed 101.2 GMac: it is a tenth of what one phase alone takes.",
    "nnunet": "The printed 743.3 GMac are only approached: by nnU-Net 1's network with an anisotropic first level at 128x128x128 (742.4).",
    "uxnet": "The printed 639.4 GMac are those of another network, with dense linear layers in place of DCS (56.1 M parameters), as the "
    "released code was until October 2022.",
    "no MLP": "No change of the blocks reaches that: without any blocks at all, 52.5 M remain.",
    "MLP": "No reading was found that gives it.",
}
"""Why a printed figure is not reached, by network or row of Table 3."""


@dataclass(frozen=True)
class Row:
    """One network, counted, and what the paper prints for it.

    name, title: ours, and the table's.
    settings: that it was built with.
    parameters: distinct ones.
    macs: of one patch, batch 1, while training.
    printed: the paper's figures.
    compared: whether they are for what was counted here, so that they may be compared.
    notes: sentences, each true by itself.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    in_channels: int
    classes: int
    patch: Triple
    parameters: int
    macs: Macs
    printed: Printed
    compared: bool
    notes: tuple[str, ...] = ()

    @property
    def parameters_agree(self) -> bool | None:
        """Whether the parameters are the printed ones, to the last printed digit; None where there is nothing to compare."""
        return _agrees(self.parameters / 1e6, self.printed.parameters_m) if self.compared else None

    @property
    def flops_agree(self) -> bool | None:
        """The same for the multiply-accumulates by the paper's convention."""
        return _agrees(self.macs.paper / 1e9, self.printed.flops_g) if self.compared else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: GMac are 1e9 multiply-accumulates."""
        printed = self.printed
        return {
            "name": self.name,
            "title": self.title,
            "settings": dict(self.settings),
            "in_channels": self.in_channels,
            "classes": self.classes,
            "patch": list(self.patch),
            "parameters": self.parameters,
            "gmac": self.macs.true / 1e9,
            "paper_convention_gmac": self.macs.paper / 1e9,
            "paper_parameters_m": None if printed.parameters_m is None else float(printed.parameters_m),
            "paper_flops_g": None if printed.flops_g is None else float(printed.flops_g),
            "parameters_agree": self.parameters_agree,
            "flops_agree": self.flops_agree,
            "note": " ".join(self.notes),
        }


def survey(classes: int = TABLE_1_CLASSES, in_channels: int = 1, patch: Sequence[int] = TABLE_1_PATCH, size: str = "paper") -> list[Row]:
    """The nine networks of Table 1, in its order. RAP-Net is its two phases together.

    Args:
        classes: output channels, the background among them.
        in_channels: of the image. RAP-Net's fine phase has one more, the coarse phase's mask, and two classes.
        patch: sides (I, J, K) in voxels.
        size: "paper" or "narrow".

    Raises:
        UsageError: for numbers that cannot be.
        RecipeError: for a size that cannot be, or a patch that one of the networks does not take.
    """
    sides = _checked(classes, in_channels, patch)
    compared = (classes, in_channels, sides, size) == (TABLE_1_CLASSES, 1, TABLE_1_PATCH, "paper")
    settings = {} if size == "paper" else {"size": size}
    rows = []
    for name, entry in NETWORKS.items():
        count = _count(name, in_channels, classes, sides, settings)
        notes = []
        if name == "rapnet":
            count += _count(name, in_channels + 1, 2, sides, settings)
            notes += [f"Both phases together: coarse ({in_channels} -> {classes} channels) and fine ({in_channels + 1} -> 2)."]
        if size == "narrow" and not entry.narrow:
            notes += ["It has no narrow setting: this is its size in the paper."]
        row = Row(name, entry.title, settings, in_channels, classes, sides, count.parameters, count.macs, TABLE_1[name], compared)
        if not compared:
            notes += [OTHER_THAN_TABLE_1]
        notes += _comparison(row, REASONS.get(name))
        if count.idle:
            notes += [f"{count.idle:,} of the parameters {IDLE.get(name, 'reach no output.')}"]
        rows.append(replace(row, notes=tuple(notes)))
    return rows


def ablations(classes: int = TABLE_3_CLASSES, in_channels: int = 1, patch: Sequence[int] = TABLE_1_PATCH, size: str = "paper") -> list[Row]:
    """The rows of Table 3, in its order, and the text's reading of the block (Eq. 1), which no table has.

    The paper prints parameters only, which do not depend on the patch. Arguments and errors are those of `survey`.
    """
    sides = _checked(classes, in_channels, patch)
    compared = (classes, in_channels, size) == (TABLE_3_CLASSES, 1, "paper")
    sized = {} if size == "paper" else {"size": size}
    # Three rows of the table are one network: it is counted once.
    counts: dict[str, _Count] = {}
    rows: list[Row] = []
    for name, title, change, printed in TABLE_3:
        settings = {**sized, **change}
        key = f"{name} {settings}"
        if key not in counts:
            counts[key] = _count(name, in_channels, classes, sides, settings)
        count = counts[key]
        row = Row(name, title, settings, in_channels, classes, sides, count.parameters, count.macs, printed, compared)
        notes = [] if compared else [OTHER_THAN_TABLE_3]
        if printed == Printed():
            more = count.parameters - counts[f"uxnet {sized}"].parameters
            notes += [f"Not in the table: two residuals a block, as the text has it; {more:,} parameters more than the released block."]
            if compared and _agrees(count.parameters / 1e6, TABLE_1["uxnet"].parameters_m):
                notes += [f"It would print as {TABLE_1['uxnet'].parameters_m} M, too: the tables cannot tell the two apart."]
        else:
            notes += _comparison(row, REASONS.get(title))
        rows.append(replace(row, notes=tuple(notes)))
    return rows


# ---- counting


@dataclass(frozen=True)
class _Count:
    """Parameters, those of them that nothing uses, and multiply-accumulates."""

    parameters: int
    idle: int
    macs: Macs

    def __add__(self, other: _Count) -> _Count:
        macs = Macs(self.macs.true + other.macs.true, self.macs.paper + other.macs.paper)
        return _Count(self.parameters + other.parameters, self.idle + other.idle, macs)


def _count(name: str, in_channels: int, classes: int, patch: Triple, settings: Mapping[str, Any]) -> _Count:
    return _counted(name, in_channels, classes, patch, json.dumps(settings, sort_keys=True))


@functools.cache  # a second or more each, and the same networks stand in several tables
def _counted(name: str, in_channels: int, classes: int, patch: Triple, as_json: str) -> _Count:
    settings = json.loads(as_json)
    try:
        # Some constructors draw weights on the CPU all the same: the caller's random numbers are not to be disturbed.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = build(name, in_channels, classes, patch, settings)
        macs = count_macs(network.train(), (1, in_channels, *patch))
    except (ValueError, RuntimeError) as error:
        where, why = "x".join(map(str, patch)), str(error).splitlines()[0]
        raise RecipeError(f"patch: {name} cannot be counted at {where}: {why}") from error
    parameters = dict(network.named_parameters())
    unused = [p for n, p in parameters.items() if any(re.fullmatch(pattern, n) for pattern in architecture(name).untrained)]
    return _Count(sum(p.numel() for p in parameters.values()), sum(p.numel() for p in unused), macs)


def _checked(classes: int, in_channels: int, patch: Sequence[int]) -> Triple:
    sides = tuple(patch)
    if len(sides) != 3 or not all(isinstance(side, int) and 1 <= side <= LONGEST_SIDE for side in sides):
        raise UsageError(f"patch: sides must be three whole numbers from 1 to {LONGEST_SIDE}, not {list(sides)}")
    for name, count in {"classes": classes, "in_channels": in_channels}.items():
        if not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
            raise UsageError(f"{name}: must be a whole number from 1 to {MOST_CHANNELS}, not {count!r}")
    return (sides[0], sides[1], sides[2])


# ---- comparing


def _agrees(value: float, printed: str | None) -> bool | None:
    """Whether a number is the printed one, to its last digit."""
    return None if printed is None else f"{value:.{len(printed.partition('.')[2])}f}" == printed


def _comparison(row: Row, reason: str | None) -> list[str]:
    """What comparing a row with the printed figures gives, and the reason why they differ, where one is known."""
    if not row.compared:
        return []
    agree = [a for a in (row.parameters_agree, row.flops_agree) if a is not None]
    if agree and all(agree):
        return [BOTH_AGREE if len(agree) == 2 else PARAMETERS_AGREE]
    notes = []
    if row.parameters_agree:
        notes = [PARAMETERS_AGREE]
    elif row.parameters_agree is False:
        printed = float(row.printed.parameters_m or "nan")
        off = row.parameters / 1e6 / printed - 1
        notes = [f"The parameters are {100 * abs(off):.2f} % {'below' if off < 0 else 'above'} the printed {row.printed.parameters_m} M."]
    return [*notes, *filter(None, [reason])]
