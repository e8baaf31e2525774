"""`uxnet doctor`: what it prints and writes, and how it ends."""

import json

import pytest
import torch
from commands import run
from torch import nn

from uxnet.inference.engines import torch as engine_torch
from uxnet.networks.build import NETWORKS


class Wrong(nn.Conv3d):
    """Its weight gradient is a hundredth off."""

    def forward(self, x):
        weight = self.weight * 1.01 - (self.weight * 0.01).detach()
        return self._conv_forward(x, weight, self.bias)


@pytest.fixture
def tiny(monkeypatch):
    """Puts small networks in the place of a recipe's; gives the names of the stages' networks that were asked for."""
    asked = []

    def give(last):
        def stage_network(stage, channels, classes):
            asked.append((stage.network.name, dict(stage.network.settings)))
            return nn.Sequential(nn.Conv3d(stage.in_channels(channels), 2, 1), last(2, stage.out_channels(classes), 3, padding=1))

        monkeypatch.setattr(engine_torch, "stage_network", stage_network)
        return asked

    return give


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SMALL = ("--set", "sampling.patch=[6, 5, 4]", "--set", "training.precision=float32", "--device", "cpu", "--threads", "1", "--rounds", "1")


def test_a_right_machine(capsys, tmp_path, tiny):
    tiny(nn.Conv3d)
    assert run("doctor", "--recipe", "hippocampus", *SMALL, "--json", tmp_path / "doctor.json") == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    assert "2x1x6x5x4" in said
    assert "WRONG" not in said
    assert "the recipe names float32: right" in said
    told = json.loads((tmp_path / "doctor.json").read_text())
    assert (told["right"], told["quick"]) == (True, False)
    assert told["machine"]["threads"] == 1
    (network,) = told["networks"]
    assert network["image"] == [2, 1, 6, 5, 4]
    assert [layer["name"] for layer in network["ways"][0]["layers"]] == ["0", "1"]


def test_a_wrong_convolution_is_named_and_ends_with_1(capsys, tmp_path, tiny):
    tiny(Wrong)
    assert run("doctor", "--recipe", "hippocampus", *SMALL, "--json", tmp_path / "doctor.json") == 1
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("WRONG: 1: Wrong(2, 3")]
    assert lines
    assert all("weight" in line for line in lines)
    assert "which is wrong here" in said
    assert json.loads((tmp_path / "doctor.json").read_text())["right"] is False


def test_both_stages_of_a_recipe_in_the_parts_that_a_step_computes(capsys, tiny):
    tiny(nn.Conv3d)
    accumulate = ("--set", "training.batch=6", "--set", "training.accumulate=2")
    assert run("doctor", "--recipe", "hippocampus-rapnet", *SMALL, *accumulate, "--in-channels", "2", "--quick") == 0
    said = capsys.readouterr().out
    assert "stage 0 on 3x2x6x5x4" in said
    assert "stage 1 on 3x3x6x5x4" in said


def test_the_nine_narrow_networks_by_default(tiny):
    asked = tiny(nn.Conv3d)
    assert run("doctor", *SMALL) == 0
    assert asked == [(name, {"size": "narrow"}) for name in NETWORKS]


def test_networks_by_name(tiny):
    asked = tiny(nn.Conv3d)
    assert run("doctor", "--network", "unet", "uxnet", *SMALL) == 0
    assert run("doctor", "--recipe", "hippocampus", "--network", "unetr", *SMALL) == 0
    assert asked == [("unet", {"size": "narrow"}), ("uxnet", {"size": "narrow"}), ("unetr", {})]


def test_a_real_network_quickly(capsys):
    small = ("--set", "network.settings.widths=[2, 3, 4, 5]", "--set", "network.settings.hidden=8", "--set", "sampling.patch=[16, 16, 16]")
    assert run("doctor", "--network", "uxnet", *SMALL[2:], *small, "--quick") == 0
    assert "uxnet on 2x1x16x16x16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--recipe", "none"), 2),
        (("--network", "none"), 2),
        (("--device", "abacus"), 2),
        (("--rounds", "0"), 2),
        (("--precision", "float16", "--device", "cpu"), 1),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code):
    assert run("doctor", *arguments) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("uxnet doctor: ")
    assert "Traceback" not in "".join(said)
