"""Shared fixtures. Real data is third-party and lives outside the repository: `pytest tests --data DIR` says where."""

import os
import sys
from pathlib import Path

import pytest

# Before torch is imported, here and in the processes that tests start: networks as small as the tests' gain little from threads, and on
# a busy machine lose most of their time waiting for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption("--data", default=None, help="folder with the real datasets (hippocampus, abdomen_ct, ...)")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory):
    """Compiled engines go where tests may write, here and in the processes that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    """A command that sets the number of threads sets it for its process: the next test starts with the common one."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder of real datasets; tests that need it are skipped where it is not given."""
    given = request.config.getoption("--data")
    if not given or not Path(given).is_dir():
        pytest.skip("real data not given: run pytest --data DIR")
    return Path(given)


@pytest.fixture(scope="session")
def tiny_recipe():
    """A recipe that trains in a second, with everything on that has a state or is random."""
    from uxnet.recipe import recipe_from_dict

    network = {"widths": [4, 8], "depths": [1, 1], "hidden": 8, "kernel": 3, "layer_scale": 0.5, "drop_path": 0.3, "deep_supervision": True}
    stage = {
        "network": {"name": "uxnet", "settings": network},
        "prepare": {"intensity": [{"scale": "zscore"}]},
        "sampling": {"patch": [16, 16, 16]},
        "augment": {"rotation_deg": [10, 10, 10], "noise": 0.1, "mirror": [False, True, False]},
        "optimiser": {"learning_rate": 1e-2},
        "training": {"steps": 8, "batch": 2, "validate_every": 4, "checkpoint_every": 2, "precision": "float32", "ema": 0.8},
        "inference": {"overlap": 0.0},
    }
    return recipe_from_dict({"name": "tiny", "stages": [stage]})


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A sound dataset of ten small cases: a bright ball (1) and a dark one (2) in noise. Not to be changed."""
    import json

    import nibabel as nib
    import numpy as np

    root = tmp_path_factory.mktemp("tiny") / "data"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"case_{n:02d}" for n in range(10)]
    for name in names:
        shape = tuple(int(n) for n in rng.integers(14, 19, 3))
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
        labels = np.zeros(shape, np.uint8)
        labels[np.linalg.norm(grid - [5, 5, 6], axis=-1) < 3.2] = 1
        labels[np.linalg.norm(grid - [9, 9, 8], axis=-1) < 2.4] = 2
        image = rng.normal(0, 1, shape) + np.array([0, 3, -3])[labels]
        affine = np.diag([-1.0, 1, 1.5, 1])
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / f"{name}.nii.gz")
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    described = {"name": "Tiny", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "bright", "2": "dark"}, "training": cases}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_recipe):
    """Writes a model of untrained weights: tiny_model(channels=1) gives its path."""
    import torch

    from uxnet.labels import Label, Labels
    from uxnet.model.file import write_model
    from uxnet.networks.build import build

    folder = tmp_path_factory.mktemp("models")

    def write(channels: int = 1) -> Path:
        path = folder / f"{channels}.uxnet"
        labels = Labels((Label("bright", 1), Label("dark", 300)))
        torch.manual_seed(0)
        network = build("uxnet", channels, labels.out_channels, settings=tiny_recipe.stages[0].network.settings)
        weights = {key: value.numpy() for key, value in network.state_dict().items()}
        provenance = {"dataset": {"name": "Tiny", "licence": "CC0"}, "split": {"train": ["a"], "validation": ["b"]}}
        names = [f"modality {n}" for n in range(channels)]
        write_model(path, [weights], recipe=tiny_recipe, labels=labels, channels=names, provenance=provenance)
        return path

    return write
