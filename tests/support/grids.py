"""Random grids for Hypothesis: what scanners and converters produce, and a little worse."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

# The same examples on every machine and every run.
FEW = settings(max_examples=30, deadline=None, derandomize=True)

ORIENTATIONS = st.permutations(["RL", "AP", "SI"]).flatmap(lambda axes: st.tuples(*map(st.sampled_from, axes))).map("".join)
SPACINGS = st.tuples(*[st.floats(0.4, 5)] * 3)


@st.composite
def affines(draw, spacings=SPACINGS, turn=40.0):
    """Axes in any order and direction, turned by up to `turn` degrees about each, of any spacing, anywhere in the room."""
    axes = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
    angles = draw(st.tuples(*[st.floats(-turn, turn)] * 3))
    spacing = draw(spacings)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ (np.eye(3)[:, axes] * signs) * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-400, 400)] * 3))
    return affine


def shapes(low=1, high=12):
    """Three sides."""
    return st.tuples(*[st.integers(low, high)] * 3)


def centres(geometry):
    """The indices of all voxels of a grid, (n, 3), in the order of its array."""
    return np.stack(np.indices(geometry.shape), axis=-1).reshape(-1, 3)
