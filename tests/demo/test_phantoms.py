"""Phantoms: the same bytes every time, anatomy the right way round, grids of every kind."""

import json

import numpy as np
import pytest

from uxnet.demo.phantoms import phantom, phantom_labels, write_phantoms
from uxnet.errors import DatasetError
from uxnet.io import read_image, read_labels
from uxnet.labels import labels_from_dataset_json, labels_from_dict

INDICES = range(1, 9)


@pytest.fixture(scope="module")
def series():
    return {index: phantom(0, index) for index in INDICES}


def _centre_mm(truth, name):
    voxels = np.argwhere(phantom_labels().mask(truth.array[0], name))
    return truth.geometry.to_mm(voxels).mean(axis=0)


def test_the_same_numbers_give_the_same_bytes(series):
    image, truth = phantom(0, 3)
    assert image.array.tobytes() == series[3][0].array.tobytes()
    assert truth.array.tobytes() == series[3][1].array.tobytes()
    assert image.geometry == series[3][0].geometry


def test_other_numbers_give_another_phantom(series):
    other, _ = phantom(1, 6)
    assert other.geometry != series[6][0].geometry


def test_arrays_are_as_promised(series):
    for image, truth in series.values():
        assert image.array.dtype == np.float32
        assert truth.array.dtype == np.uint8
        assert image.array.shape == truth.array.shape == (1, *image.geometry.shape)
        assert image.geometry == truth.geometry
        assert np.array_equal(image.array, np.rint(image.array))
        assert image.array.min() >= -1024
        assert image.array.max() < 2000
        assert all(24 <= n <= 96 for n in image.geometry.shape)


def test_every_organ_is_in_every_case(series):
    for _, truth in series.values():
        counts = np.bincount(truth.array.ravel(), minlength=7)
        assert len(counts) == 7
        assert counts[1:].min() > 100


def test_left_is_left_however_it_is_stored(series):
    assert len({image.geometry.orientation for image, _ in series.values()}) >= 4
    for _, truth in series.values():
        liver, spleen, aorta = (_centre_mm(truth, name) for name in ("liver", "spleen", "aorta"))
        # RAS+: x grows towards the patient's right, y to the front.
        assert liver[0] > aorta[0] + 30
        assert spleen[0] < aorta[0] - 30
        assert _centre_mm(truth, "right kidney")[0] > _centre_mm(truth, "left kidney")[0] + 60
        assert _centre_mm(truth, "pancreas")[1] > aorta[1]


def test_grids_are_of_every_kind(series):
    geometries = [image.geometry for image, _ in series.values()]
    assert any(max(g.spacing_mm) > 1.4 * min(g.spacing_mm) for g in geometries)
    tilts = [np.sort(np.abs(g.affine_ras[:3, :3] / g.spacing_mm).ravel())[:6].max() for g in geometries]
    assert sum(t > 0.02 for t in tilts) >= 2
    assert sum(t < 1e-6 for t in tilts) >= 2
    kidney_or_liver_cut = 0
    for _, truth in series.values():
        border = np.ones(truth.geometry.shape, dtype=bool)
        border[1:-1, 1:-1, 1:-1] = False
        kidney_or_liver_cut += bool(np.isin(truth.array[0][border], (2, 3, 4)).any())
    assert kidney_or_liver_cut >= 2


def test_intensities_overlap_but_edges_show(series):
    for image, truth in series.values():
        values = {name: image.array[phantom_labels().mask(truth.array, name)] for name in phantom_labels().classes}
        low, high = np.percentile(values["liver"], (5, 95))
        assert ((values["spleen"] > low) & (values["spleen"] < high)).mean() > 0.25
        assert values["liver"].std() < 40


def test_labels_survive_both_ways_of_writing_them(tmp_path):
    labels = phantom_labels()
    assert labels_from_dict(labels.to_dict()) == labels
    write_phantoms(tmp_path, 1)
    assert labels_from_dataset_json(json.loads((tmp_path / "dataset.json").read_text())) == labels


def test_a_written_folder_is_read_back_exactly_and_resumes(tmp_path, series):
    events = []
    write_phantoms(tmp_path, 2, report=events.append)
    assert [(e.done, e.total) for e in events] == [(1, 2), (2, 2)]
    image = read_image(tmp_path / "imagesTr" / "phantom_002.nii.gz")
    truth = read_labels(tmp_path / "labelsTr" / "phantom_002.nii.gz")
    assert np.array_equal(image.array, series[2][0].array)
    assert np.array_equal(truth.array, series[2][1].array)
    assert image.geometry == series[2][0].geometry

    first = tmp_path / "imagesTr" / "phantom_001.nii.gz"
    kept, written = (tmp_path / "imagesTr" / "phantom_002.nii.gz").stat().st_mtime_ns, first.read_bytes()
    first.unlink()
    write_phantoms(tmp_path, 2)
    assert first.read_bytes() == written
    assert (tmp_path / "imagesTr" / "phantom_002.nii.gz").stat().st_mtime_ns == kept
    data = json.loads((tmp_path / "dataset.json").read_text())
    assert data["numTraining"] == 2
    assert data["modality"] == {"0": "CT"}
    assert data["licence"].startswith("CC0")
    assert "Synthetic" in data["description"]
    assert [case["image"] for case in data["training"]] == ["./imagesTr/phantom_001.nii.gz", "./imagesTr/phantom_002.nii.gz"]


def test_an_interrupted_folder_lists_nothing_that_is_missing(tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path, 3, report=stop)
    assert json.loads((tmp_path / "dataset.json").read_text())["training"] == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "hearts"}')
    with pytest.raises(DatasetError, match="another dataset"):
        write_phantoms(tmp_path, 1)
    (tmp_path / "dataset.json").write_text('{"name": ')
    with pytest.raises(DatasetError, match="cannot be read"):
        write_phantoms(tmp_path, 1)
    (tmp_path / "dataset.json").write_text('{"phantoms": {"seed": 3, "edition": 1}}')
    with pytest.raises(DatasetError, match="another series"):
        write_phantoms(tmp_path, 1)
    assert not (tmp_path / "imagesTr").exists()


def test_counts_and_seeds_must_make_sense(tmp_path):
    for count, seed in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="at least"):
            write_phantoms(tmp_path, count, seed=seed)
