"""Tables 1 and 3 counted again: every figure, and that every sentence about them is true."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from uxnet.errors import RecipeError, UsageError
from uxnet.networks.build import NETWORKS, build
from uxnet.networks.macs import count_macs
from uxnet.paper.networks import (
    BOTH_AGREE,
    OTHER_THAN_TABLE_1,
    OTHER_THAN_TABLE_3,
    PARAMETERS_AGREE,
    REASONS,
    TABLE_1,
    TABLE_3,
    ablations,
    survey,
)

# name: parameters, true GMac, GMac by the paper's convention, and what the paper prints; 8 classes, 1x1x96x96x96
TABLE_1_COUNTED = {
    "unet": (4_813_297, 7.1257, 17.5521, 4.81, 135.9),
    "segresnet": (1_176_240, 15.4652, 15.6302, 1.18, 15.6),
    # Coarse (1 -> 8) and fine (2 -> 2).
    "rapnet": (19_072_328 + 19_072_802, 1649.6858, 2007.0838, 38.2, 101.2),
    "nnunet": (31_199_584, 201.5768, 225.5216, 31.2, 743.3),
    "transbts": (31_577_336, 119.4323, 110.4147, 31.6, 110.4),
    "unetr": (92_802_376, 73.1394, 82.5860, 92.8, 82.6),
    "nnformer": (149_284_064, 176.9172, 240.2293, 149.3, 240.2),
    "swinunetr": (62_187_002, 318.2699, 328.3505, 62.2, 328.4),
    "uxnet": (53_006_216, 577.5309, 631.9296, 53.0, 639.4),
}

# title: parameters at 5 classes, and what the paper prints
TABLE_3_COUNTED = {
    "SwinUNETR": (62_186_855, 62.2),
    "standard conv.": (186_858_389, 186.9),
    "depthwise conv.": (53_006_069, 53.0),
    "kernel 7": (53_006_069, 53.0),
    "kernel 9": (53_561_909, 53.6),
    "kernel 11": (54_428_789, 54.4),
    "kernel 13": (55_675_829, 55.7),
    "no MLP": (52_987_349, 51.1),
    "MLP": (56_127_989, 56.3),
    "DCS": (53_006_069, 53.0),
    "block of Eq. 1": (53_007_509, None),
}


@pytest.fixture(scope="module")
def nine():
    return {row.name: row for row in survey()}


@pytest.fixture(scope="module")
def changed():
    return {row.title: row for row in ablations()}


# ---- Table 1


def test_the_nine_are_those_of_the_list_in_its_order(nine):
    assert list(nine) == list(NETWORKS) == list(TABLE_1) == list(TABLE_1_COUNTED)
    assert [row.title for row in nine.values()] == [entry.title for entry in NETWORKS.values()]


@pytest.mark.parametrize("name", TABLE_1_COUNTED)
def test_table_1(nine, name):
    parameters, true, paper, printed_parameters, printed_flops = TABLE_1_COUNTED[name]
    row = nine[name].to_dict()
    assert row["parameters"] == parameters
    assert f"{row['gmac']:.4f}" == f"{true:.4f}"
    assert f"{row['paper_convention_gmac']:.4f}" == f"{paper:.4f}"
    assert (row["paper_parameters_m"], row["paper_flops_g"]) == (printed_parameters, printed_flops)
    assert (row["classes"], row["in_channels"], row["patch"], row["settings"]) == (8, 1, [96, 96, 96], {})


def test_which_figures_of_table_1_agree(nine):
    assert [name for name, row in nine.items() if not row.parameters_agree] == ["rapnet"]
    assert [name for name, row in nine.items() if not row.flops_agree] == ["unet", "rapnet", "nnunet", "uxnet"]
    for name, row in nine.items():
        agree = row.parameters_agree and row.flops_agree
        assert (BOTH_AGREE in row.notes) == agree
        assert (PARAMETERS_AGREE in row.notes) == (row.parameters_agree and not row.flops_agree)
        assert (REASONS.get(name) in row.notes) == (not agree)


def test_rapnet_is_both_phases_and_the_second_is_guided_by_the_first(nine):
    assert "Both phases together: coarse (1 -> 8 channels) and fine (2 -> 2)." in nine["rapnet"].notes
    assert "The parameters are 0.14 % below the printed 38.2 M." in nine["rapnet"].notes


def test_what_nothing_reads_is_named(nine):
    # 92,783,944 is the count of MONAI 0.9.0, which the paper ran.
    assert nine["unetr"].parameters - 92_783_944 == 18_432
    assert any(note.startswith("18,432 of the parameters") for note in nine["unetr"].notes)


# ---- what is said of other networks


def counted(network, sides=96):
    return count_macs(network.train(), (1, 1, sides, sides, sides)).paper / 1e9


def parameters_of(network):
    return sum(p.numel() for p in network.parameters())


def test_the_flops_of_the_unets_row_are_those_of_another_unet():
    from monai.networks.nets.basic_unet import BasicUNet

    with torch.device("meta"):
        networks = [BasicUNet(3, 1, classes) for classes in (5, 8)]
    assert [f"{counted(network):.1f}" for network in networks] == ["135.9", "136.0"]
    assert {f"{parameters_of(network) / 1e6:.2f}" for network in networks} == {"5.75"}
    assert all(figure in REASONS["unet"] for figure in ("135.9", "136.0", "5.75"))


def test_nnunets_anisotropic_first_level_at_128_comes_near_the_printed_flops():
    with torch.device("meta"):
        network = build("nnunet", 1, 8, settings={"strides": [[1, 2, 2], 2, 2, 2, 2], "kernel": [[1, 3, 3], 3, 3, 3, 3, 3]})
    assert parameters_of(network) == 31_172_384
    assert f"{counted(network, 128):.1f}" == "742.4"
    assert "742.4" in REASONS["nnunet"]


@pytest.mark.parametrize(
    ("settings", "gmac"),
    [
        ({}, "631.93"),
        ({"convolution": "standard"}, "954.83"),
        ({"kernel": 9}, "637.37"),
        ({"kernel": 11}, "645.86"),
        ({"kernel": 13}, "658.07"),
        ({"scaling": "mlp"}, "639.46"),
        # Only with the non-linearity between the pointwise layers kept: without it, too, this would be 631.69.
        ({"scaling": "none"}, "631.70"),
    ],
)
def test_the_ablations_by_the_papers_count(settings, gmac):
    with torch.device("meta"):
        assert f"{counted(build('uxnet', 1, 8, settings=settings)):.2f}" == gmac


class Pointwise(nn.Linear):
    """A linear layer over the channels, channels first."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_the_flops_of_the_uxnets_row_are_those_of_dense_linear_layers():
    with torch.device("meta"):
        network = build("uxnet", 1, 8, settings={"scaling": "mlp"})
        for stage in network.stages:
            for block in stage:
                scaling = block.channel_scaling
                scaling.expand, scaling.reduce = (Pointwise(c.in_channels, c.out_channels) for c in (scaling.expand, scaling.reduce))
    assert parameters_of(network) == 56_128_136
    assert f"{counted(network):.1f}" == "639.4"


def test_rapnets_printed_flops_are_a_tenth_of_one_phase():
    with torch.device("meta"):
        phase = build("rapnet", 1, 8)
    assert 9.5 < counted(phase) / float(TABLE_1["rapnet"].flops_g) < 10.5


def test_no_change_of_the_blocks_reaches_the_table_without_mlp():
    with torch.device("meta"):
        bare = build("uxnet", 1, 5, settings={"depths": [0, 0, 0, 0]})
    assert parameters_of(bare) == 52_487_669
    assert "52.5 M" in REASONS["no MLP"]


# ---- Table 3


@pytest.mark.parametrize("title", TABLE_3_COUNTED)
def test_table_3(changed, title):
    parameters, printed = TABLE_3_COUNTED[title]
    row = changed[title].to_dict()
    assert (row["parameters"], row["paper_parameters_m"], row["paper_flops_g"]) == (parameters, printed, None)
    assert (row["classes"], row["patch"]) == (5, [96, 96, 96])
    assert row["flops_agree"] is None


def test_which_counts_of_table_3_agree(changed):
    assert list(changed) == list(TABLE_3_COUNTED) == [title for _, title, _, _ in TABLE_3]
    assert [title for title, row in changed.items() if row.parameters_agree is False] == ["no MLP", "MLP"]
    assert [title for title, row in changed.items() if row.parameters_agree is None] == ["block of Eq. 1"]
    assert changed["MLP"].notes == ("The parameters are 0.31 % below the printed 56.3 M.", REASONS["MLP"])
    assert changed["no MLP"].notes == ("The parameters are 3.69 % above the printed 51.1 M.", REASONS["no MLP"])
    assert changed["kernel 9"].notes == (PARAMETERS_AGREE,)


def test_the_macs_of_table_3(changed):
    gmac = {title: f"{row.macs.true / 1e9:.4f}" for title, row in changed.items()}
    assert gmac["DCS"] == gmac["kernel 7"] == gmac["depthwise conv."] == "577.4035"
    assert gmac["MLP"] == "584.9349"
    assert gmac["SwinUNETR"] == "318.1425"
    # Larger kernels cost what their weights cost at every voxel of their grid.
    assert gmac["kernel 13"] == f"{577.403541504 + (13**3 - 7**3) * sum(2 * 48 * 2**s * (48 // 2**s) ** 3 for s in range(4)) / 1e9:.4f}"


def test_the_two_readings_of_the_block(changed):
    eq1 = changed["block of Eq. 1"]
    assert eq1.settings == {"block": "paper"}
    # A second layer norm (a weight and a bias a channel) in place of one layer scale, two blocks a stage.
    assert eq1.parameters - changed["DCS"].parameters == 2 * (48 + 96 + 192 + 384) == 1440
    assert "1,440 parameters more" in eq1.notes[0]
    assert "53.0 M" in eq1.notes[1]


# ---- anything else


def test_other_patches_classes_channels_and_sizes_claim_nothing():
    for row in survey(classes=3, in_channels=2, patch=(32, 48, 17), size="narrow"):
        assert (row.parameters_agree, row.flops_agree, row.compared) == (None, None, False)
        assert OTHER_THAN_TABLE_1 in row.notes
        assert not {BOTH_AGREE, PARAMETERS_AGREE, *REASONS.values()} & set(row.notes)
        assert row.macs.true > 0
        assert row.settings == {"size": "narrow"}
        if row.name == "rapnet":
            assert "coarse (2 -> 3 channels) and fine (3 -> 2)" in row.notes[0]
        if row.name == "segresnet":
            assert "no narrow setting" in row.notes[0]
        if row.name == "uxnet":
            assert row.parameters < 7e6
    for row in ablations(classes=8, patch=(32, 32, 32)):
        assert OTHER_THAN_TABLE_3 in row.notes
        assert not {PARAMETERS_AGREE, *REASONS.values()} & set(row.notes)


@pytest.mark.parametrize("change", [{"classes": 5}, {"in_channels": 2}, {"patch": (96, 96, 64)}])
def test_one_change_is_enough_to_compare_nothing(monkeypatch, change):
    monkeypatch.setattr("uxnet.paper.networks.NETWORKS", {name: NETWORKS[name] for name in ("unet", "uxnet")})
    assert not any(row.compared for row in survey(**change))


def test_the_patch_of_table_3_is_free_since_it_prints_parameters_only(changed):
    small = ablations(patch=(32, 32, 32))
    assert [row.parameters for row in small] == [row.parameters for row in changed.values()]
    assert [row.parameters_agree for row in small] == [row.parameters_agree for row in changed.values()]


def test_macs_grow_with_the_patch_and_position_embeddings_too(nine):
    large = {row.name: row for row in survey(patch=(96, 96, 192))}
    for name in ("unet", "segresnet", "rapnet", "nnunet", "uxnet"):
        assert large[name].macs.true == 2 * nine[name].macs.true
    for name in NETWORKS:
        tied = name in ("transbts", "unetr")
        assert (large[name].parameters > nine[name].parameters) == tied


@pytest.mark.parametrize("count", [survey, ablations])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"patch": (0, 96, 96)}, "patch: sides must be three whole numbers"),
        ({"patch": (96, 96)}, "patch: sides must be three whole numbers"),
        ({"patch": (96, 96, 10**20)}, "patch: sides must be three whole numbers"),
        ({"patch": (96, 96, 96.0)}, "patch: sides must be three whole numbers"),
        ({"classes": 0}, "classes: must be a whole number"),
        ({"in_channels": 10**20}, "in_channels: must be a whole number"),
        ({"size": "large"}, "size"),
    ],
)
def test_what_cannot_be(count, given, said):
    with pytest.raises(RecipeError if "size" in given else UsageError, match=said):
        count(**given)


def test_a_patch_that_a_network_refuses_is_named_with_the_network():
    with pytest.raises(RecipeError, match=r"patch: rapnet cannot be counted at 8x8x8: .*batch norm"):
        survey(patch=(8, 8, 8))


def test_the_callers_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    ablations(patch=(32, 32, 32), size="narrow")
    assert torch.equal(torch.get_rng_state(), before)


# ---- the page


def test_the_tables_of_the_page_are_what_is_counted(nine, changed):
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    for row in nine.values():
        printed = [
            f"{figure}{'' if agrees else '*'}"
            for figure, agrees in ((row.printed.parameters_m, row.parameters_agree), (row.printed.flops_g, row.flops_agree))
        ]
        cells = [row.title, f"`{row.name}`", f"{row.parameters:,}", f"{row.macs.true / 1e9:.2f}", f"{row.macs.paper / 1e9:.2f}", *printed]
        assert f"| {' | '.join(cells)} |" in page
    for row in changed.values():
        settings = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in row.settings.items())
        printed = f"{row.printed.parameters_m or '-'}{'*' if row.parameters_agree is False else ''}"
        cells = [row.title, settings, f"{row.parameters:,}", f"{row.macs.true / 1e9:.2f}", printed]
        assert f"| {' | '.join(cells)} |" in page
    for note in (*REASONS.values(), *(note for row in nine.values() for note in row.notes)):
        assert all(figure in page for figure in note.split() if figure.replace(".", "").isdigit() and "." in figure), note


def test_the_narrow_sizes_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    for row in survey(size="narrow"):
        assert f"`{row.name}` {row.parameters / 1e6:.1f}" in page
