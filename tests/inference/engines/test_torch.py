"""A model's network with its weights."""

import json
import zipfile

import numpy as np
import pytest

from uxnet.errors import DeviceError, MemoryLimitError, ModelError
from uxnet.inference.engines.choose import load_engines
from uxnet.inference.engines.torch import TorchEngine, trained_network
from uxnet.inference.settings import Settings
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, read_weights, write_model
from uxnet.networks.build import build
from uxnet.recipe import recipe_from_dict


def with_settings(source, path, **settings):
    """The model of a file, its recipe asking for another network."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            blob = old.read(name)
            if name == "model.json":
                description = json.loads(blob)
                description["recipe"]["stages"][0]["network"]["settings"] |= settings
                blob = json.dumps(description).encode()
            new.writestr(name, blob)
    return read_model(path)


def test_a_network_has_the_weights_of_its_model(tiny_model):
    model = read_model(tiny_model())
    network = trained_network(model, 0)
    for key, array in read_weights(model).items():
        np.testing.assert_array_equal(network.state_dict()[key].numpy(), array)


@pytest.mark.parametrize(
    "settings",
    [{"widths": [40_000, 60_000]}, {"widths": [2**40, 2**41]}, {"depths": [10**9, 1]}, {"depths": [60_000, 60_000]}, {"kernel": 65_535}],
    ids=str,
)
def test_a_network_that_is_larger_than_its_weights_takes_no_memory(tmp_path, tiny_model, settings):
    with pytest.raises(ModelError, match=r"a\.uxnet: .*(weights do not fit|is more than any network has)"):
        trained_network(with_settings(tiny_model(), tmp_path / "a.uxnet", **settings), 0)


def test_windows_that_levels_pad_to_what_no_memory_holds_are_refused(tmp_path):
    """Each level halves the grid, so that many of them pad a small window to a large one, however small their weights are."""
    settings = {"widths": [1] * 14, "depths": [0] * 14, "hidden": 1}
    stage = {"network": {"name": "uxnet", "settings": settings}, "sampling": {"patch": [16, 16, 16]}}
    network = build("uxnet", 1, 2, 16, settings)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    recipe = recipe_from_dict({"name": "deep", "stages": [stage]})
    write_model(tmp_path / "a.uxnet", [weights], recipe=recipe, labels=Labels((Label("x", 1),)), channels=["a"], provenance={})
    with pytest.raises(ModelError, match=r"a\.uxnet: .*inference\.patch, padded to whole strides: .*too large"):
        trained_network(read_model(tmp_path / "a.uxnet"), 0)


def test_windows_that_the_machine_has_no_memory_for_are_refused_before_the_network_is_built(tmp_path, tiny_model):
    model = read_model(tiny_model())
    with pytest.raises(MemoryLimitError, match=r"uxnet: one of its windows, \[16, 16, 16\], takes at least .* within the limit"):
        load_engines(model, Settings(device="cpu", engine="torch", memory_limit=1))


def test_what_a_network_cannot_compute_is_no_traceback():
    engine = TorchEngine(build("unetr", 1, 2, 16, {"size": "narrow"}), "cpu")
    with pytest.raises(DeviceError, match=r"cpu could not compute a window of 16x16x32 voxels .*takes no other"):
        engine.infer(np.zeros((1, 1, 16, 16, 32), np.float32))
