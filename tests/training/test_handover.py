import pytest
import torch

from uxnet.model import read_model, read_weights
from uxnet.networks.build import build
from uxnet.recipe import Network, Sampling, Stage
from uxnet.training.handover import without_supervision
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
