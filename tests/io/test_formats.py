"""Images in formats that are not read are named, and what is no image is not taken for one."""

import pytest

from uxnet.io import images_in, unread_format, unread_message

UNREAD = [
    *("a.hdr", "a.img", "a.img.gz", "a.nii.bz2", "A.NII.ZST", "a.nii.xz", "a.mnc", "a.gipl", "a.gipl.gz", "a.mgz", "a.MGH", "a.nrrd"),
    *("a.seg.nrrd", "a.nhdr", "a.mha", "a.mhd", "1.dcm", "1.IMA", "a+orig.BRIK.gz", "a+orig.HEAD", "a.tif"),
]
NO_IMAGES = [
    "a.json",
    "a.nii.gz.json",
    "a.txt",
    "a.csv",
    "a.bval",
    ".a.mha",
    "._a.nii.gz",
    "._a.mgz",
    "README",
    "a.png",
    "a.nii.gz.md5",
    "a.nii.old",
]


def filled(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize("name", UNREAD)
def test_a_known_format_is_named(tmp_path, name):
    filled(tmp_path, name)
    assert unread_format(tmp_path / name)
    assert name in unread_message([tmp_path / name])


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_none(tmp_path, name):
    found = images_in(filled(tmp_path, name))
    assert (found.read, found.unread) == ((), ())


def test_dicom_is_known_by_its_content_where_its_name_says_nothing(tmp_path):
    for name in ("IM000001", "1.2.840.113619.2.5"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(100))
    filled(tmp_path, "IM000002", "1.2.3")
    assert [path.name for path in images_in(tmp_path).unread] == ["1.2.840.113619.2.5", "IM000001"]


def test_a_folder_with_a_scans_name_is_named_and_a_link_that_leads_nowhere_is_a_scan(tmp_path):
    (tmp_path / "b.nii").mkdir()
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    found = images_in(filled(tmp_path, "a.nii.gz", "c.mgz"))
    assert [path.name for path in found.read] == ["a.nii.gz", "gone.nii.gz"]
    assert unread_message(found.unread) == (
        "only NIfTI files (.nii, .nii.gz) are read, not b.nii (a folder), c.mgz (FreeSurfer); "
        "move the files out of such folders, convert the others to .nii.gz"
    )
