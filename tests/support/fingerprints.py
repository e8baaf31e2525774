"""Reference fingerprints: what a network gives for weights and inputs that are functions of their names and shapes.

A weight's name is hashed (CRC-32) to seed numpy's frozen generator, which gives z of the weight's shape. Running variances become
1 + |z| / 10; biases, running means and position embeddings z / 10; layer scales ("gamma") and everything else of at most one axis
1 + z / 10; other weights z over the root of the number of inputs to one output. Rounded to float32. Integers are left as the network
has them. Inputs are uniform on 0..1, float32. Outputs are computed in float64: value[n] is the output at flat C-order index[n].
"""

import hashlib
import json
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from uxnet.networks.build import architecture, build
from uxnet.networks.weights import rename


def seeded_weight(name, shape):
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))  # a generator that numpy has frozen
    kind = name.split(".")[-1]
    if kind == "running_var":
        weight = 1 + 0.1 * np.abs(z)
    elif kind in ("bias", "running_mean") or "position" in kind:
        weight = 0.1 * z
    elif kind == "gamma" or z.ndim < 2:
        weight = 1 + 0.1 * z
    else:
        weight = z / math.sqrt(math.prod(shape[1:]))
    return weight.astype(np.float32)


def seeded_image(shape, seed=20230501):
    values = np.random.RandomState(seed).random_sample(tuple(shape))
    return torch.from_numpy(values.astype(np.float32)).double()


def without_trailing_ones(shape):
    """A linear layer and a 1x1x1 convolution are the same thing, and their weights are seeded alike."""
    shape = list(shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return shape


class Misfit(Exception):
    """The file's names or shapes are not the network's."""


@dataclass
class Fingerprint:
    """A file of reference values."""

    data: dict

    @classmethod
    def read(cls, path):
        return cls(json.loads(path.read_text(encoding="utf-8")))

    @property
    def cases(self):
        return self.data["cases"]

    @property
    def shapes(self):
        """Name -> shape of every floating-point weight."""
        return {key: shape for key, shape, kind in self.data["state_dict"] if kind.startswith("float")}

    def network(self, name, classes=None, in_channels=None, patch=None, settings=None):
        """The network of that name, of the file's channels, classes and patch unless given."""
        given, gave = self.cases[0]["input"]["shape"], self.cases[0]["output_float64"]["shape"]
        return build(name, in_channels or given[1], classes or gave[1], patch or given[2:], settings or {})

    def names(self, network, name):
        """Our name -> the reference's, by the first key map that fits; weights that the file may lack are left out.

        Raises Misfit if none does, or weights of the reference have no place.
        """
        entry, problems = architecture(name), []
        ours = {key: weight for key, weight in network.state_dict().items() if weight.is_floating_point()}
        for key_map in entry.key_maps:
            found, wrong = {}, []
            for key, weight in ours.items():
                try:
                    theirs = rename(key, key_map)
                except KeyError:
                    theirs = None
                if theirs in self.shapes:
                    found[key] = theirs
                    if without_trailing_ones(weight.shape) != without_trailing_ones(self.shapes[theirs]):
                        wrong.append(f"{key} {tuple(weight.shape)} is {theirs} {tuple(self.shapes[theirs])} there")
                elif not any(re.match(pattern, key) for pattern in entry.absent):
                    wrong.append(f"{key} is not there" + (f" (as {theirs})" if theirs else ""))
            parameters = sum(p.numel() for key, p in network.named_parameters() if key in found)
            if not wrong and parameters == self.data.get("n_params", parameters):
                return found
            problems.append(wrong or [f"{parameters:,} parameters, {self.data['n_params']:,} there"])
        best = min(problems, key=len)
        raise Misfit(f"{len(best)} of {len(ours)} weights do not fit; " + "; ".join(best[:5]))

    def fill(self, network, name):
        """The network in float64 with the reference's weights; and those, by the reference's names."""
        weights = {}
        with torch.no_grad():
            state = network.state_dict()
            for key, theirs in self.names(network, name).items():
                weights[theirs] = seeded_weight(theirs, self.shapes[theirs])
                state[key].copy_(torch.from_numpy(weights[theirs]).reshape(state[key].shape))
        return network.double().eval(), weights

    def sha256(self, weights):
        """Of the weights in the file's order."""
        digest = hashlib.sha256()
        for key in self.shapes:
            digest.update(weights[key].astype("<f4").tobytes())
        return digest.hexdigest()


def deviation(logits, case):
    """The largest distance of logits from a case's figures, in units of the case's standard deviation."""
    want = case["output_float64"]
    if list(logits.shape) != want["shape"]:
        raise Misfit(f"the output has the shape {list(logits.shape)}, {want['shape']} there")
    flat = logits.detach().double().contiguous().reshape(-1).numpy()
    got = {"mean": flat.mean(), "std": flat.std(), "absmax": np.abs(flat).max(), "value": flat[want["index"]]}
    return max(float(np.abs(np.asarray(got[key]) - np.asarray(want[key])).max()) for key in got if key in want) / want["std"]


def worst_deviation(fingerprint, network, name, cases=None):
    """The largest deviation over the cases, in float64."""
    filled, _ = fingerprint.fill(network, name)
    worst = 0.0
    for case in fingerprint.cases if cases is None else cases:
        with torch.inference_mode():
            worst = max(worst, deviation(filled(seeded_image(case["input"]["shape"], case["input"]["seed"])), case))
    return worst
