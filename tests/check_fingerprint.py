"""Holds a file of reference values against a network, in float64:

    python tests/check_fingerprint.py uxnet_default_out5.json --network uxnet
    python tests/check_fingerprint.py swinunetr_fs48_out5.monai090.json --network swinunetr --set merging=old

(A file that states its version of MONAI, as "monai", needs no such setting.)
Prints the largest deviation, in units of the output's standard deviation; exits 1 above 1e-9, or if names or shapes do not fit.
`rapnet` is one phase's network. How such a file is made is written in tests/support/fingerprints.py.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from fingerprints import Fingerprint, Misfit, worst_deviation

from uxnet.errors import RecipeError
from uxnet.networks.build import NETWORKS

TOLERANCE = 1e-9


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--network", required=True, choices=list(NETWORKS))
    parser.add_argument("--classes", type=int, metavar="N", help="output channels; the file's by default")
    parser.add_argument("--in-channels", type=int, metavar="N", help="input channels; the file's by default")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("I", "J", "K"), help="that the network is built for; the file's by default")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the network")
    given = parser.parse_args(argv)
    try:
        fingerprint = Fingerprint.read(given.file)
        settings = {**told_by(fingerprint, given.network), **settings_of(given.set)}
        network = fingerprint.network(given.network, given.classes, given.in_channels, given.patch, settings)
        parameters = sum(p.numel() for p in network.parameters())
        worst = worst_deviation(fingerprint, network, given.network)
    except (Misfit, RecipeError, ValueError, OSError, KeyError) as error:
        print(f"{given.file}: {error}")
        return 1
    verdict = "equal" if worst < TOLERANCE else f"NOT equal (above {TOLERANCE:g})"
    print(f"{given.file}: {given.network}, {parameters:,} parameters, largest deviation {worst:.3g}: {verdict}")
    return 0 if worst < TOLERANCE else 1


def told_by(fingerprint, name):
    """What the file itself says of the settings: a SwinUNETR of MONAI before 1.5 merged patches the old way."""
    version = [int(part) for part in str(fingerprint.data.get("monai", "")).split(".")[:2] if part.isdigit()]
    return {"merging": "old"} if name == "swinunetr" and version and version < [1, 5] else {}


def settings_of(overrides):
    settings = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r}: write KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text  # a bare word
    return settings


if __name__ == "__main__":
    sys.exit(main())
