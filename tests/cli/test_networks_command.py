"""`uxnet networks`: what it prints, and how it ends."""

import json
import subprocess
import sys

import pytest

from uxnet.cli.main import main
from uxnet.networks.build import NETWORKS

FIELDS = {
    "name": str,
    "title": str,
    "settings": dict,
    "in_channels": int,
    "classes": int,
    "patch": list,
    "parameters": int,
    "gmac": float,
    "paper_convention_gmac": float,
    "paper_parameters_m": (float, type(None)),
    "paper_flops_g": (float, type(None)),
    "parameters_agree": (bool, type(None)),
    "flops_agree": (bool, type(None)),
    "note": str,
}


def run(*arguments):
    """The exit code of a command line, however it comes."""
    try:
        return main(["networks", *map(str, arguments)])
    except SystemExit as end:
        return end.code


def objects(capsys, *arguments):
    """What --json prints: a list and nothing else."""
    assert run(*arguments, "--json") == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    for row in rows:
        assert list(row) == list(FIELDS)
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items()), row
    return rows


def test_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run() == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    lines = {line.split()[-6]: line.split()[-5:] for line in out.splitlines() if len(line.split()) > 6 and line.split()[-6] in NETWORKS}
    assert list(lines) == list(NETWORKS)
    assert lines["rapnet"] == ["38,145,130", "1649.69", "2007.08", "38.2*", "101.2*"]
    assert lines["swinunetr"] == ["62,187,002", "318.27", "328.35", "62.2", "328.4"]
    assert lines["uxnet"] == ["53,006,216", "577.53", "631.93", "53.0", "639.4*"]
    words = " ".join(out.split())
    for said in ("SegResNet, nnFormer, SwinUNETR: Both figures are as printed.", "mixes two networks", "* differs", "8 classes"):
        assert said in words


def test_the_table_of_ablations(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--ablations", "--patch", 32, 32, 32) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    for title, settings, parameters in (("kernel 13", "kernel = 13", "55,675,829"), ("MLP", 'scaling = "mlp"', "56,127,989")):
        assert any(line.strip().startswith(title) and settings in line and parameters in line for line in out.splitlines())
    assert "5 classes" in " ".join(out.split())


def test_json(capsys):
    rows = objects(capsys)
    assert [row["name"] for row in rows] == list(NETWORKS)
    by_name = {row["name"]: row for row in rows}
    assert by_name["rapnet"]["parameters"] == 38_145_130
    assert f"{by_name['uxnet']['gmac']:.4f}" == "577.5309"
    assert f"{by_name['uxnet']['paper_convention_gmac']:.4f}" == "631.9296"
    assert by_name["uxnet"]["paper_flops_g"] == 639.4
    assert by_name["segresnet"]["note"] == "Both figures are as printed."


def test_json_of_ablations(capsys):
    rows = objects(capsys, "--ablations", "--patch", 32, 32, 32)
    assert len(rows) == 11
    assert {row["name"] for row in rows} == {"swinunetr", "uxnet"}
    assert {row["classes"] for row in rows} == {5}
    assert rows[1]["settings"] == {"convolution": "standard"}
    assert all(row["paper_flops_g"] is None for row in rows)


def test_other_patches_classes_and_channels(capsys):
    rows = objects(capsys, "--patch", 17, 33, 48, "--classes", 3, "--in-channels", 2, "--size", "narrow")
    assert all((row["patch"], row["classes"], row["in_channels"]) == ([17, 33, 48], 3, 2) for row in rows)
    assert all(row["flops_agree"] is None and "not compared" in row["note"] for row in rows)
    assert objects(capsys, "--ablations", "--patch", 16, 16, 16, "--classes", 8)[0]["classes"] == 8


def test_the_largest_patch_still_fits_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--patch", 1024, 1024, 1024) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--patch", 0, 96, 96), 2, "patch: sides must be three whole numbers from 1 to 4096, not [0, 96, 96]"),
        (("--patch", 96, 96, 10**20), 2, "patch: sides"),
        (("--patch", -1, 96, 96), 2, "patch: sides"),
        (("--classes", 0), 2, "classes: must be a whole number from 1"),
        (("--in-channels", 0), 2, "in_channels: must be a whole number from 1"),
        (("--ablations", "--patch", 0, 96, 96), 2, "patch: sides"),
        (("--patch", 8, 8, 8), 1, "patch: rapnet cannot be counted at 8x8x8"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_errors_are_one_line_and_a_code(capsys, arguments, code, said, more):
    assert run(*arguments, *more) == code
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err.startswith("uxnet networks: ")
    assert said in got.err
    assert got.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--patch", 96, 96), ("--patch", "a", 96, 96), ("--size", "large"), ("--classes", "few"), ("unet",)])
def test_wrong_arguments(capsys, arguments):
    assert run(*arguments) == 2
    got = capsys.readouterr()
    assert got.out == ""
    assert "Traceback" not in got.err


def test_json_is_all_that_a_process_writes_to_its_output():
    command = [sys.executable, "-m", "uxnet", "networks", "--json", "--patch", "32", "32", "32", "--size", "narrow"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 9
