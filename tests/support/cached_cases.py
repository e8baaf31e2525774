"""Cases of noise to be cached, and how what became of them is seen."""

import nibabel as nib
import numpy as np

from uxnet.dataset.cache import open_case
from uxnet.dataset.manifest import Case
from uxnet.dataset.patches import read_patch
from uxnet.labels import Label, Labels
from uxnet.recipe import Intensity, Preparation

LABELS = Labels((Label("a", 3), Label("b", 1), Label("never there", 77)), ignore=9)
PLAIN = Preparation(intensity=(Intensity(scale="none"),))


def scan(path, array, affine=None):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag((-1, -1, 2, 1)) if affine is None else affine), path)
    return path


def make_case(root, name, seed=0, shape=(6, 5, 4)):
    rng = np.random.default_rng(seed)
    image = scan(root / "images" / f"{name}.nii.gz", rng.normal(size=shape).astype(np.float32))
    labels = scan(root / "labels" / f"{name}.nii.gz", rng.choice(np.array([0, 1, 3, 9], np.uint8), shape))
    return Case(name, (image,), labels, name)


def state(folder):
    """Every file of prepared data with the time it was last made and its number on disk, which a replaced file does not keep."""
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.glob("*.case")}


def remade(before, after):
    return {name.split(".")[0] for name in after if after[name] != before.get(name)}


def file_of(folder, name, kind="case"):
    """The one file of a case in a cache."""
    (path,) = folder.glob(f"{name}.*.{kind}")
    return path


def opened(folder, name):
    """The one case of that name in a cache."""
    return open_case(folder, file_of(folder, name, "json").stem, name)


def whole(cached):
    """The prepared image and label indices of a cached case."""
    return read_patch(cached, (0, 0, 0), cached.indices.shape)


def image_of(case):
    """What a case's first image file holds, as the plain preparation turns it."""
    return np.asarray(nib.load(case.images[0]).dataobj)[::-1, ::-1]
