"""Synthetic images: labels and image deform together, the same call gives the same bytes, and nothing lies on the wrong side."""

import dataclasses
import json

import numpy as np
import pytest
from label_maps import SHAPE, head, head_folder, write_head
from scipy import ndimage

from uxnet.errors import DatasetError, InputError, RecipeError, UsageError
from uxnet.events import Warn
from uxnet.geometry import Geometry
from uxnet.io import read_geometry, read_image, read_labels
from uxnet.synthesis.folder import find_label_maps, synthesise
from uxnet.synthesis.images import Scheme, Synthesis, _acquired, _smooth_planes, anatomy, synthesis_from_words, synthetic
from uxnet.synthesis.merging import Merge, choose_merge, freesurfer_pairs, merge_from_file, merge_from_words, named_pairs, one_sided
from uxnet.volume import Volume

STILL = {"rotation_deg": 0, "scale": 0, "shear": 0, "shift_mm": 0, "warp": 0}
CLEAN = {"deviation": 0, "bias": 0, "blur": 0, "thickest_mm": 0, "noise": 0, "gamma": 0, "strip": 0}
PAIRS = ((2, 41), (17, 53))
SCHEME = Scheme({2: 1, 41: 1, 17: 2, 53: 3, 16: 4}, PAIRS)


def volume(labels=None, affine=None):
    array = head() if labels is None else labels
    return Volume(array[None], Geometry(array.shape, np.eye(4) if affine is None else affine))


def made(source=None, scheme=SCHEME, number=1, seed=0, spacing_mm=None, **settings):
    source = volume() if source is None else source
    image, labels = synthetic(
        anatomy(source, scheme), scheme, Synthesis(**settings), seed=seed, name="a", number=number, spacing_mm=spacing_mm
    )
    assert image.array.dtype == labels.array.dtype == np.uint8
    assert image.array.shape == labels.array.shape
    assert image.geometry == labels.geometry
    return image, labels


# ---- one image


@pytest.mark.parametrize("number", range(4))
def test_without_noise_and_blur_the_image_is_constant_on_each_value(number):
    """With every value a label of its own, the image is a function of the labels, however they were deformed."""
    own = Scheme({v: n for n, v in enumerate((515, 2, 41, 16, 17, 53), start=1)}, PAIRS)
    image, labels = made(scheme=own, number=number, **CLEAN)
    shown = [np.unique(image.array[labels.array == n]) for n in range(7)]
    assert all(len(values) == 1 for values in shown), shown
    assert len({int(values[0]) for values in shown}) >= 4
    # Both sides of a pair look alike.
    assert shown[2] == shown[3]
    assert shown[5] == shown[6]


def test_nothing_moves_when_nothing_may():
    image, labels = made(**STILL, **CLEAN)
    expected = np.select([np.isin(head(), values) for values in ((2, 41), (17,), (53,), (16,))], [1, 2, 3, 4])
    assert np.array_equal(labels.array[0], expected)
    assert np.array_equal(image.geometry.affine_ras, np.eye(4))


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("orientation", ["RAS", "LIA", "oblique"])
def test_a_landmark_stays_where_it_is_in_the_world(spacing_mm, orientation):
    array, affine = head(), np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-40, 17, 300)
    if orientation == "LIA":
        array, affine = array.transpose(0, 2, 1)[::-1, ::-1], np.array([[-1.2, 0, 0, 9], [0, 0, 1.0, 4], [0, -0.8, 0, 7], [0, 0, 0, 1.0]])
    elif orientation == "oblique":
        turn = np.deg2rad(20)
        affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    source = volume(np.ascontiguousarray(array), affine)
    _, labels = made(source, spacing_mm=spacing_mm, **STILL)
    assert labels.geometry.orientation == "RAS"
    assert np.allclose(labels.geometry.spacing_mm, spacing_mm, atol=1e-5)
    for value, output in ((17, 2), (53, 3)):
        there = source.geometry.to_mm(np.argwhere(source.array[0] == value).mean(axis=0))
        here = labels.geometry.to_mm(np.argwhere(labels.array[0] == output).mean(axis=0))
        assert np.abs(there - here).max() < spacing_mm


def test_the_same_numbers_give_the_same_bytes_and_others_do_not():
    first = made()
    again = made()
    assert all(np.array_equal(a.array, b.array) for a, b in zip(first, again, strict=True))
    for other in (made(number=2), made(seed=1)):
        assert not np.array_equal(first[1].array, other[1].array)


def test_a_setting_does_not_move_what_others_draw():
    """Without noise the labels are the same; without deformation the intensities are."""
    _, labels = made()
    assert np.array_equal(labels.array, made(**CLEAN)[1].array)
    assert np.array_equal(labels.array, made(blank=0)[1].array)


def test_deformation_does_not_fold():
    """The largest that is allowed: neighbouring voxels keep their order."""
    grid = Geometry((40, 36, 32), np.diag([2.0, 2.0, 2.0, 1.0]))
    for seed in range(5):
        field = np.stack(list(_smooth_planes(np.random.default_rng(seed), grid, 3, 20.0, 2.5)), axis=1)
        jacobian = np.stack([np.gradient(component, 2.0) for component in field]).transpose(2, 3, 4, 0, 1) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0
        assert 1.5 < field.std() < 4


def test_the_grid_of_the_acquisition_has_the_same_middle():
    """A ramp comes back as it was, up to the edges: blur and sampling shift nothing."""

    class Fixed:
        def __init__(self, what):
            self.rng = np.random.default_rng(0)

        def integers(self, n):
            return 2

        def random(self):
            return 0.7

    ramp = np.add.outer(np.add.outer(np.arange(40.0), 2 * np.arange(36.0)), -np.arange(32.0)).astype(np.float32)
    out = _acquired(ramp.copy(), (1.0, 1.0, 1.0), Synthesis(thickest_mm=5, noise=0), Fixed)
    inside = (slice(10, -10),) * 3
    assert np.abs(out - ramp)[inside].max() < 0.01


def test_thick_slices_lose_what_is_fine():
    noise = {"deviation": 0, "bias": 0, "noise": 0, "gamma": 0, "strip": 0, "blur": 0}
    steep = [np.abs(np.diff(made(number=n, thickest_mm=8, **noise)[0].array[0].astype(int), axis=2)).max() for n in range(12)]
    assert max(steep) > 2 * min(steep)


def test_a_stripped_image_is_black_outside_the_brain():
    scheme = dataclasses.replace(SCHEME, brain=frozenset({2, 41, 16, 17, 53}))
    image, labels = made(scheme=scheme, strip=1)
    far = ndimage.distance_transform_cdt(labels.array[0] == 0, metric="taxicab") > 2
    assert far.any()
    assert (image.array[0][far] == 0).all()
    assert image.array[0][labels.array[0] > 0].std() > 0


def test_mirrored_labels_are_on_their_sides():
    """Left is left in every image, and about half of them are mirrored."""
    lopsided = head()
    lopsided[:8, 4:9, 16:20] = 2  # on the left only
    scheme = dataclasses.replace(SCHEME, mirrored=True)
    mirrored = 0
    for number in range(12):
        _, labels = made(volume(lopsided), scheme, number, **STILL)
        left, right = (np.argwhere(labels.array[0] == output)[:, 0].mean() for output in (2, 3))
        assert left < right
        mirrored += bool((labels.array[0, -8:, 4:9, 16:20] == 1).all())
    assert 2 <= mirrored <= 10


def test_a_structure_of_one_side_becomes_the_other_sides():
    single = head()
    single[single == 53] = 41
    _, labels = made(volume(single), dataclasses.replace(SCHEME, mirrored=True), mirror=1.0, **STILL)
    assert 2 not in labels.array
    assert np.argwhere(labels.array[0] == 3)[:, 0].mean() > SHAPE[0] / 2


@pytest.mark.parametrize(
    "words", [["noise"], ["loud=1"], ["noise=x"], ["noise=-1"], ["strip=2"], ["warp=6"], ["noise=true"], ["noise=inf"]]
)
def test_settings_that_cannot_be_are_refused(words):
    with pytest.raises((RecipeError, UsageError)):
        synthesis_from_words(words)


def test_settings_from_words():
    assert synthesis_from_words(["noise=0.5", "warp = 1"]) == Synthesis(noise=0.5, warp=1)


# ---- which label it becomes


def test_tables_from_files_words_and_descriptions(tmp_path):
    root = head_folder(tmp_path / "heads")
    values = [0, 2, 16, 17, 41, 53, 515]
    expected = {2: 1, 41: 1, 17: 2, 53: 2}
    json_file, toml_file = tmp_path / "m.json", tmp_path / "m.toml"
    json_file.write_text('{"names": {"1": "white matter", "2": "hippocampus"}, "map": {"2": 1, "41": 1, "17": 2, "53": 2}}')
    toml_file.write_text('[names]\n1 = "white matter"\n2 = "hippocampus"\n[map]\n2 = 1\n41 = 1\n17 = 2\n53 = 2\n')
    tables = [choose_merge(root, str(json_file), (), values), choose_merge(root, str(toml_file), (), values)]
    tables += [choose_merge(root, "to_two", (), values), choose_merge(root, None, ("white matter=2+41", "hippocampus=17 + 53"), values)]
    for merge in tables:
        assert {v: o for v, o in merge.table if o} == expected
        assert merge.labels.classes == ("white matter", "hippocampus")
    json_file.write_text(json.dumps(tables[0].to_dict()))
    assert merge_from_file(json_file) == tables[0]


def test_without_a_table_each_value_is_a_label(tmp_path):
    root = head_folder(tmp_path / "heads")
    merge = choose_merge(root, None, (), [0, 2, 16, 515])
    assert [(label.name, label.value) for label in merge.labels.foreground] == [("label 2", 1), ("label 16", 2), ("label 515", 3)]
    assert dict(choose_merge(root, None, (), [0, 2, 16]).table) == {2: 2, 16: 16}
    named = head_folder(tmp_path / "named", description={"labels": {"0": "background", "2": "left", "41": "right"}})
    assert choose_merge(named, None, (), [0, 2, 16]).labels.pairs == (("left", "right"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"map": {"1": 1}}', "needs the tables"),
        ('{"names": {}, "map": {"1": 1}}', "no name for 1"),
        ('{"names": {}, "map": {"1": 0}}', "nothing but background"),
        ('{"names": {"1": "a"}, "map": {"x": 1}}', "no whole number"),
        ('{"names": {"1": "a"}, "map": {"1": 256}}', "0 .background. to 255"),
        ('{"names": {"1": "a"}, "map": {"0": 1}}', "the background, cannot become"),
        ('{"names": {"1": "a", "2": "a"}, "map": {"1": 1, "2": 2}}', "occurs more than once"),
        ('{"names": {"1": "ignore"}, "map": {"1": 1}}', "cannot be called"),
        ("[]", "JSON object"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, text, said):
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        merge_from_file(file)


@pytest.mark.parametrize("words", [["hippocampus"], ["=17"], ["a=x"], ["a=17+"], ["a=17", "b=17"], ["a=17", "a=53"]])
def test_words_that_cannot_be_read_are_refused(words):
    with pytest.raises(InputError, match="label"):
        merge_from_words(words)


def test_freesurfers_sides_are_known_by_numbers_and_places_together():
    left_right = {2: -20.0, 41: 21.0, 17: -25.0, 53: 24.0, 16: 0.0}
    assert freesurfer_pairs([left_right, left_right]) == PAIRS
    assert freesurfer_pairs([left_right | {1001: -30.0, 2001: 30.0}]) == (*PAIRS, (1001, 2001))
    swapped = {v: -x for v, x in left_right.items()}
    assert freesurfer_pairs([swapped]) == ()
    assert freesurfer_pairs([left_right, {2: -20.0, 3: 4.0, 41: 20.0}]) == ()  # 42 occurs nowhere
    assert freesurfer_pairs([{1: 0.0, 5: 1.0}]) == ()


def test_which_names_say_a_side_that_nobody_can_check():
    merge = merge_from_words(["left hippocampus=7", "right hippocampus=8", "Left lung=1+2", "brain=3", "Lens_R=4", "L1=5"])
    assert named_pairs(merge) == ((7, 8),)
    assert one_sided(merge, named_pairs(merge)) == ["Left lung", "Lens_R"]
    assert isinstance(merge, Merge)


# ---- a folder


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_same_folder_whatever_the_workers_and_interruptions(tmp_path):
    root = head_folder(tmp_path / "heads", ("a", "b", "c"))
    alone, together = tmp_path / "alone", tmp_path / "together"
    done = synthesise(root, alone, images_per_map=3, merge="to_two", spacing_mm=2)
    assert (done.images, done.already, done.failures) == (9, 0, ())
    # Fewer first, one of them lost half, then all, in two processes.
    synthesise(root, together, images_per_map=1, merge="to_two", spacing_mm=2)
    (together / "labelsTr/b_s001.nii.gz").unlink()
    before = (together / "imagesTr/a_s001.nii.gz").stat().st_mtime_ns
    done = synthesise(root, together, images_per_map=3, merge="to_two", spacing_mm=2, workers=2)
    assert (done.images, done.already) == (7, 2)
    assert (together / "imagesTr/a_s001.nii.gz").stat().st_mtime_ns == before
    assert contents(alone) == contents(together)
    assert synthesise(root, together, images_per_map=2, merge="to_two", spacing_mm=2).already == 6
    assert contents(alone) == contents(together)


def test_a_map_that_joins_later(tmp_path):
    whole = head_folder(tmp_path / "whole", ("a", "b"))
    growing = head_folder(tmp_path / "growing", ("a",))
    synthesise(growing, tmp_path / "out", images_per_map=1, merge="to_two")
    head_folder(growing, ("a", "b"))
    synthesise(growing, tmp_path / "out", images_per_map=1, merge="to_two")
    synthesise(whole, tmp_path / "at once", images_per_map=1, merge="to_two")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"spacing_mm": 3}, "spacing_mm 2 instead of 3"),
        ({"settings": Synthesis(noise=0)}, "noise 0.06 instead of 0"),
        ({"merge": None, "words": ("brain=2+41",)}, "other merge"),
        ({"mirror": False}, "mirrored True instead of False"),
    ],
)
def test_other_images_in_the_same_folder_are_refused(tmp_path, change, said):
    root, given = head_folder(tmp_path / "heads"), {"images_per_map": 1, "merge": "to_two", "spacing_mm": 2}
    synthesise(root, tmp_path / "out", **given)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match=said):
        synthesise(root, tmp_path / "out", **(given | change))
    assert contents(tmp_path / "out") == before


def test_a_map_that_changed_and_a_folder_of_something_else_are_refused(tmp_path, tiny_dataset):
    root = head_folder(tmp_path / "heads")
    synthesise(root, tmp_path / "out", images_per_map=1, merge="to_two")
    write_head(root / "labelsTr/b.nii.gz", head(7))
    with pytest.raises(DatasetError, match="other maps: b"):
        synthesise(root, tmp_path / "out", images_per_map=1, merge="to_two")
    with pytest.raises(DatasetError, match="another dataset"):
        synthesise(root, tiny_dataset, merge="to_two")
    with pytest.raises(InputError, match="folder of their own"):
        synthesise(root, root, merge="to_two")


def test_it_is_a_sound_dataset_with_whose_images_they_are(tmp_path):
    from uxnet.dataset.check import check_dataset
    from uxnet.dataset.manifest import read_dataset

    root = head_folder(tmp_path / "heads")
    (root / "subjects.json").write_text('{"a": "p1", "b": "p2"}')
    synthesise(root, tmp_path / "out", images_per_map=2, words=["left hippocampus=17", "right hippocampus=53"], name="Mine")
    manifest = read_dataset(tmp_path / "out")
    assert (manifest.name, manifest.licence, manifest.reference, manifest.persons) == ("Mine", "CC0-1.0", "nobody", ("p1", "p2"))
    assert manifest.labels.pairs == (("left hippocampus", "right hippocampus"),)
    assert [case.name for case in manifest.cases] == ["a_s001", "a_s002", "b_s001", "b_s002"]
    assert not check_dataset(manifest).problems
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert described["description"].startswith("synthetic images from real label maps (Heads)")


def test_persons_are_found_by_the_names_of_cases_and_nobody_is_left_out(tmp_path):
    """A dataset.json may name label maps otherwise than images, by which subjects.json knows the cases."""
    listed = [{"image": f"./imagesTr/{n}_t1.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    root = head_folder(tmp_path / "heads", description={"training": listed})
    (root / "subjects.json").write_text('{"a_t1": "one", "b_t1": "one"}')
    synthesise(root, tmp_path / "out", images_per_map=1, merge="to_two")
    persons = json.loads((tmp_path / "out/subjects.json").read_text())
    assert persons == {"a_s001": "one", "b_s001": "one"}
    (root / "subjects.json").write_text('{"a_t1": "one"}')
    with pytest.raises(DatasetError, match=r"subjects\.json: it names no person for case b_t1"):
        synthesise(root, tmp_path / "new", images_per_map=1, merge="to_two")
    assert not (tmp_path / "new").exists()
    # A map that is gone from the source keeps its person.
    (root / "dataset.json").write_text((root / "dataset.json").read_text().replace(json.dumps(listed), json.dumps(listed[:1])))
    synthesise(root, tmp_path / "out", images_per_map=1, merge="to_two")
    assert json.loads((tmp_path / "out/subjects.json").read_text()) == persons


def test_a_bad_map_does_not_stop_the_others(tmp_path):
    root = head_folder(tmp_path / "heads", ("a", "b", "c"))
    (root / "labelsTr/a.nii.gz").write_bytes(b"damaged")
    write_head(root / "labelsTr/c.nii.gz", np.zeros(SHAPE, np.uint8))
    done = synthesise(root, tmp_path / "out", images_per_map=1, merge="to_two")
    assert done.images == 1
    assert [name for name, _ in done.failures] == ["a", "c"]
    assert "nothing but 0" in done.failures[1][1]


def test_tables_and_what_occurs(tmp_path):
    root, heard = head_folder(tmp_path / "heads"), []
    synthesise(root, tmp_path / "out", images_per_map=1, words=["a=2+99", "b=98"], report=heard.append)
    said = " ".join(event.message for event in heard if isinstance(event, Warn))
    assert "99, 98" in said
    assert "no label map shows b" in said
    with pytest.raises(InputError, match="nothing but background"):
        synthesise(root, tmp_path / "none", words=["a=99"])
    with pytest.raises(InputError, match=r"tables in .*to_two, two"):
        synthesise(root, tmp_path / "none", merge="to_three")
    with pytest.raises(InputError, match="not by both"):
        synthesise(root, tmp_path / "none", merge="to_two", words=["a=2"])
    assert not (tmp_path / "none").exists()


def test_mirroring_is_refused_where_sides_are_not_known(tmp_path):
    root = tmp_path / "plain"
    plain = head()
    plain[plain == 41] = 2
    write_head(root / "a.nii.gz", plain)
    with pytest.raises(InputError, match="left thing on the wrong side"):
        synthesise(root, tmp_path / "out", words=["left thing=17"], mirror=True)
    synthesise(root, tmp_path / "out", images_per_map=1, words=["left thing=17"])
    assert json.loads((tmp_path / "out/synthesis.json").read_text())["mirrored"] is False


def test_where_label_maps_are_found(tmp_path):
    root = head_folder(tmp_path / "heads")
    assert list(find_label_maps(root)) == ["a", "b"]
    (root / "dataset.json").unlink()
    assert list(find_label_maps(root)) == list(find_label_maps(root / "labelsTr")) == ["a", "b"]
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            find_label_maps(wrong)
    (root / "labelsTr/c.mgz").write_bytes(b"")
    heard = []
    assert list(find_label_maps(root, heard.append)) == ["a", "b"]
    assert "1 file; only NIfTI files (.nii, .nii.gz) are read, not c.mgz (FreeSurfer)" in heard[0].message


@pytest.mark.parametrize(
    "more", [{"images_per_map": 0}, {"images_per_map": 1000}, {"seed": -1}, {"spacing_mm": 0}, {"spacing_mm": float("inf")}]
)
def test_numbers_that_cannot_be_are_refused(tmp_path, more):
    with pytest.raises(InputError):
        synthesise(head_folder(tmp_path / "heads"), tmp_path / "out", merge="to_two", **more)


def test_a_real_brain(data_dir, tmp_path):
    """One map of many, at 4 mm: numbered as FreeSurfer does, seven classes, and volumes near the map's own."""
    root = (data_dir / "brain_label_maps").resolve()
    if not root.is_dir():
        pytest.skip("no brain_label_maps among the data")
    data = json.loads((root / "dataset.json").read_text())
    data["training"] = [{"label": str(root / data["training"][0]["label"])}]
    (tmp_path / "one").mkdir()
    (tmp_path / "one/dataset.json").write_text(json.dumps(data))
    done = synthesise(tmp_path / "one", tmp_path / "out", images_per_map=2, merge="to_feta7", spacing_mm=4)
    assert (done.images, done.failures) == (2, ())
    assert json.loads((tmp_path / "out/synthesis.json").read_text())["freesurfer"] is True
    whole = read_labels(data["training"][0]["label"])
    for number in (1, 2):
        case = f"{next(iter(find_label_maps(tmp_path / 'one')))}_s{number:03d}.nii.gz"
        image, labels = read_image(tmp_path / "out/imagesTr" / case), read_labels(tmp_path / "out/labelsTr" / case)
        assert read_geometry(tmp_path / "out/imagesTr" / case).orientation == "RAS"
        assert set(np.unique(labels.array)) == set(range(8))
        assert image.array.max() == 255
        matter = np.isin(labels.array, (2, 3)).sum() * labels.geometry.voxel_mm3
        real = np.isin(whole.array, [int(v) for v, o in data["to_feta7"].items() if o in (2, 3)]).sum() * whole.geometry.voxel_mm3
        assert 0.5 < matter / real < 1.8
