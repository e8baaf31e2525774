import hashlib
import json
import tomllib
from pathlib import Path

import pytest

from uxnet.errors import RecipeError, UsageError
from uxnet.recipe import (
    Augmentation,
    Intensity,
    Preparation,
    Recipe,
    complete_toml,
    load_recipe,
    other_keys,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
    recipe_to_toml,
    with_network,
    with_overrides,
)
from uxnet.recipe.identity import earlier_sha256, recipe_sha256


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_in_the_box_survives_toml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe_from_dict(tomllib.loads(recipe_to_toml(recipe))) == recipe
    (tmp_path / "mine.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "mine.toml") == recipe
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe
    assert with_overrides(recipe, []) == recipe


def test_a_recipe_in_the_box_is_found_whatever_lies_in_the_folder_one_stands_in(tmp_path, monkeypatch):
    """A dataset is likely to be called what its recipe is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hippocampus").mkdir()
    assert load_recipe("hippocampus").name == "hippocampus"


def test_everything_written_out_is_the_default():
    assert recipe_from_dict({"name": "x"}) == Recipe("x")
    assert recipe_from_dict(recipe_to_dict(Recipe("x"))) == Recipe("x")
    assert "steps = 40000" in recipe_to_toml(Recipe("x"))


def stage(**tables):
    return {"name": "x", "stages": [tables]}


def test_tables_become_values_of_the_right_kind():
    recipe = recipe_from_dict(
        stage(
            prepare={"spacing_mm": [1, 1, 2], "intensity": [{"clip": [-1, 1], "scale": "range"}, {}], "crop_above": 0},
            network={"name": "unet", "settings": {"widths": [1, 2]}},
            augment={"mirror": [True, False, False]},
        )
    )
    first = recipe.stages[0]
    intensity = (Intensity((-1.0, 1.0), "range"), Intensity())
    assert first.prepare == Preparation(spacing_mm=(1.0, 1.0, 2.0), intensity=intensity, crop_above=0.0)
    assert isinstance(first.prepare.spacing_mm[0], float)
    assert isinstance(first.prepare.crop_above, float)
    assert first.network.settings == {"widths": [1, 2]}
    assert first.augment == Augmentation(mirror=(True, False, False))
    assert recipe_from_dict(tomllib.loads(recipe_to_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({}, "name"),
        ({"name": 3}, "name"),
        ({"name": "x", "colour": 1}, "colour"),
        ({"name": "x", "schema": 99}, "schema"),
        ({"name": "x", "schema": "1"}, "schema"),
        ({"name": "x", "schema": True}, "schema"),
        ({"name": "x", "stages": []}, "stages"),
        ({"name": "x", "stages": [{}, {}]}, "stages[1].prior"),
        ({"name": "x", "stages": [{"prior": {}}]}, "stages[0].prior"),
        ({"name": "x", "stages": [{}, {"prior": {}}, {"prior": {}}]}, "stages"),
        ({"name": "x", "stages": [{}, {"prior": {"patches": 0}}]}, "stages[1].prior.patches"),
        ({"name": "x", "stages": {}}, "stages"),
        ({"name": "x", "stages": [1]}, "stages[0]"),
        (stage(trainign={}), "stages[0].trainign"),
        (stage(training=3), "stages[0].training"),
        (stage(training={"step": 3}), "stages[0].training.step"),
        (stage(training={"steps": 0}), "stages[0].training.steps"),
        (stage(training={"steps": 2.5}), "stages[0].training.steps"),
        (stage(training={"steps": True}), "stages[0].training.steps"),
        (stage(training={"steps": "many"}), "stages[0].training.steps"),
        (stage(training={"precision": "float8"}), "stages[0].training.precision"),
        (stage(training={"precision": ["float32"]}), "stages[0].training.precision"),
        (stage(training={"ema": 1.0}), "stages[0].training.ema"),
        (stage(training={"ema": float("nan")}), "stages[0].training.ema"),
        (stage(training={"absurd_gradient": float("inf")}), "stages[0].training.absurd_gradient"),
        (stage(training={"keep": "worst"}), "stages[0].training.keep"),
        (stage(prepare={"orientation": "RAX"}), "stages[0].prepare.orientation"),
        (stage(prepare={"orientation": "RLS"}), "stages[0].prepare.orientation"),
        (stage(prepare={"spacing_mm": [1, 1]}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"spacing_mm": [1, 1, 0]}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"spacing_mm": [1, 1, "1"]}), "stages[0].prepare.spacing_mm[2]"),
        (stage(prepare={"spacing_mm": 1}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"spacing_mm": "111"}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"intensity": []}), "stages[0].prepare.intensity"),
        (stage(prepare={"intensity": {}}), "stages[0].prepare.intensity"),
        (stage(prepare={"intensity": [{"scale": "log"}]}), "stages[0].prepare.intensity[0].scale"),
        (stage(prepare={"intensity": [{}, {"scale": "range"}]}), "stages[0].prepare.intensity[1].scale"),
        (stage(prepare={"intensity": [{"clip": [1, 1]}]}), "stages[0].prepare.intensity[0].clip"),
        (stage(prepare={"intensity": [{"clip": [2, 1]}]}), "stages[0].prepare.intensity[0].clip"),
        (stage(prepare={"intensity": [{"low": 60, "high": 40}]}), "stages[0].prepare.intensity[0].low"),
        (stage(prepare={"crop_above": "0"}), "stages[0].prepare.crop_above"),
        (stage(sampling={"patch": [96, 96]}), "stages[0].sampling.patch"),
        (stage(sampling={"patch": [96, 96, 0]}), "stages[0].sampling.patch"),
        (stage(sampling={"patch": [96, 96, 1.5]}), "stages[0].sampling.patch[2]"),
        (stage(sampling={"foreground": 1.1}), "stages[0].sampling.foreground"),
        (stage(sampling={"per_case": 0}), "stages[0].sampling.per_case"),
        (stage(sampling={"per_case": 2, "balance": "class"}), "stages[0].sampling.per_case"),
        (stage(augment={"intensity_offset": -0.1}), "stages[0].augment.intensity_offset"),
        (stage(augment={"noise": -1}), "stages[0].augment.noise"),
        (stage(augment={"scale": 1}), "stages[0].augment.scale"),
        (stage(augment={"mirror": [1, 0, 0]}), "stages[0].augment.mirror[0]"),
        (stage(loss={"dice": 0, "cross_entropy": 0}), "stages[0].loss.dice"),
        (stage(optimiser={"learning_rate": 0}), "stages[0].optimiser.learning_rate"),
        (stage(schedule={"kind": "linear"}), "stages[0].schedule.kind"),
        (stage(schedule={"factor": 1}), "stages[0].schedule.floor, factor"),
        (stage(inference={"overlap": 1}), "stages[0].inference.overlap"),
        (stage(inference={"overlap": -0.1}), "stages[0].inference.overlap"),
        (stage(inference={"patch": [8, 8]}), "stages[0].inference.patch"),
        (stage(inference={"batch": 0}), "stages[0].inference.batch"),
        (stage(network={"settings": [1]}), "stages[0].network.settings"),
        (stage(network={"name": 1}), "stages[0].network.name"),
        ({"name": "x", "stages": [{}, {"training": {"steps": -1}}]}, "stages[1].training.steps"),
        # What no machine computes, and numbers that are none.
        (stage(training={"steps": 10**400}), "stages[0].training.steps"),
        (stage(training={"steps": 2**63}), "stages[0].training.steps"),
        (stage(training={"batch": 2**31}), "stages[0].training.batch"),
        (stage(training={"hours": 1e308}), "stages[0].training.hours"),
        (stage(loss={"dice": 10**400}), "stages[0].loss.dice"),
        (stage(loss={"dice": float("1e400")}), "stages[0].loss.dice"),
        (stage(prepare={"spacing_mm": [1, 1, 1e-9]}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"spacing_mm": [1, 1, 1e9]}), "stages[0].prepare.spacing_mm"),
        (stage(prepare={"intensity": [{"clip": [-1e308, 1e308]}]}), "stages[0].prepare.intensity[0].clip"),
        (stage(prepare={"intensity": [{}] * 2000}), "stages[0].prepare.intensity"),
        (stage(sampling={"patch": [2**31] * 3}), "stages[0].sampling.patch"),
        (stage(augment={"blur": 1e9}), "stages[0].augment.blur"),
        (stage(inference={"patch": [4096] * 3}), "stages[0].inference.patch"),
        (stage(inference={"patch": [2048] * 3}), "stages[0].inference.patch"),
        (stage(inference={"batch": 2**31}), "stages[0].inference.batch"),
        (stage(inference={"overlap": 0.999999}), "stages[0].inference.overlap"),
        (stage(network={"settings": {"depths": [10**9, 1]}}), "stages[0].network.settings.depths"),
        (stage(network={"settings": {"depths": [1] * 2000}}), "stages[0].network.settings.depths"),
        (stage(network={"settings": {"depths": [[[[[[1]]]]]]}}), "stages[0].network.settings.depths"),
        (stage(network={"settings": {"drop_path": float("nan")}}), "stages[0].network.settings.drop_path"),
        (stage(network={"settings": {"block": "x" * 10**6}}), "stages[0].network.settings.block"),
        ({"name": "x", "stages": [{}, {"prior": {"patches": 2**31}}]}, "stages[1].prior.patches"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_keys_and_values_are_named(data, key):
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(data)
    assert str(caught.value).startswith(key)
    assert len(str(caught.value)) < 500


def test_an_unknown_recipe_lists_those_in_the_box(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_recipe("hipocampus")
    assert "'hipocampus'" in str(caught.value)
    assert all(name in str(caught.value) for name in recipe_names())
    with pytest.raises(RecipeError, match=r"nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


BROKEN = [b"name = ", b"\xff\xfe", b"name = 'x'\nname = 'y'", b"[[stages]]\ntraining = 1\n", b"x = 1"]
DIGITS = [b"name = 'x'\nschema = " + b"9" * 5000, b"name = 'x'\nschema = 0x" + b"f" * 5000, b"name = 'x'\na = " + b"[" * 5000 + b"]" * 5000]


@pytest.mark.parametrize("content", BROKEN + DIGITS, ids=range(8))
def test_a_damaged_recipe_file_is_named(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        load_recipe(tmp_path / "mine.toml")


TWO = recipe_from_dict({"name": "x", "stages": [{}, {"prior": {}}]})


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("training.steps=500", lambda s: s.training.steps, 500),
        (" training.steps = 500 ", lambda s: s.training.steps, 500),
        ("training.steps=1_000", lambda s: s.training.steps, 1000),
        ("optimiser.learning_rate=1", lambda s: s.optimiser.learning_rate, 1.0),
        ("optimiser.learning_rate=3e-4", lambda s: s.optimiser.learning_rate, 3e-4),
        ("training.precision=bfloat16", lambda s: s.training.precision, "bfloat16"),
        ('training.precision="bfloat16"', lambda s: s.training.precision, "bfloat16"),
        ("augment.anisotropic=true", lambda s: s.augment.anisotropic, True),
        ("sampling.patch=[8, 16, 24]", lambda s: s.sampling.patch, (8, 16, 24)),
        ("prepare.crop_above=-900", lambda s: s.prepare.crop_above, -900.0),
        ("prepare.spacing_mm=[]", lambda s: s.prepare.spacing_mm, ()),
        ('prepare.intensity=[{clip=[0, 1], scale="range"}]', lambda s: s.prepare.intensity, (Intensity((0.0, 1.0), "range"),)),
        ("network.settings.widths=[1, 2]", lambda s: s.network.settings, {"widths": [1, 2]}),
        ("network.settings.deep.er=1", lambda s: s.network.settings, {"deep": {"er": 1}}),
        ("network.name=swin", lambda s: s.network.name, "swin"),
    ],
)
def test_overrides_reach_every_stage(override, get, value):
    changed = with_overrides(TWO, [override])
    assert [get(s) for s in changed.stages] == [value, value]
    assert recipe_from_dict({"name": "x", "stages": [{}, {"prior": {}}]}) == TWO  # and not the recipe they were made from


@pytest.mark.parametrize(
    "override", ["training.seed=-1", f"training.seed={2**63}", "optimiser.betas=[0.9, 1.0]", "optimiser.betas=[-0.1, 0.9]"]
)
def test_what_numpy_or_torch_would_stumble_over_is_refused(override):
    key = override.split("=")[0].replace(".", r"\.")
    with pytest.raises(UsageError, match=rf"stages\[0\]\.{key}: must"):
        with_overrides(TWO, [override])


def test_overrides_reach_one_stage_or_the_recipe_and_the_last_one_counts():
    overrides = ["stages.1.training.steps=7", "name=y", "description=short and sweet", "training.seed=1", "training.seed=2"]
    changed = with_overrides(TWO, overrides)
    assert [s.training.steps for s in changed.stages] == [TWO.stages[0].training.steps, 7]
    assert [s.training.seed for s in changed.stages] == [2, 2]
    assert (changed.name, changed.description) == ("y", "short and sweet")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.steps", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("", "KEY=VALUE"),
        ("training.step=3", "training.step: unknown key"),
        ("trainign.steps=3", "trainign: unknown key"),
        ("steps=3", "steps: unknown key"),
        ("training.steps=many", "training.steps: expected a whole number"),
        ("training.steps=0", "training.steps: must be at least 1"),
        ("training.steps=", "training.steps: expected a whole number"),
        ("training=3", "training: expected a table"),
        ("training.steps.more=3", "steps has no keys"),
        ("stages.2.training.steps=3", "N from 0 to 1"),
        ("stages.x.training.steps=3", "N from 0 to 1"),
        ("stages.-1.training.steps=3", "N from 0 to 1"),
        ("stages=3", "N from 0 to 1"),
        ("stages.0=3", "N from 0 to 1"),
        ("schema=2", "schema"),
    ],
)
def test_wrong_overrides_are_named(override, says):
    with pytest.raises(UsageError) as caught:
        with_overrides(TWO, [override])
    assert says in str(caught.value)


def test_another_network_leaves_the_settings_of_the_first_behind():
    recipe = with_overrides(TWO, ["network.settings.widths=[1, 2]", "training.steps=9"])
    changed = with_network(recipe, "unet")
    assert [(s.network.name, dict(s.network.settings), s.training.steps) for s in changed.stages] == [("unet", {}, 9)] * 2
    assert changed.stages[1].prior == TWO.stages[1].prior
    with pytest.raises(UsageError, match="no network 'vnet'"):
        with_network(recipe, "vnet")


def test_a_guided_stage_sees_a_mask_more_and_answers_for_one_structure():
    first, second = TWO.stages
    assert (first.in_channels(3), first.out_channels(7)) == (3, 7)
    assert (second.in_channels(3), second.out_channels(7)) == (4, 2)


def test_a_recipe_that_is_nested_too_deeply_is_refused_by_name(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text('name = "a"\n[[stages]]\n[stages.network.settings]\nwidths = ' + "[" * 5000 + "]" * 5000)
    with pytest.raises(RecipeError, match=r"deep\.toml: it is nested too deeply"):
        load_recipe(path)


def test_a_file_with_the_name_of_a_recipe_in_the_box_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hippocampus").write_text('name = "mine"')
    with pytest.raises(RecipeError, match=r"hippocampus: a recipe in the box, and a file here; write \./hippocampus for the file"):
        load_recipe("hippocampus")
    assert load_recipe("./hippocampus").name == "mine"
    (tmp_path / "hippocampus").unlink()
    (tmp_path / "hippocampus").mkdir()
    assert load_recipe("hippocampus").name == "hippocampus"


def test_a_recipe_is_known_by_its_values_whatever_writes_its_file(monkeypatch):
    from uxnet.recipe import toml

    def made(learning_rate, settings):
        stage = {"network": {"name": "uxnet", "settings": settings}, "optimiser": {"learning_rate": learning_rate}}
        return recipe_from_dict({"name": "x", "stages": [stage]})

    recipe = made(1, {"kernel": 3, "drop_path": 0.0, "widths": [4, 8]})
    known = recipe_sha256(recipe)
    assert recipe_sha256(made(1.0, {"widths": [4, 8], "drop_path": 0, "kernel": 3})) == known
    assert recipe_sha256(recipe_from_dict(tomllib.loads(recipe_to_toml(recipe)))) == known
    assert recipe_sha256(made(1.5, recipe.stages[0].network.settings)) != known
    assert recipe_sha256(made(1, {**recipe.stages[0].network.settings, "widths": [8, 4]})) != known
    monkeypatch.setattr(toml.tomli_w, "dumps", lambda data: "otherwise")
    assert recipe_sha256(recipe) == known


def test_runs_and_records_know_their_recipe_by_a_hash_that_later_keys_do_not_change():
    """What was begun before there was a key goes on: records name the recipe of their folder by the hash of its text."""
    results = Path(__file__).parents[1].parent / "results"
    found = 0
    for record in results.rglob("records/*.json"):
        recipe = next(folder / "recipe.toml" for folder in record.parents if (folder / "recipe.toml").exists())
        text = recipe_to_toml(load_recipe(recipe))
        known = json.loads(record.read_text())
        # Records of versions before canonical JSON have no other hash than that of the text.
        assert hashlib.sha256(text.encode()).hexdigest() == known.get("recipe_toml_sha256", known["recipe_sha256"]), record
        assert earlier_sha256(load_recipe(recipe)) == hashlib.sha256(text.encode()).hexdigest()
        found += 1
    assert found > 40
    stage = {"network": {"name": "uxnet"}, "loss": {"taught": 0.25}}
    assert "taught = 0.25" in recipe_to_toml(recipe_from_dict({"name": "x", "stages": [stage]}))
    assert recipe_from_dict({"name": "x", "stages": [{"network": {"name": "uxnet"}}]}).stages[0].loss.taught == 0.5


def test_a_recipe_with_everything_written_out_means_the_same(tmp_path):
    for name in ("hippocampus", "hippocampus-localiser", "hippocampus-rapnet"):
        recipe, file = load_recipe(name), tmp_path / f"{name}-all.toml"
        file.write_text(complete_toml(recipe))
        assert other_keys(recipe, load_recipe(file)) == ""
        assert "taught = 0.5" in file.read_text()
    narrow = load_recipe(tmp_path / "hippocampus-localiser-all.toml").stages[0].network.settings
    assert "size" not in narrow
    assert narrow == {"widths": [12, 24, 48, 96, 192], "residual_units": 2, "dropout": 0.0}
    other = with_overrides(load_recipe(tmp_path / "hippocampus-all.toml"), ["network.settings.kernel=9"])
    assert other_keys(load_recipe("hippocampus"), other) == "stages.0.network.settings.kernel is 7 there and 9 here"


def test_a_size_that_would_change_nothing_is_refused(tmp_path):
    (tmp_path / "all.toml").write_text(complete_toml(with_network(load_recipe("hippocampus"), "unet")))
    for size in ("narrow", "paper"):
        assert with_overrides(with_network(TWO, "unet"), [f"network.settings.size={size}"]).stages[0].network.settings == {"size": size}
    with pytest.raises(UsageError, match=r"network\.settings\.size: changes nothing, since the recipe gives widths"):
        with_overrides(load_recipe(tmp_path / "all.toml"), ["network.settings.size=narrow"])
    with pytest.raises(UsageError, match=r"network\.settings\.size: changes nothing"):
        with_overrides(load_recipe("hippocampus"), ["network.settings.size=paper"])
