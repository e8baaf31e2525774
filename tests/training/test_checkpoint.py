import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from uxnet.errors import CheckpointError
from uxnet.training import checkpoint
from uxnet.training.checkpoint import (
    Progressed,
    State,
    load_checkpoint,
    load_weights_file,
    save_checkpoint,
    save_weights,
    weights_header,
)
from uxnet.training.engine import TrainingEngine

DONE = Progressed(
    step=7,
    validated=6,
    scores=[0.25, None, 0.5],
    classes=[{"a": 0.25, "b": None}, {"a": None, "b": None}, {"a": 0.5, "b": None}],
    best=0.5,
    best_step=6,
    skipped=2,
    skipped_in_a_row=1,
    seconds=12.5,
)
ENGINE = TrainingEngine("cpu", "float32")


def pair(seed=0, width=3):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv3d(1, width, 3), nn.GroupNorm(1, width), nn.Conv3d(width, 2, (1, 3, 3))).to(
        memory_format=torch.channels_last_3d
    )
    return network, torch.optim.AdamW(network.parameters(), lr=0.01)


def step(network, optimiser, seed):
    x = torch.randn(2, 1, 6, 7, 8, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.fixture
def saved(tmp_path):
    network, optimiser = pair()
    step(network, optimiser, 0)
    average = {key: value.detach() + 1 for key, value in network.state_dict().items()}
    path = tmp_path / "deep" / "last.safetensors"
    save_checkpoint(path, State(network, optimiser, average, DONE), ENGINE, "this run")
    return path, network, optimiser, average


def test_a_run_goes_on_bit_for_bit(saved):
    path, network, optimiser, average = saved
    other, its_optimiser = pair(seed=9)
    its_average = {key: torch.zeros_like(value) for key, value in other.state_dict().items()}
    state = State(other, its_optimiser, its_average)
    load_checkpoint(path, state, ENGINE, "this run")
    assert state.done == DONE
    assert all(torch.equal(its_average[key], value) for key, value in average.items())
    for n in range(3):
        step(network, optimiser, n)
        step(other, its_optimiser, n)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
        for key, value in optimiser.state[a].items():
            assert torch.equal(value, its_optimiser.state[b][key])


def test_an_average_stays_where_it_was(saved):
    """On the network's device: the tensors are filled, not replaced by the file's."""
    path, *_ = saved
    other, its_optimiser = pair(seed=9)
    average = {key: torch.zeros_like(value) for key, value in other.state_dict().items()}
    before = {key: value.data_ptr() for key, value in average.items()}
    load_checkpoint(path, State(other, its_optimiser, average), ENGINE, "this run")
    assert {key: value.data_ptr() for key, value in average.items()} == before


def test_nothing_of_a_checkpoint_is_pickled(saved):
    path, *_ = saved
    head = path.read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert json.loads(head[8 : 8 + length])["__metadata__"]["uxnet"]


def test_no_temporary_file_is_left(saved):
    path, *_ = saved
    (path.parent.parent / "any").touch()
    assert path.stat().st_mode == (path.parent.parent / "any").stat().st_mode  # to be read by whoever reads the user's other files
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_torn_checkpoint_is_refused(saved, share):
    path, *_ = saved
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: the checkpoint cannot be read"):
        load_checkpoint(path, State(*pair(), {}), ENGINE, "this run")
    for reading in (load_weights_file, weights_header):
        with pytest.raises(CheckpointError):
            reading(path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\xff" * 100, b"\x10" + b"\0" * 7 + b'{"a": "nonsense"}'])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load_checkpoint(path, State(*pair(), {}), ENGINE, "")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    for metadata in (None, {"other": "1"}, {"uxnet": "not json"}, {"uxnet": "[1, 2]"}, {"uxnet": "{}"}):
        path = tmp_path / "x.safetensors"
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            load_checkpoint(path, State(*pair(), {}), ENGINE, "this run")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no\.safetensors"):
        load_checkpoint(tmp_path / "no.safetensors", State(*pair(), {}), ENGINE, "this run")


def test_a_checkpoint_of_another_run_or_network_is_refused(saved):
    path, *_ = saved
    with pytest.raises(CheckpointError, match="another run"):
        load_checkpoint(path, State(*pair(), {}), ENGINE, "that run")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_checkpoint(path, State(*pair(width=4), {}), ENGINE, "this run")


def test_a_full_disk_leaves_the_checkpoint_before(saved, monkeypatch):
    path, network, optimiser, average = saved
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*the one before it is untouched"):
        save_checkpoint(path, State(network, optimiser, average, DONE), ENGINE, "this run")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_weights_alone(tmp_path):
    network, _ = pair()
    save_weights(tmp_path / "best.safetensors", network.state_dict(), {"step": 3})
    assert weights_header(tmp_path / "best.safetensors") == {"step": 3}
    loaded = load_weights_file(tmp_path / "best.safetensors")
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_the_file_is_what_the_library_of_the_format_writes(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        "half": torch.full((3,), 0.5, dtype=torch.bfloat16),
        "one": torch.tensor(7),
        "none": torch.zeros(0, 2),
        "yes": torch.tensor([True]),
    }
    checkpoint.save_file(tensors, tmp_path / "ours", metadata={"uxnet": "é"})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata={"uxnet": "é"})
    with safe_open(tmp_path / "ours", "pt") as ours, safe_open(tmp_path / "theirs", "pt") as theirs:
        assert ours.metadata() == theirs.metadata()
        assert sorted(ours.keys()) == sorted(theirs.keys())
        for name, tensor in tensors.items():
            assert torch.equal(ours.get_tensor(name), tensor)
            assert ours.get_tensor(name).dtype == tensor.dtype
