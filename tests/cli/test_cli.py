import inspect as python_inspect
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from types import SimpleNamespace

import pytest
from commands import run, scan

import uxnet
from uxnet.cli import main as program_module
from uxnet.cli.main import VERBS, in_flags, program
from uxnet.cli.render import duration, reporting, shown
from uxnet.errors import Cancelled, printable
from uxnet.events import Note, Progress, Warn
from uxnet.model.file import read_model, read_weights, write_model

HOSTILE = "\x1b]0;title\x07\x9b31m\u202eé\r"
SHOWN = r"\u001b]0;title\u0007\u009b31m\u202eé\r"

# ---- help, versions, mistakes


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
def test_help_lists_the_verbs(capsys, arguments):
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    for verb, line in VERBS.items():
        assert f"  {verb}" in out
        assert line in out
    assert "exit codes" in out
    assert "Not a medical device" in out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"uxnet {uxnet.__version__}\n"


def test_a_wrong_verb(capsys):
    assert run("segment", "x.nii") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "'segment'" in said.err
    assert all(verb in said.err for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_every_argument(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "160")
    assert run(verb, "--help") == 0
    out = capsys.readouterr().out
    module = import_module(f"uxnet.cli.{verb}")
    for name, parameter in python_inspect.signature(module.run).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"--{name.replace('_', '-')}" in out, name
        described = module.run.__doc__.split("Args:")[1]
        assert f"        {name}: " in described, f"{name} is not described"
        # Its words reach the reader, wherever the lines are broken.
        words = described.split(f"        {name}: ")[1].split("\n        ")[0].split()[:4]
        assert " ".join(words)[:24] in " ".join(out.replace("│", " ").split()), name
    assert f"uxnet {verb}" in out
    assert "examples:" in out
    assert "Args:" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_arguments(capsys, verb):
    assert run(verb, "--no-such-argument", "1") == 2
    said = capsys.readouterr()
    assert (said.out, "--" in said.err) == ("", True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "{tmp}/none.uxnet", "{tmp}", "-o", "{tmp}/out"),
        ("predict", "{model}", "{tmp}/none.nii.gz", "-o", "{tmp}/out"),
        ("predict", "{model}", "{tmp}/scan.nii.gz", "-o", "{tmp}"),
        ("predict", "{model}", "{tmp}/scan.nii.gz", "-o", "{tmp}/not-a-model"),
        ("predict", "{model}", "{tmp}/scan.nii.gz", "-o", "{tmp}/out", "--device", "abacus"),
        ("predict", "{model}", "{tmp}/scan.nii.gz", "-o", "{tmp}/out", "--device", "cpu", "--precision", "float16"),
        ("info", "{tmp}/not-a-model"),
        ("info", "{tmp}"),
        ("inspect", "{tmp}/none"),
        ("evaluate", "{tmp}/none", "{tmp}/none"),
        ("train", "{tmp}/none", "--recipe", "hippocampus", "-o", "{tmp}/run"),
        ("train", "{tmp}", "--recipe", "no such recipe", "-o", "{tmp}/run"),
        ("train", "{tmp}", "--recipe", "hippocampus", "--set", "training.stepz=1", "-o", "{tmp}/run"),
        ("train", "{tmp}", "--recipe", "hippocampus", "--set", "training.steps", "-o", "{tmp}/run"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys, tmp_path, tiny_model, arguments):
    (tmp_path / "not-a-model").write_bytes(b"something else")
    scan(tmp_path / "scan.nii.gz")
    given = [a.format(tmp=tmp_path, model=tiny_model()) for a in arguments]
    assert run(*given) == (2 if {"--set", "no such recipe", "abacus"} & set(arguments) else 1)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    lines = [line for line in said.err.splitlines() if line.startswith("uxnet ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"uxnet {arguments[0]}: ")
    assert said.err.splitlines()[-1] == lines[0]
    assert not (tmp_path / "scan.nii").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "{tmp}/not-a-model", "{tmp}", "-o", "{tmp}/out"),
        ("demo", "--data", "{tmp}", "-o", "{tmp}/demo"),
        ("evaluate", "{tmp}", "{tmp}", "-o", "{tmp}/metrics.csv"),
        ("plan", "{tmp}", "-o", "{tmp}/recipe.toml", "--spacing", "1", "0", "1"),
        ("plan", "{tmp}", "-o", "{tmp}/recipe.toml", "--spacing", "1", "nan", "1"),
        ("plan", "{tmp}", "-o", "{tmp}/recipe.toml", "--hours", "nan"),
        ("train", "{tmp}", "--recipe", "hippocampus", "-o", "{tmp}/run", "--threads", "-1"),
    ],
)
def test_arguments_that_are_wrong_by_themselves_are_one_line_and_exit_code_2(capsys, tmp_path, arguments):
    (tmp_path / "not-a-model").write_bytes(b"something else")
    assert run(*[a.format(tmp=tmp_path) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"uxnet {arguments[0]}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("how", [KeyboardInterrupt, Cancelled])
def test_an_interruption(capsys, monkeypatch, tiny_model, how):
    def interrupted(*_):
        raise how

    monkeypatch.setattr("uxnet.model.file.read_model", interrupted)
    assert run("info", tiny_model()) == 130
    assert capsys.readouterr().err == "uxnet info: interrupted\n"


# ---- what is loaded when


@pytest.mark.parametrize("what", ["code", "defect"])
def test_one_of_several_processes_ends_at_once_where_torch_might_wait_forever(capsys, monkeypatch, what):
    ended = []
    monkeypatch.setattr(program_module, "main", lambda: 75 if what == "code" else int("x"))
    monkeypatch.setattr(program_module.os, "_exit", ended.append)
    with pytest.raises(SystemExit) as alone:
        program()
    assert alone.value.code == (75 if what == "code" else 1)
    assert not ended
    torch_distributed = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "torch.distributed", torch_distributed)
    with pytest.raises(SystemExit):
        program()
    assert ended == [alone.value.code]
    assert capsys.readouterr().err.count("ValueError: invalid literal") == (0 if what == "code" else 2)


def test_torch_is_loaded_only_where_something_is_computed(tiny_dataset, tiny_model, tmp_path):
    """One process: every help, then inspect, evaluate and info for real; and `import uxnet` loads next to nothing."""
    labels = tiny_dataset / "labelsTr"
    code = f"""
import sys
heavy = ("torch", "monai", "lightning_fabric", "numpy", "nibabel", "scipy", "matplotlib", "rich", "tyro")
import uxnet
assert not [m for m in heavy if m in sys.modules], "import uxnet"
dir(uxnet)
from uxnet.cli.main import VERBS, main
assert main(["--help"]) == 0
assert not [m for m in heavy if m in sys.modules], "uxnet --help"
def run(*arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    loaded = [m for m in ("torch", "monai", "lightning_fabric") if m in sys.modules]
    assert not loaded, (arguments, loaded)
    assert code in (0, None), (arguments, code)
for verb in VERBS:
    run(verb, "--help")
    loaded = [m for m in heavy if m in sys.modules and m not in ("rich", "tyro")]
    assert not loaded, (verb, loaded)
run("inspect", {str(tiny_dataset)!r}, "-o", {str(tmp_path / "i.json")!r})
run("evaluate", {str(labels)!r}, {str(labels)!r}, "-o", {str(tmp_path / "m.json")!r})
run("info", {str(tiny_model())!r})
from uxnet import Geometry, Labels, Volume, case_metrics, load_model, load_recipe, read_dataset, read_image, write_labels
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_surface():
    public = ["Geometry", "Labels", "Segmenter", "UXNet", "Volume", "__version__", "case_metrics", "load_model", "load_recipe"]
    public += ["read_dataset", "read_image", "read_labels", "train", "write_image", "write_labels"]
    assert sorted(uxnet.__all__) == sorted(public) == sorted(dir(uxnet))
    for name in public:
        thing = getattr(uxnet, name)
        assert name == "__version__" or thing.__doc__, name
        if name != "__version__":
            assert thing.__name__ == name
    # A module of the same name would take the place of what is named here as soon as it is imported.
    assert not {m.name for m in iter_modules(uxnet.__path__)} & set(public)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = uxnet.nothing


# ---- the verbs


def test_info(capsys, tiny_model):
    assert run("info", tiny_model()) == 0
    out = capsys.readouterr().out
    for text in ("tiny", "1 bright, 300 dark", "modality 0", "CC0", "intact"):
        assert text in out
    assert run("info", tiny_model(), "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"]["foreground"][1] == {"name": "dark", "value": 300}


def test_info_of_a_model_whose_weights_were_touched(capsys, tiny_model, tmp_path):
    blob = bytearray(tiny_model().read_bytes())
    blob[len(blob) // 2] ^= 1
    (tmp_path / "m.uxnet").write_bytes(blob)
    assert run("info", tmp_path / "m.uxnet") == 1
    assert "m.uxnet" in capsys.readouterr().err


def test_train(capsys, tmp_path, tiny_dataset, tiny_recipe):
    from uxnet.recipe import load_recipe, other_keys, recipe_to_toml, with_overrides

    recipe, out = tmp_path / "tiny.toml", tmp_path / "run [/b]"
    recipe.write_text(recipe_to_toml(tiny_recipe))
    overrides = ["training.steps=2", "sampling.patch=[8, 8, 8]"]
    command = ["train", tiny_dataset, "--recipe", recipe, "-o", out, "--workers", "1", "--set", overrides[0], "--set", overrides[1]]
    assert run(*command, "--fold", "2") == 0
    said = capsys.readouterr()
    assert "bright" in said.out
    assert "mean" in said.out
    assert f"written: {out / 'model.uxnet'}" in said.out
    assert other_keys(load_recipe(out / "recipe.toml"), with_overrides(tiny_recipe, overrides)) == ""
    assert run(*command, "--fold", "2") == 1
    assert "--resume" in capsys.readouterr().err
    assert run(*command, "--fold", "2", "--resume") == 0
    assert run(*command, "--fold", "1", "--resume") == 1


# ---- events on a terminal


def test_events_are_rendered(capsys):
    from rich.console import Console

    for terminal in (True, False):
        with reporting(Console(stderr=True, force_terminal=terminal, width=200)) as report:
            for n in range(3):
                report(Progress("training", n, 2, {"loss": 0.123456, "skipped": 1, "seconds_left": 125}))
            report(Note("a note of [bold] brackets [/nothing]"))
            report(Warn("a warning about file[1].nii [/]"))
            report(Warn("go on with threads=12"))
        err = capsys.readouterr().err
        assert "go on with --threads 12" in err  # as the command line writes what Python writes otherwise
        assert "brackets [/nothing]" in err
        assert "file[1].nii [/]" in err


def test_figures_in_words():
    assert shown({"loss": 0.123456, "best": 2, "seconds_left": 125}) == "loss 0.1235  best 2  2:05 min left"
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 7800)] == ["0 s", "59 s", "1:00 min", "59:59 min", "2:10 h"]


# ---- what is in other people's files


def test_what_steers_a_terminal_is_shown_as_json_writes_it():
    assert printable(HOSTILE) == SHOWN
    assert json.loads(f'"{SHOWN}"') == HOSTILE
    assert printable("plain\u00a0text,\n\tthe like") == "plain\u00a0text,\n\tthe like"


def test_nothing_out_of_a_file_steers_the_terminal(capsys, tmp_path, tiny_model):
    told = read_model(tiny_model())
    path = tmp_path / "hostile.uxnet"
    recipe = replace(told.recipe, name=HOSTILE)
    provenance = {"dataset": {"name": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    write_model(path, [read_weights(told)], recipe=recipe, labels=told.labels, channels=[HOSTILE], provenance=provenance)
    assert run("info", path) == 0
    assert "cases not known" in capsys.readouterr().out
    assert run("info", path, "--json") == 0
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {HOSTILE: 1}, "file_ending": HOSTILE}))
    assert run("inspect", tmp_path) == 1
    said = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(said.out + said.err)
    assert r"\u001b" in said.out


@pytest.mark.parametrize(
    ("library", "here"),
    [
        ("go on with resume=True, or wait", "go on with --resume, or wait"),
        ("with its weights (init_from)", "with its weights (--init-from)"),
        ("give device=cuda and threads=2", "give --device cuda and --threads 2"),
        ("add group_by='(a_.)', then", "add --group-by '(a_.)', then"),
        ("training.steps=5, runs/init_from/x", "training.steps=5, runs/init_from/x"),
    ],
)
def test_what_the_library_calls_an_argument_is_a_flag_here(library, here):
    assert in_flags(library) == here
