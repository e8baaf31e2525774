"""Learning from other models' answers beside the labels."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run

from uxnet.dataset.manifest import read_dataset
from uxnet.errors import CheckpointError, Preempted, RecipeError
from uxnet.events import Warn
from uxnet.labels import Label, Labels
from uxnet.model.file import cases_seen, read_model, read_weights, seen_by, write_model
from uxnet.networks.build import build
from uxnet.recipe import Network, recipe_to_toml, with_overrides
from uxnet.training.distil import teachers_from
from uxnet.training.engine import TrainingEngine
from uxnet.training.run import train


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return with_overrides(tiny_recipe, ["training.steps=4", "training.validate_every=4"])


def of_network(path, recipe, name):
    """A model of fresh weights of some network, prepared as the recipe says."""
    network, stage = Network(name, {"size": "narrow"}), recipe.stages[0]
    weights = build(name, 1, 3, stage.sampling.patch, network.settings).state_dict()
    write_model(
        path,
        [{key: value.numpy() for key, value in weights.items()}],
        recipe=replace(recipe, stages=(replace(stage, network=network),)),
        labels=Labels((Label("bright", 1), Label("dark", 2))),
        channels=["MRI"],
        provenance={},
    )
    return path


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, recipe, tiny_dataset):
    """Models of two networks: another 3D UX-Net, which was trained on every case, and nnU-Net's, which was trained on nothing."""
    folder = tmp_path_factory.mktemp("teachers")
    everyone = with_overrides(recipe, ["training.keep=last", "training.seed=5"])
    first = train(tiny_dataset, everyone, folder / "all", fold="all", device="cpu", cache=folder / "cache")
    return first, of_network(folder / "nnunet.uxnet", recipe, "nnunet")


@pytest.fixture
def go(tmp_path, tiny_dataset, recipe):
    """go(name, teachers, more settings) -> weights of a run of that name."""

    def of(name, taught=(), *settings, **more):
        model = train(
            tiny_dataset,
            with_overrides(recipe, settings),
            tmp_path / name,
            teachers=taught,
            device="cpu",
            cache=tmp_path / "cache",
            split=tmp_path / "split.json",
            **more,
        )
        return read_weights(read_model(model), 0)

    return of


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_teachers_change_what_is_learnt_and_the_model_names_them(go, teachers, tmp_path, capsys):
    alone, taught = go("alone"), go("taught", teachers)
    assert not same(alone, taught)
    # A share of nothing is as if nobody taught.
    assert same(go("deaf", teachers, "loss.taught=0"), alone)
    described = read_model(tmp_path / "taught" / "model.uxnet").provenance["teachers"]
    assert [teacher["model"] for teacher in described] == ["model.uxnet", "nnunet.uxnet"]
    assert run("info", tmp_path / "taught" / "model.uxnet") == 0
    assert "taught by" in capsys.readouterr().out
    assert "teachers" not in read_model(tmp_path / "alone" / "model.uxnet").provenance


def test_answers_are_the_mean_of_the_teachers_probabilities(teachers, recipe, tiny_dataset):
    engine = TrainingEngine("cpu", "float32")
    both = teachers_from(teachers, recipe, read_dataset(tiny_dataset), lambda _: None).on(engine)
    images = torch.randn(2, 1, 16, 16, 16)
    answers = both.answers(images, engine)
    with torch.no_grad():
        wanted = torch.stack([network(images).softmax(1) for network in both.networks]).mean(0)
    torch.testing.assert_close(answers, wanted)
    torch.testing.assert_close(answers.sum(1), torch.ones(2, 16, 16, 16))
    assert not any(parameter.requires_grad for network in both.networks for parameter in network.parameters())


def test_a_student_that_learns_from_teachers_alone_comes_to_answer_as_they_do(go, teachers, tmp_path, recipe, tiny_dataset):
    settings = ["loss.dice=0", "loss.taught=1", "training.steps=60", "training.validate_every=60", "training.ema=0.0"]
    go("student", teachers[:1], *settings)
    go("stranger", (), *settings)
    engine, manifest = TrainingEngine("cpu", "float32"), read_dataset(tiny_dataset)
    images = torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

    def said(path):
        return teachers_from([path], recipe, manifest, lambda _: None).on(engine).answers(images, engine)

    teacher, student, stranger = (said(p) for p in (teachers[0], *(tmp_path / n / "model.uxnet" for n in ("student", "stranger"))))
    assert (student - teacher).abs().mean() < 0.7 * (stranger - teacher).abs().mean()


def test_an_interrupted_run_goes_on_with_the_same_teachers_and_with_no_others(go, teachers, tmp_path):
    calls = iter([False, True])
    with pytest.raises(Preempted):
        go("run", teachers, stopping=lambda: next(calls))
    for others in ((), teachers[:1], teachers[::-1]):
        with pytest.raises(CheckpointError, match="another"):
            go("run", others, resume=True)
    renamed = tmp_path / "renamed.uxnet"
    shutil.copy(teachers[0], renamed)
    assert same(go("run", (renamed, teachers[1]), resume=True), go("whole", teachers))


def test_teachers_that_saw_what_a_fold_holds_out_are_warned_of(go, teachers, tmp_path):
    events = []
    go("seen", teachers, report=events.append)
    held_out = json.loads((tmp_path / "split.json").read_text())["folds"][0]["validation"]
    (warning,) = [event.message for event in events if isinstance(event, Warn) and "too good" in event.message]
    assert warning.startswith(f"model.uxnet was trained on {len(held_out)} of the {len(held_out)} cases that are held out here")
    events.clear()
    # The student itself was trained on none of them, and has learnt from one who was: so has whoever begins with it.
    fold = tmp_path / "seen" / "model.uxnet"
    (seen,) = seen_by([read_model(fold)])
    assert set(held_out) < set(seen["cases"])
    go("heir", init_from=fold, report=events.append)
    (warning,) = [event.message for event in events if isinstance(event, Warn) and "too good" in event.message]
    assert f"trained on {len(held_out)} of the {len(held_out)} cases" in warning
    assert cases_seen(read_model(tmp_path / "heir" / "model.uxnet"), seen["dataset"]) == set(seen["cases"])
    events.clear()
    go("innocent")
    go("unseen", (tmp_path / "innocent" / "model.uxnet",), report=events.append)
    assert not [event for event in events if isinstance(event, Warn) and "too good" in event.message]


def test_what_models_have_seen_is_told_by_dataset(teachers, recipe, tmp_path):
    model = read_model(of_network(tmp_path / "a.uxnet", recipe, "nnunet"))
    of = {"dataset": {"name": "A", "fingerprint": {"sha256": "1"}}, "split": {"train": ["x"], "validation": ["y"]}}
    more = [{"dataset": "B", "fingerprint": "2", "cases": ["x", "z"]}, {"dataset": "A", "fingerprint": "1", "cases": ["w"]}]
    model = replace(model, provenance=of | {"seen": more})
    assert seen_by([model, model]) == [{"dataset": "A", "fingerprint": "1", "cases": ["w", "x"]}, more[0]]
    assert (cases_seen(model, "A"), cases_seen(model, "renamed", "2"), cases_seen(model, "C", "3")) == ({"w", "x"}, {"x", "z"}, set())
    assert seen_by([replace(model, provenance={})]) == []
    assert cases_seen(replace(model, provenance={"split": {"train": ["x"]}}), None, None) == set()


def test_teachers_that_do_not_fit_are_refused(go, teachers, tmp_path, tiny_model, recipe):
    model = read_model(teachers[0])

    def changed(name, labels=model.labels, channels=model.channels, settings=()):
        recipe = with_overrides(model.recipe, settings)
        write_model(tmp_path / name, [read_weights(model, 0)], recipe=recipe, labels=labels, channels=channels, provenance={})
        return tmp_path / name

    for path, why in {
        changed("labels.uxnet", labels=Labels((Label("bright", 1), Label("grey", 2)))): "other labels than Tiny",
        changed("spacing.uxnet", settings=["prepare.spacing_mm=[2,2,2]"]): r"prepare\.spacing_mm is \(2\.0, 2\.0, 2\.0\) there and",
        tiny_model(channels=2): "takes the channels .*, .*, Tiny has ",
    }.items():
        with pytest.raises(RecipeError, match=f"{path.name}: .*{why}"):
            go("refused", (path,))
    with pytest.raises(RecipeError, match=r"unetr\.uxnet: its unetr takes no patches of 16x16x32 voxels"):
        go("refused", (of_network(tmp_path / "unetr.uxnet", recipe, "unetr"),), "sampling.patch=[16,16,32]")
    assert not (tmp_path / "refused").exists()


def test_the_command_line_takes_several(capsys, tmp_path, tiny_dataset, teachers, recipe):
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    taught = [word for path in teachers for word in ("--teacher", path)]
    assert run("train", tiny_dataset, "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "run", "--device", "cpu", *taught) == 0
    assert "taught by model.uxnet, nnunet.uxnet: 0.5 of the cross-entropy's target" in capsys.readouterr().err
    assert run("train", tiny_dataset, "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "x", "--teacher", tmp_path / "none.uxnet") == 1
    assert "none.uxnet" in capsys.readouterr().err
