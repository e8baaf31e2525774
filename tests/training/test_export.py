import nibabel as nib
import numpy as np
import pytest
import torch

from uxnet.errors import CheckpointError, RecipeError
from uxnet.inference.domain import limits_of
from uxnet.model.file import read_model, read_weights
from uxnet.networks.build import build
from uxnet.recipe import Network, Sampling, Stage, with_overrides
from uxnet.training.export import without_supervision
from uxnet.training.run import train


@pytest.mark.parametrize("name", ["uxnet", "nnunet", "nnformer"])
def test_the_model_has_no_heads_for_deep_supervision(name):
    """And gives the same logits: those heads are for training alone."""
    stage = Stage(Network(name, {"size": "narrow", "deep_supervision": True}), sampling=Sampling((32, 32, 32)))
    torch.manual_seed(0)
    network = build(name, 2, 4, 32, stage.network.settings)
    bare, weights = without_supervision(stage, network.state_dict(), 2, 4)
    smaller = build(name, 2, 4, 32, bare.network.settings)
    smaller.load_state_dict(weights)
    assert len(weights) < len(network.state_dict())
    image = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(smaller.eval()(image), network.eval()(image))
        assert isinstance(network.train()(image), list)
        assert not isinstance(smaller.train()(image), list)
    # A network that has none stays as it is.
    again, same = without_supervision(bare, weights, 2, 4)
    assert again is bare
    assert same.keys() == weights.keys()


def test_it_is_dropped_where_it_is_on_by_default():
    stage = Stage(Network("nnunet", {"size": "narrow"}), sampling=Sampling((32, 32, 32)))
    bare, weights = without_supervision(stage, build("nnunet", 1, 3, 32, {"size": "narrow"}).state_dict(), 1, 3)
    assert bare.network.settings == {"size": "narrow", "deep_supervision": False}
    assert [key for key in weights if key.startswith("heads.")] == ["heads.0.weight"]


def test_a_run_trains_with_them_and_hands_over_without(tiny_recipe, tiny_dataset, tmp_path):
    model = read_model(train(tiny_dataset, tiny_recipe, tmp_path / "run", device="cpu"))
    assert model.recipe.stages[0].network.settings["deep_supervision"] is False
    assert not [key for key in read_weights(model) if "supervision" in key]
    # Another run begins with it without a warning about what is only for training.
    events = []
    train(tiny_dataset, tiny_recipe, tmp_path / "next", init_from=model.path, device="cpu", report=events.append)
    assert not [e for e in events if "other settings" in getattr(e, "message", "")]


def test_all_cases_train_and_none_validates(tiny_recipe, tiny_dataset, tmp_path):
    events, run = [], tmp_path / "run"
    model = read_model(train(tiny_dataset, tiny_recipe, run, fold="all", device="cpu", report=events.append))
    provenance = model.provenance
    assert provenance["split"] == {"fold": "all", "train": [f"case_{n:02d}" for n in range(10)], "validation": [], "test": []}
    assert (provenance["training"]["step"], provenance["training"]["steps"]) == (8, 8)  # of keep = "best", too, the last
    assert provenance["validation"] == {}
    assert len(provenance["train_label_maps"]) == 10  # by which its cases are known under other names
    # What it was trained on: scans unlike it will be warned of.
    sides = [sorted(np.multiply(nib.load(path).shape, (1, 1, 1.5))) for path in (tiny_dataset / "imagesTr").iterdir()]
    limits = limits_of(model)
    np.testing.assert_allclose(limits.domain.sides_mm, np.transpose([np.min(sides, 0), np.max(sides, 0)]))
    assert limits.domain.spacing_mm == (1.0, 1.5)
    assert limits.domain.hounsfield == (False,)
    assert any("nothing here says how good" in getattr(e, "message", "") for e in events)
    assert not (run / "split.json").exists()
    assert (run / "curves.png").exists()
    with pytest.raises(CheckpointError, match="another"):
        train(tiny_dataset, tiny_recipe, run, fold=0, resume=True, device="cpu")


@pytest.mark.parametrize("asks", ["schedule.kind=plateau", "training.stop_after=3"])
def test_what_asks_validations_is_refused_where_there_are_none(tiny_recipe, tiny_dataset, tmp_path, asks):
    with pytest.raises(RecipeError, match=asks.partition("=")[0]):
        train(tiny_dataset, with_overrides(tiny_recipe, [asks]), tmp_path / "run", fold="all", device="cpu")
    assert not (tmp_path / "run").exists()
