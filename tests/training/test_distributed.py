"""Two processes compute what one does: gradients, validations, checkpoints and errors."""

import json
from pathlib import Path

import failing_process
import pytest
import torch
from processes import srun, torchrun
from safetensors import safe_open

from uxnet.cli.main import main
from uxnet.errors import CheckpointError, DeviceError
from uxnet.io.records import read_records
from uxnet.model.file import read_model, read_weights
from uxnet.networks.build import build
from uxnet.recipe import load_recipe, recipe_to_toml, with_overrides
from uxnet.training import engine as engine_module
from uxnet.training.checkpoint import Progressed, State, load_checkpoint
from uxnet.training.engine import TrainingEngine, _launched

# Drop path draws one number a sample of a batch, so that one process with two samples draws others than two with one. In narrower
# networks now and then an input of a leaky ReLU lies within rounding of zero, and takes the other slope.
SETTINGS = ["network.settings.drop_path=0.0", "network.settings.widths=[16,32]", "training.batch=2"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_recipe):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "tiny.toml").write_text(recipe_to_toml(with_overrides(tiny_recipe, SETTINGS)))
    return folder


@pytest.fixture(scope="module")
def command(shared, tiny_dataset):
    """command(name, *more) -> arguments of a training into the folder of that name."""
    common = ["--recipe", shared / "tiny.toml", "--cache", shared / "cache", "--device", "cpu", "--workers", "1"]

    def of(name, *more):
        return [str(a) for a in ["train", tiny_dataset, *common, "-o", shared / name, *more]]

    return of


@pytest.fixture(scope="module")
def alone(command, shared):
    """The runs of one process: of one step, whose first moments are a tenth of the gradient, and of all."""
    for name, more in {"one-step": ["--set", "training.steps=1"], "whole": []}.items():
        assert main(command(name, *more)) == 0
    return shared


def tensors(run):
    """All tensors of a run's checkpoint, put together from its files."""
    first = run / "checkpoints" / "last.safetensors"
    with safe_open(first, "pt") as file:
        header = json.loads(file.metadata()["uxnet"])
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name in header["files"]:
        with safe_open(first.with_name(name), "pt") as file:
            for key in file.keys():  # noqa: SIM118
                found[key] = torch.cat([found[key], file.get_tensor(key)])
    return found


def relative(ours, theirs, part):
    """The length of the difference over the length, of all tensors whose name has `part` in it."""
    keys = [key for key in theirs if part in key]
    assert keys
    assert ours.keys() == theirs.keys()
    difference = sum(float((ours[key].double() - theirs[key].double()).square().sum()) for key in keys)
    return (difference / sum(float(theirs[key].double().square().sum()) for key in keys)) ** 0.5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_with_a_sample_each_give_the_gradient_of_one_with_both(strategy, alone, command):
    name = f"one-step-{strategy}"
    done = torchrun(*command(name, "--strategy", strategy, "--set", "training.steps=1"))
    assert done.returncode == 0, done.stderr
    assert relative(tensors(alone / name), tensors(alone / "one-step"), ".exp_avg") < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_whole_run_of_two_processes(strategy, alone, command):
    """Each case is validated once, records are written once, and the model is the one process's but for rounding."""
    done = torchrun(*command(strategy, "--strategy", strategy))
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_records(alone / name / "metrics.jsonl") for name in (strategy, "whole"))
    assert [(r["kind"], r["step"]) for r in ours] == [(r["kind"], r["step"]) for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        if a["kind"] == "validation":
            assert list(a["cases"]) == list(b["cases"])
            assert a["dice"] == pytest.approx(b["dice"], abs=0.02)
        else:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-2)
    model = read_model(alone / strategy / "model.uxnet")
    assert (model.provenance["processes"], model.provenance["strategy"]) == (2, strategy)
    one, both = (read_weights(read_model(alone / name / "model.uxnet")) for name in ("whole", strategy))
    assert max(abs(one[key] - both[key]).max() for key in one) < 0.02
    assert done.stdout.count("written: ") == 1


def test_parts_of_a_checkpoint_are_read_by_any_number_of_processes(alone):
    """Two processes wrote it into two files; one process reads it, and could go on."""
    folder = alone / "fsdp" / "checkpoints"
    files = sorted(p.name for p in folder.glob("last*"))
    assert len(files) == 2
    assert not list(folder.glob(".*part*"))
    # Every weight of more than one row lies in both files, half of it in each: of 16 rows, 8.
    with safe_open(folder / files[0], "pt") as other, safe_open(folder / "last.safetensors", "pt") as first:
        key = "network.stem.conv.weight"
        assert other.get_slice(key).get_shape()[0] == first.get_slice(key).get_shape()[0] == 8
        identity = json.loads(first.metadata()["uxnet"])["identity"]
    whole = tensors(alone / "fsdp")
    stage = load_recipe(alone / "tiny.toml").stages[0]
    network = build("uxnet", 1, 3, settings=stage.network.settings)
    average = {key: value.clone() for key, value in network.state_dict().items()}
    state = State(network, torch.optim.AdamW(network.parameters()), average, Progressed())
    load_checkpoint(folder / "last.safetensors", state, TrainingEngine("cpu", "float32"), identity)
    assert state.done.step == 8
    assert all(torch.equal(value, whole[f"network.{key}"]) for key, value in network.state_dict().items())
    assert all(torch.equal(value, whole[f"average.{key}"]) for key, value in average.items())
    for name, parameter in network.named_parameters():
        assert torch.equal(state.optimiser.state[parameter]["exp_avg_sq"], whole[f"optimiser.{name}.exp_avg_sq"])
    # A part that is missing is said, and nothing of it is taken.
    (folder / files[0]).rename(folder / "away")
    with pytest.raises(CheckpointError, match=r"last\..*\.1\.safetensors"):
        load_checkpoint(folder / "last.safetensors", state, TrainingEngine("cpu", "float32"), identity)
    (folder / "away").rename(folder / files[0])


def test_slurm(alone, command):
    both = srun(*command("slurm", "--set", "training.steps=1"))
    assert [done.returncode for done in both] == [0, 0], both
    assert relative(tensors(alone / "slurm"), tensors(alone / "one-step"), ".exp_avg") < 1e-5


def test_an_error_in_one_process_ends_all_of_them(command, alone):
    """That a folder holds a run already is found by the first process alone."""
    done = torchrun(*command("whole"), timeout=120)
    assert done.returncode == 1
    assert "there is a run already" in done.stderr


FAILING = (str(Path(failing_process.__file__)),)


def test_an_error_of_the_first_process_alone_ends_all_of_them_and_hands_over_the_best(command, alone):
    """The others are then in the middle of a step: they are not waited for."""
    done = torchrun(*command("first-fails"), timeout=120, program=FAILING, FAILING_RANK="0")
    assert done.returncode == 1
    assert "x.case: damaged. The weights of step 4, the best, are in" in done.stderr
    assert read_model(alone / "first-fails" / "last_good.uxnet").provenance["training"]["step"] == 4


def test_an_error_of_another_process_alone_ends_all_of_them(command):
    both = srun(*command("second-fails"), timeout=120, program=FAILING, FAILING_RANK="1")
    assert [done.returncode for done in both] == [1, 1]
    assert both[1].stderr.splitlines()[-1] == "uxnet train: x.case: damaged"


def test_what_stops_all_processes_leaves_the_best(command, alone):
    every = ["training.validate_every=1", "training.absurd_gradient=1e-9", "training.skips_in_a_row=3"]
    both = srun(*command("all-fail", *(a for setting in every for a in ("--set", setting))), timeout=120)
    assert [done.returncode for done in both] == [1, 1]
    assert all("3 steps in a row had a loss or gradient" in done.stderr for done in both)
    assert (alone / "all-fail" / "last_good.uxnet").is_file()


def test_a_batch_that_cannot_be_shared_out():
    engine = TrainingEngine("cpu", "float32")
    assert engine.share(3) == [0, 1, 2]
    engine.world, engine.rank = 2, 1
    assert engine.share(6) == [3, 4, 5]
    with pytest.raises(DeviceError, match=r"training\.batch: 3 patches cannot be shared out over 2 processes"):
        engine.share(3)


def test_who_started_this_process():
    assert (_launched({}).processes, _launched({}).nodes) == (1, 1)
    # An allocation in which no srun was called is one process, whatever it has room for.
    assert _launched({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}).processes == 1
    found = _launched({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"})
    assert (found.processes, found.nodes, type(found.environment).__name__) == (4, 2, "SLURMEnvironment")
    with pytest.raises(DeviceError, match="ntasks-per-node"):
        _launched({"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_NUM_NODES": "2"})
    found = _launched({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"})
    assert (found.processes, found.nodes) == (3, 2)


def test_one_process_cannot_share_a_network_out():
    with pytest.raises(DeviceError, match="this is the only one"):
        TrainingEngine("cpu", "float32", "fsdp")


def test_several_processes_choose_their_gpus_themselves(monkeypatch):
    monkeypatch.setattr(engine_module, "_launched", lambda _: engine_module._Launched(engine_module.LightningEnvironment(), 2, 1))
    monkeypatch.setattr(engine_module, "choose_device", lambda _: torch.device("cuda:1"))
    with pytest.raises(DeviceError, match="2 processes cannot share cuda:1"):
        TrainingEngine("cuda:1", "float32")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus(strategy, alone, command):
    arguments = [a if a != "cpu" else "cuda" for a in command(f"gpus-{strategy}", "--strategy", strategy, "--set", "training.steps=1")]
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr
    assert relative(tensors(alone / f"gpus-{strategy}"), tensors(alone / "one-step"), ".exp_avg") < 1e-3
