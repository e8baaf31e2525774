"""Arrays in temporary files have their place on the disk before anything is written to them: a full disk is an error, not a death."""

import errno
import os

import numpy as np
import pytest
from commands import scan

import uxnet
from uxnet.cohort.run import predict
from uxnet.cohort.scans import Scan
from uxnet.errors import InputError
from uxnet.inference.stitch import stitch
from uxnet.io import mapped_array
from uxnet.recipe import Inference

SIZE = 8 * 2**20


def disk(monkeypatch, error):
    def refuse(descriptor, start, size):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)


@pytest.mark.parametrize("can", [True, False])
def test_its_space_is_taken_before_it_is_written(tmp_path, monkeypatch, can):
    if not can:
        disk(monkeypatch, errno.EOPNOTSUPP)
    array, file = mapped_array((2, SIZE // 4 + 3), np.float16, tmp_path, "scan")
    with file:
        status = os.fstat(file.fileno())
        assert status.st_size == array.nbytes
        assert getattr(status, "st_blocks", SIZE) * 512 >= SIZE
        assert not array.any()
        array[:] = 3
        del array
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("can", [True, False])
def test_too_little_room_is_an_error_that_says_where_and_how_much(tmp_path, monkeypatch, can):
    resource = pytest.importorskip("resource")
    if not can:
        disk(monkeypatch, errno.ENOSYS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.raises(InputError, match=r"^scan: 8\.4 MB are needed for a temporary file in .*, on whose disk [\d.]+ MB are free \("):
            mapped_array((SIZE,), np.uint8, tmp_path, "scan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails_a_scan_by_name_and_leaves_nothing(tmp_path, monkeypatch, tiny_model):
    model = uxnet.load_model(tiny_model(), device="cpu", precision="float32")
    path, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    disk(monkeypatch, errno.ENOSPC)
    (failed,) = predict(model, [Scan("a", (path,))], out, probabilities=True)
    assert failed.status == "failed"
    assert f"{out / 'a_probs.nii.gz'}: 0.0 MB are needed for a temporary file in {out}" in failed.error
    assert "No space left on device" in failed.error
    assert sorted(one.name for one in out.iterdir()) == ["labels.json", "predict.json"]


def test_logits_that_are_kept_in_a_file_say_on_which_disk(monkeypatch, tmp_path):
    class Echo:
        def infer(self, batch):
            return batch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk(monkeypatch, errno.ENOSPC)
    pieces = stitch(np.zeros((1, 8, 8, 8), np.float32), Echo(), (4, 4, 4), Inference(overlap=0.5), 1, keep="file")
    with pytest.raises(InputError, match=rf"logits that do not fit into memory: .* temporary file in {tmp_path}, on whose disk"):
        next(pieces)
    assert list(tmp_path.iterdir()) == []
