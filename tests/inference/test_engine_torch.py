"""A model's network with its weights."""

import json
import zipfile

import numpy as np
import pytest

from uxnet.errors import ModelError
from uxnet.inference.engine_torch import trained_network
from uxnet.model import read_model, read_weights


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


@pytest.mark.parametrize("widths", [[40_000, 80_000], [2**40, 2**41]])
def test_a_network_that_is_larger_than_its_weights_takes_no_memory(tmp_path, tiny_model, widths):
    model = with_settings(tiny_model(), tmp_path / "a.uxnet", widths=widths)
    with pytest.raises(ModelError, match=r"a\.uxnet: the (weights do not fit|network that its recipe asks for cannot be built)"):
        trained_network(model, 0)
