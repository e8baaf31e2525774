import nibabel as nib
import numpy as np
import pytest
from grids import FEW, ORIENTATIONS, SPACINGS, affines, centres, shapes
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from uxnet.geometry import Box, Geometry, axis_order, full_box, resampled


@FEW
@given(affines(turn=90))
def test_orientation_and_spacing_are_nibabels(affine):
    geometry = Geometry((3, 4, 5), affine)
    assert geometry.orientation == "".join(nib.aff2axcodes(affine))
    np.testing.assert_allclose(geometry.spacing_mm, voxel_sizes(affine), rtol=1e-12)


@FEW
@given(affines(), shapes(), ORIENTATIONS)
def test_reorientation_is_nibabels(affine, shape, orientation):
    geometry, array = Geometry(shape, affine), np.arange(np.prod(shape)).reshape(shape)
    order = axis_order(geometry, orientation)
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    np.testing.assert_array_equal(order.apply(array), apply_orientation(array, transform))
    np.testing.assert_allclose(order.apply_to(geometry).affine_ras, affine @ inv_ornt_aff(transform, shape), atol=1e-9)
    assert order.apply_to(geometry).orientation == orientation
    assert np.shares_memory(order.apply(array), array)


@FEW
@given(affines(), shapes(), ORIENTATIONS)
def test_reorientation_moves_no_voxel_in_space_and_is_undone_exactly(affine, shape, orientation):
    geometry = Geometry(shape, affine)
    order = axis_order(geometry, orientation)
    where = np.moveaxis(geometry.to_mm(centres(geometry)).reshape(*shape, 3), -1, 0)  # the position as a three-channel image
    turned = order.apply_to(geometry)
    np.testing.assert_allclose(np.moveaxis(order.apply(where), 0, -1).reshape(-1, 3), turned.to_mm(centres(turned)), atol=1e-8)
    back = axis_order(turned, geometry.orientation)
    np.testing.assert_array_equal(back.apply(order.apply(where)), where)
    assert back.apply_to(turned).same_grid(geometry, 1e-8)


@FEW
@given(affines(), shapes(), st.tuples(*[st.floats(-50, 50)] * 3))
def test_indices_to_millimetres_and_back(affine, shape, ijk):
    geometry = Geometry(shape, affine)
    np.testing.assert_allclose(geometry.to_mm(ijk), apply_affine(affine, ijk), atol=1e-9)
    np.testing.assert_allclose(geometry.to_ijk(geometry.to_mm(ijk)), ijk, atol=1e-8)


@FEW
@given(affines(), shapes(1, 40), SPACINGS)
def test_a_resampled_grid_keeps_axes_centre_and_field_of_view(affine, shape, spacing):
    old = Geometry(shape, affine)
    new = resampled(old, spacing)
    np.testing.assert_allclose(new.spacing_mm, spacing, rtol=1e-6)
    assert new.orientation == old.orientation
    middle = [g.to_mm((np.array(g.shape) - 1) / 2) for g in (old, new)]
    np.testing.assert_allclose(*middle, atol=1e-8)
    lengths = [np.array(g.shape) * g.spacing_mm for g in (old, new)]
    # Never more than half a voxel longer or shorter, unless the field of view is thinner than half a voxel.
    assert (np.abs(lengths[0] - lengths[1]) <= np.maximum(0.5, 1 - lengths[0] / spacing) * spacing + 1e-6).all()


@FEW
@given(affines(), shapes(1, 40))
def test_a_grid_of_its_own_spacing_is_left_exactly_alone(affine, shape):
    geometry = Geometry(shape, affine)
    assert resampled(geometry, geometry.spacing_mm) == geometry
    assert resampled(geometry, np.float32(geometry.spacing_mm).astype(float)) == geometry  # what a header can hold of it


@FEW
@given(affines(), st.data())
def test_a_box_shows_the_same_voxels(affine, data):
    geometry = Geometry((7, 8, 9), affine)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in geometry.shape)
    box = Box(start, tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, geometry.shape, strict=True)))
    inside = box.apply_to(geometry)
    ijk = centres(inside)
    assert inside.shape == np.zeros(geometry.shape)[box.slices].shape
    np.testing.assert_allclose(inside.to_mm(ijk), geometry.to_mm(ijk + start), atol=1e-8)
    assert full_box(geometry.shape).apply_to(geometry).same_grid(geometry, 1e-9)


def test_a_voxels_volume_is_right_for_sheared_grids():
    sheared = np.diag((2.0, 3.0, 4.0, 1.0))
    sheared[0, 1] = 1.5
    assert Geometry((2, 2, 2), sheared).voxel_mm3 == pytest.approx(24)
    assert Geometry((2, 2, 2), np.diag((-1.0, 1, 1, 1))).voxel_mm3 == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_no_size_of_voxel_is_called_singular(scale):
    assert Geometry((2, 2, 2), np.diag((scale, scale, scale, 1))).spacing_mm == pytest.approx((scale,) * 3)


def changed(**entries):
    affine = np.eye(4)
    for at, value in entries.items():
        affine[int(at[1]), int(at[2])] = value
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "says"),
    [
        ((2, 2), np.eye(4), "three sides"),
        ((2, 2, 0), np.eye(4), "three sides"),
        ((2, 2, -1), np.eye(4), "three sides"),
        ((2, 2, 2), np.eye(3), "4 x 4"),
        ((2, 2, 2), changed(a03=np.nan), "finite"),
        ((2, 2, 2), changed(a00=np.inf), "finite"),
        ((2, 2, 2), changed(a30=0.1), "last row"),
        ((2, 2, 2), changed(a22=0), "no inverse"),
        ((2, 2, 2), changed(a01=1, a11=0), "no inverse"),
        ((2, 2, 2), np.zeros((4, 4)), "last row"),
    ],
)
def test_what_is_no_grid_is_refused(shape, affine, says):
    with pytest.raises(ValueError, match=says):
        Geometry(shape, affine)


@pytest.mark.parametrize("orientation", ["", "RA", "RAX", "RLS", "RASS", "ras"])
def test_what_is_no_orientation_is_refused(orientation):
    with pytest.raises(ValueError, match="no orientation"):
        axis_order(Geometry((2, 2, 2), np.eye(4)), orientation)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, np.nan), (1, 1, np.inf)])
def test_what_is_no_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        resampled(Geometry((2, 2, 2), np.eye(4)), spacing)


def test_a_geometry_is_a_value():
    affine = np.eye(4)
    geometry, other = Geometry((2, 3, 4), affine), Geometry((2, 3, 4), np.eye(4))
    affine[0, 0] = 9  # the caller's array is the caller's
    assert geometry == other
    assert hash(geometry) == hash(other)
    assert geometry != Geometry((2, 3, 5), np.eye(4))
    assert geometry != Geometry((2, 3, 4), affine)
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine_ras[0, 0] = 9


def test_grids_are_the_same_to_a_hundredth_of_a_millimetre_at_their_corners():
    geometry = Geometry((100, 100, 100), np.eye(4))
    assert geometry.same_grid(Geometry((100, 100, 100), changed(a03=0.009)))
    assert not geometry.same_grid(Geometry((100, 100, 100), changed(a03=0.02)))
    assert not geometry.same_grid(Geometry((100, 100, 100), changed(a00=1.001)))  # 0.1 mm at the far corner
    assert not geometry.same_grid(Geometry((100, 100, 99), np.eye(4)))
    # Of a microscope's voxels, hundredths of a millimetre are several.
    small = np.diag([0.004, 0.004, 0.004, 1])
    for shift, same in ((0.008, False), (0.0003, True)):
        shifted = small.copy()
        shifted[0, 3] = shift
        assert Geometry((10, 10, 10), small).same_grid(Geometry((10, 10, 10), shifted)) is same
