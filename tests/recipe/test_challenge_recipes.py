"""The recipes of the paper's three datasets, in both readings, against the table in docs/fidelity.md."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from challenge_folders import FOUR_ORGANS, amos, copied, feta, flare
from tiny_datasets import write_json

from uxnet.recipe import load_recipe, recipe_from_dict, recipe_to_dict, with_overrides

FIDELITY = Path(__file__).parents[2] / "docs" / "fidelity.md"
TASKS = ("feta2021", "flare2021", "amos2022", "amos2022-finetune")
NEVER = object()


def flat(data, prefix=""):
    """The keys of nested tables as paths."""
    found = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def settings(name):
    (stage,) = recipe_to_dict(load_recipe(name))["stages"]
    return flat(stage)


def rows():
    """(recipe, key) -> (paper's value, scripts' value), as the document has them."""
    section = FIDELITY.read_text(encoding="utf-8").split("## Where the recipes differ")[1].split("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if len(cells) != 5 or cells[0] == "recipe":
            continue
        tasks = TASKS if cells[0] == "all" else tuple(re.findall(r"`([^`]+)`", cells[0]))
        assert set(tasks) <= set(TASKS), line
        assert cells[4], line
        key = cells[1].strip("`")
        for task in tasks:
            assert (task, key) not in found, line
            found[task, key] = tuple(through_settings(key, cell.strip("`")) for cell in cells[2:4])
    return found


def through_settings(key, text):
    """A value as a recipe has it once it is read: defaults of tables filled in."""
    value = tomllib.loads(f"value = {text}")["value"]
    table, rest = key.split(".", 1)
    return settings_of({table: nested(rest, value)})[key]


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def settings_of(stage):
    return flat(recipe_to_dict(recipe_from_dict({"name": "x", "stages": [stage]}))["stages"][0])


@pytest.mark.parametrize("task", TASKS)
def test_the_readings_differ_where_the_document_says_and_nowhere_else(task):
    paper, released = settings(f"{task}-paper"), settings(f"{task}-released")
    differ = {key: (paper.get(key, NEVER), released.get(key, NEVER)) for key in {*paper, *released}}
    differ = {key: values for key, values in differ.items() if values[0] != values[1]}
    assert differ == {key: values for (t, key), values in rows().items() if t == task}


@pytest.mark.parametrize(("task", "reading"), list(itertools.product(TASKS, ("paper", "released"))))
def test_every_value_of_a_recipe_has_its_source_in_a_comment(task, reading):
    """A comment stands above each value, or above the group of values that it begins; the network's name is nobody's."""
    import uxnet

    lines = (Path(uxnet.__file__).parent / "recipes" / f"{task}-{reading}.toml").read_text(encoding="utf-8").splitlines()
    assert all(len(line) <= 140 for line in lines)
    explained = False
    for line in lines[lines.index("[[stages]]") + 1 :]:
        if line.startswith("#"):
            explained = True
            assert re.search(r"code|ours|T4|A\.1|Eq\. 1|4\.1|able 1", line), line
        elif not line or line.startswith("["):
            explained = False
        elif line != 'name = "uxnet"':
            assert explained, line


def test_the_numbers_of_the_papers_table_4():
    for task in TASKS:
        fine = task.endswith("finetune")
        (stage,) = load_recipe(f"{task}-paper").stages
        assert (stage.training.steps, stage.training.batch, stage.sampling.per_case) == (40_000, 1 if fine else 2, 1 if fine else 2)
        optimiser = stage.optimiser
        assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.betas, optimiser.eps) == (1e-4, 0.08, (0.9, 0.999), 1e-8)
        assert (stage.schedule.kind, stage.schedule.factor, stage.schedule.patience) == ("constant" if fine else "plateau", 0.9, 10)
        assert (stage.sampling.patch, stage.augment.intensity_offset, stage.augment.scale) == ((96, 96, 96), 0.1, 0.1)
        assert stage.network.settings["hidden"] == 768


def test_fine_tuning_and_training_from_scratch_see_the_same_scans():
    for reading in ("paper", "released"):
        (direct,), (fine,) = (load_recipe(f"{task}-{reading}").stages for task in ("amos2022", "amos2022-finetune"))
        assert (direct.prepare, direct.network, direct.augment) == (fine.prepare, fine.network, fine.augment)


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_two_steps_of_every_recipe_on_real_scans_filed_as_the_challenges_file_theirs(tmp_path, data_dir, reading):
    """Nearly everything is as the recipe says; patch, spacing and widths are small, and the numbers mean nothing."""
    from uxnet.events import Note
    from uxnet.model.file import read_model
    from uxnet.training.run import train

    feta(tmp_path / "feta", [f"sub-{n:03d}" for n in range(1, 13)], put=copied(data_dir / "fetal_brain_sb"))
    flare(tmp_path / "flare", (0, 1, 2), put=copied(data_dir / "abdomen_ct", FOUR_ORGANS))
    amos(tmp_path / "amos", (1, 4, 5), put=copied(data_dir / "abdomen_ct"))
    for name, cases in (("flare", [f"train_{n:03d}" for n in range(3)]), ("amos", [f"amos_{n:04d}" for n in (1, 4, 5)])):
        write_json(tmp_path / f"{name}.json", {"folds": [{"train": cases[:2], "validation": cases[2:]}]})
    small = ["sampling.patch=[32, 32, 32]", "network.settings.widths=[4, 8, 16, 32]", "network.settings.hidden=32"]
    small += ["prepare.spacing_mm=[6, 6, 6]", "training.steps=2", "training.validate_every=2"]
    heard = []
    for task in TASKS:
        name = task.split("2")[0]
        recipe = with_overrides(load_recipe(f"{task}-{reading}"), small)
        given = {"protocol": "5x80-10-10"} if name == "feta" else {"split": tmp_path / f"{name}.json"}
        if task.endswith("finetune"):
            given["init_from"] = tmp_path / "runs" / "flare2021" / "model.uxnet"
        model = read_model(train(tmp_path / name, recipe, tmp_path / "runs" / task, device="cpu", report=heard.append, **given))
        assert len(model.labels.classes) == {"feta": 7, "flare": 4, "amos": 15}[name]
    assert any("fresh (other labels: head.weight, head.bias)" in event.message for event in heard if isinstance(event, Note))
