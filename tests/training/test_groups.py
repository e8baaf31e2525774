import pytest
import torch
from torch import nn

from uxnet.networks.build import NETWORKS, architecture, build
from uxnet.training.groups import freeze, layer_depths, layer_names, parameter_groups, resting


def narrow(name):
    torch.manual_seed(0)
    return build(name, 1, 3, patch=32, settings={"size": "narrow"})


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_counted_in_the_order_in_which_they_compute(name):
    """Of every network: what sees the image is the first layer, what gives the logits the last, and there are many between them."""
    network = narrow(name)
    depths = layer_depths(network, 1, (32, 32, 32))
    assert depths.keys() == {key for key, _ in network.named_parameters()}
    last = max(depths.values())
    assert last >= 10
    assert set(depths.values()) == set(range(last + 1))
    seen = []
    # Modules that compute with a kernel or a matrix, in the order in which they are called; those of a layer go together.
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
            module.register_forward_pre_hook(lambda _m, _a, key=key: seen.append(depths[f"{key}.weight"]))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 1, 32, 32, 32))
    assert seen[0] == 0
    assert seen[-1] == last
    firsts = list(dict.fromkeys(seen))
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_trained_weight_is_in_one_group(name):
    network = narrow(name)
    freeze(network, [], architecture(name).untrained)
    for decay, depths in ((1.0, None), (0.8, layer_depths(network, 1, (32, 32, 32)))):
        groups = parameter_groups(network, decay, depths)
        ids = [id(p) for group in groups for p in group["params"]]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(p) for p in network.parameters() if p.requires_grad}
        assert groups[-1]["factor"] == 1.0
        assert [g["factor"] for g in groups] == sorted(g["factor"] for g in groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_trained_gets_a_gradient(name):
    """Several processes would wait for the gradient of a weight that has none."""
    network = narrow(name)
    freeze(network, [], architecture(name).untrained)
    out = network.train()(torch.randn(2, 1, 32, 32, 32))
    sum(level.square().mean() for level in (out if isinstance(out, list) else [out])).backward()
    assert [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_beginning_is_whole_parts_of_a_name():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))})
    freeze(network, ["a", "b.1"])
    assert {key for key, p in network.named_parameters() if not p.requires_grad} == {"a.weight", "a.bias", "b.1.weight", "b.1.bias"}
    assert {type(module).__name__ for module in resting(network)} == {"Linear", "BatchNorm1d"}
    assert layer_names(network) == ["a", "ab", "b.0", "b.1"]
