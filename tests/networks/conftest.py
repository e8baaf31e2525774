"""The seeding of the reference fingerprints: every weight is a function of its name and shape, every input of its shape.

A weight's name is hashed (CRC-32) to seed numpy's frozen generator, which gives z of the weight's shape. Biases become z / 10; layer
scales and everything else of one axis 1 + z / 10; other weights z over the root of the number of inputs to one output. Rounded to
float32. Inputs are uniform on 0..1, float32.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from uxnet.networks.uxnet import RELEASED_KEYS
from uxnet.networks.weights import rename


def seeded_weight(name, shape):
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))  # a generator that numpy has frozen
    kind = name.split(".")[-1]
    if kind == "bias":
        weight = z * 0.1
    elif kind == "gamma" or z.ndim < 2:
        weight = 1 + 0.1 * z
    else:
        weight = z / math.sqrt(math.prod(shape[1:]))
    return weight.astype(np.float32)


class Reference:
    """What a test holds a network against."""

    fingerprints = json.loads((Path(__file__).parent / "fingerprints.json").read_text())["networks"]

    @staticmethod
    def key(name):
        """Our parameter name as the released network calls it."""
        return rename(name, RELEASED_KEYS)

    @staticmethod
    def seeded(network):
        """The network in float64 with the reference's weights; and their sha256 in the order of the released names."""
        weights = {}
        with torch.no_grad():
            for name, weight in network.state_dict().items():
                weights[Reference.key(name)] = filled = seeded_weight(Reference.key(name), weight.shape)
                weight.copy_(torch.from_numpy(filled))
        return network.double().eval(), weights

    @staticmethod
    def sha256(weights, order):
        digest = hashlib.sha256()
        for name in order:
            digest.update(weights[name].astype("<f4").tobytes())
        return digest.hexdigest()

    @staticmethod
    def image(shape):
        values = np.random.RandomState(20230501).random_sample(tuple(shape))
        return torch.from_numpy(values.astype(np.float32)).double()

    @staticmethod
    def hold(logits, case):
        """Asserts that logits are those of a case, to 1e-9 of their spread."""
        flat = logits.double().contiguous().reshape(-1).numpy()
        assert abs(flat.mean() - case["mean"]) < 1e-9
        assert abs(flat.std() - case["std"]) < 1e-9
        assert np.abs(flat[case["index"]] - np.array(case["value"])).max() / case["std"] < 1e-9


@pytest.fixture(scope="session")
def reference():
    return Reference
