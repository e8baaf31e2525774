"""The demo from end to end, made small: what it writes, that it says what it is, and that it can be repeated."""

import json

from uxnet.demo.run import run_demo
from uxnet.recipe import load_recipe, with_overrides

SMALL = [
    "network.settings.widths=[4, 8]",
    "network.settings.depths=[1, 1]",
    "network.settings.hidden=8",
    "sampling.patch=[32, 32, 16]",
    "prepare.spacing_mm=[8, 8, 8]",
    "training.steps=4",
    "training.validate_every=4",
]


def test_a_recipe_of_two_stages_has_curves_for_each(tmp_path, tiny_dataset):
    overrides = ["network.settings.width=2", "sampling.patch=[16, 16, 16]", "stages.1.sampling.patch=[8, 8, 8]", "stages.1.prior.patches=2"]
    recipe = load_recipe("hippocampus-rapnet")
    recipe = with_overrides(recipe, [*overrides, "prepare.spacing_mm=[1, 1, 1.5]", "training.steps=20", "training.validate_every=20"])
    page = run_demo(tmp_path / "demo", data=tiny_dataset, recipe=recipe).page.read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "A RAP-Net trained on 8 cases for 20 and 20 steps" in page


def test_the_demo_trains_scores_and_shows_what_it_did(tmp_path):
    recipe = with_overrides(load_recipe("phantom"), SMALL)
    demo = run_demo(tmp_path, recipe=recipe, cases=5)
    page = demo.page.read_text()
    assert "phantoms" in page
    assert "nothing about how well it segments patients" in page
    assert page.count("data:image/png;base64,") == 2
    assert demo.intensity is not None
    assert demo.intensity.overall().dice.interval.mean < 0.6
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n_failures"] == 0
    assert metrics["n_cases"] == len(demo.network.cases) == 1
    trained = json.loads((tmp_path / "run" / "split.json").read_text())["folds"][0]["train"]
    assert not set(trained) & {case.name for case in demo.network.cases}

    before = (tmp_path / "run" / "model.uxnet").read_bytes()
    again = run_demo(tmp_path, recipe=recipe, cases=5)
    assert again.network.overall().dice.interval.mean == demo.network.overall().dice.interval.mean
    # Nothing was trained anew: the same weights come out (the file also holds the time that it took).
    assert len((tmp_path / "run" / "model.uxnet").read_bytes()) - len(before) in range(-8, 9)
