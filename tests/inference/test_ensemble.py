"""The mean over models and mirrored windows."""

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uxnet.errors import LabelsError, ModelError, RecipeError
from uxnet.events import Warn
from uxnet.inference.ensemble import Averaged, check_mirror, check_same, mirrored_channels
from uxnet.labels import Label, Labels, Region
from uxnet.model.file import Model
from uxnet.recipe import Inference, Preparation, Prior, Recipe, Sampling, Stage

ALL = (True, True, True)
NONE = (False, False, False)
MIRRORS = list(itertools.product([False, True], repeat=3))
SIDES = Labels((Label("left kidney", 1), Label("liver", 2), Label("right kidney", 3)), pairs=(("left kidney", "right kidney"),))
NO_SIDES = Labels((Label("kidney", 1), Label("liver", 2)))


class Network:
    """An engine of a function of the batch, that remembers what it was shown and overwrites its last answer, as some runtimes do."""

    def __init__(self, function):
        self.function, self.seen, self.memory = function, [], None

    def infer(self, batch):
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        self.seen.append(batch.copy())
        answer = self.function(batch).astype(np.float32)
        if self.memory is None:
            self.memory = answer
        self.memory[...] = answer
        return self.memory


def window(n=2, channels=2, shape=(4, 5, 6), seed=0):
    return np.random.default_rng(seed).normal(size=(n, channels, *shape)).astype(np.float32)


def running_mean(batch):
    """A function that a mirror image changes: it looks along the axes in one direction."""
    return np.concatenate((batch.cumsum(axis=2), batch.cumsum(axis=3) * batch.cumsum(axis=4)), axis=1)


def by_voxel(batch):
    return np.concatenate((batch**2, batch - 1, 3 * batch), axis=1)


@pytest.mark.parametrize("mirror", MIRRORS)
def test_it_is_the_mean_of_every_model_over_every_mirror_image(mirror):
    batch = window()
    functions = [running_mean, lambda x: 2 * running_mean(x) + 1, lambda x: running_mean(x) ** 2]
    averaged = Averaged([Network(f) for f in functions], mirror)
    answers = []
    for some in itertools.product(*([False, True] if m else [False] for m in mirror)):
        axes = [2 + axis for axis in range(3) if some[axis]]
        answers += [np.flip(f(np.flip(batch, axes)), axes) for f in functions]
    assert averaged.passes == len(answers) == 3 * 2 ** sum(mirror)
    mean = averaged.infer(batch)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.mean(answers, axis=0, dtype=np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize("models", [1, 3])
def test_a_network_that_mirroring_does_not_concern_answers_as_ever(mirror, models):
    batch = window()
    np.testing.assert_allclose(Averaged([Network(by_voxel)] * models, mirror).infer(batch), by_voxel(batch), rtol=1e-5)


@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_constant_stays_the_constant(mirror):
    engine = Network(lambda batch: np.full((len(batch), 3, *batch.shape[2:]), 2.5))
    np.testing.assert_array_equal(Averaged([engine, engine], mirror).infer(window()), np.full((2, 3, 4, 5, 6), 2.5, np.float32))


@pytest.mark.parametrize("side", [0, 1, 2])
@pytest.mark.parametrize("mirror", MIRRORS)
def test_left_and_right_change_places_where_their_axis_is_mirrored(side, mirror):
    """A network that knows left from right by where it is: half the window is one, half the other; the rest by brightness."""
    shape = (6, 4, 8)

    def sided(batch):
        place = np.arange(shape[side]).reshape([-1 if axis == side else 1 for axis in range(3)])
        left = np.broadcast_to(place < shape[side] // 2, (len(batch), *shape))
        shown = batch[:, 0]
        return np.stack((-shown, left * shown, shown + 1, ~left * shown), axis=1)

    batch = window(3, 1, shape)
    swap = {side: mirrored_channels(SIDES)} if mirror[side] else {}
    np.testing.assert_allclose(Averaged([Network(sided)], mirror, swap).infer(batch), sided(batch), rtol=1e-5, atol=1e-6)
    if mirror[side]:
        unswapped = Averaged([Network(sided)], mirror).infer(batch)
        assert np.abs(unswapped - sided(batch)).max() > 0.1


def test_exchanged_along_two_axes_channels_are_where_they_were():
    engine = Network(lambda batch: np.stack([np.full((len(batch), *batch.shape[2:]), n) for n in range(3)], axis=1))
    mean = Averaged([engine], (True, True, False), {0: (0, 2, 1), 1: (0, 2, 1)}).infer(window())
    np.testing.assert_allclose(mean[0, :, 0, 0, 0], [0, 1.5, 1.5])
    once = Averaged([engine], (True, False, False), {0: (1, 2, 0)}).infer(window())
    np.testing.assert_allclose(once[0, :, 0, 0, 0], [0.5, 1.5, 1.0])


def test_the_mask_of_a_guided_stage_is_mirrored_with_the_image():
    engine = Network(lambda batch: batch)
    batch = window(1, 2)
    batch[:, 1] = batch[:, 1] > 0
    np.testing.assert_allclose(Averaged([engine], ALL).infer(batch), batch, rtol=1e-5)
    assert len({seen.tobytes() for seen in engine.seen}) == 8
    for seen in engine.seen:
        assert sorted(seen[0, 1].ravel()) == sorted(batch[0, 1].ravel())


def test_the_window_and_the_answers_are_left_as_they_are():
    batch, kept = window(), []
    before = batch.copy()
    engine = type("E", (), {"infer": lambda self, batch: kept.append(running_mean(batch)) or kept[-1]})()
    Averaged([engine, engine], ALL).infer(batch)
    np.testing.assert_array_equal(batch, before)
    np.testing.assert_array_equal(kept[0], running_mean(before))


def test_one_engine_alone_is_only_passed_on():
    engine = Network(by_voxel)
    assert Averaged([engine]).infer(window()) is engine.memory


def test_memory_is_two_answers_however_many_models():
    batch = window(1, 1, (32, 32, 32))
    answer = 16 * 32**3 * 4
    engine = type("E", (), {"infer": lambda self, batch: np.full((1, 16, *batch.shape[2:]), 1, np.float32)})()
    tracemalloc.start()
    Averaged([engine] * 5, ALL).infer(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * answer


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ModelError, match="at least one"):
        Averaged([])
    with pytest.raises(ModelError, match="differently"):
        Averaged([Network(by_voxel), Network(lambda batch: batch)]).infer(window())
    for swap in ((0, 1), (0, 0, 1, 2, 3, 4)):
        with pytest.raises(ModelError, match="change places"):
            Averaged([Network(by_voxel)], ALL, {0: swap}).infer(window())


# Which channels change places


def test_channels_of_labels():
    assert mirrored_channels(SIDES) == (0, 3, 2, 1)
    assert mirrored_channels(Labels((Label("a", 9), Label("b", 2)))) == (0, 1, 2)


LEFT_RIGHT = (Label("left lung", 1), Label("right lung", 2), Label("heart", 3))


def test_channels_of_regions():
    both, left, right, heart = Region("lungs", (1, 2), 1), Region("L", (1,), 1), Region("R", (2,), 2), Region("heart", (3,), 3)
    pair = (("left lung", "right lung"),)
    assert mirrored_channels(Labels(LEFT_RIGHT, regions=(both, left, heart, right), pairs=pair)) == (0, 3, 2, 1)
    assert mirrored_channels(Labels(LEFT_RIGHT, regions=(left, both, right), pairs=(("L", "R"),))) == (2, 1, 0)
    assert mirrored_channels(Labels(LEFT_RIGHT, regions=(left, both, right))) == (0, 1, 2)
    with pytest.raises(LabelsError, match="'lopsided'"):
        mirrored_channels(Labels(LEFT_RIGHT, regions=(both, Region("lopsided", (1, 3), 1)), pairs=pair))


def test_a_name_in_two_pairs_is_refused():
    labels = Labels(LEFT_RIGHT, pairs=(("left lung", "right lung"), ("heart", "left lung")))
    with pytest.raises(LabelsError, match="more than one pair"):
        mirrored_channels(labels)


# What may be mirrored


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPS", 0), ("ASR", 2), ("PLI", 1)])
def test_where_labels_come_in_pairs_only_left_and_right_are_mirrored(orientation, axis):
    for mirror in MIRRORS:
        if any(m and a != axis for a, m in enumerate(mirror)):
            with pytest.raises(RecipeError, match=f"'left kidney' and 'right kidney'.*must not.*runs from.*axis {'ijk'[axis]} alone"):
                check_mirror(mirror, orientation, SIDES, NONE)
        else:
            swap = check_mirror(mirror, orientation, SIDES, NONE)
            assert swap == ({axis: (0, 3, 2, 1)} if mirror[axis] else {})


def test_the_sentence_says_which_axis_and_why():
    with pytest.raises(RecipeError) as caught:
        check_mirror((False, True, False), "LPS", SIDES, NONE)
    said = str(caught.value)
    assert "axis j" in said
    assert "from front to back" in said
    assert "left and right have changed places" in said
    assert "axis i alone" in said


def test_training_on_mirror_images_changes_nothing_of_that():
    """There, too, what lies on the left of a mirrored body is called left."""
    assert check_mirror((True, False, False), "RAS", SIDES, (True, False, False)) == {0: (0, 3, 2, 1)}


def test_without_pairs_any_axis_may_be_mirrored():
    for mirror in MIRRORS:
        assert check_mirror(mirror, "RAS", NO_SIDES, ALL) == {}


def test_names_that_say_a_side_need_a_pair_or_a_training_on_mirror_images():
    labels = Labels((Label("Parotid_L", 1), Label("Parotid_R", 2)))
    with pytest.raises(RecipeError, match="axis i must not be mirrored: 'Parotid_L'"):
        check_mirror((True, False, False), "RAS", labels, NONE)
    assert check_mirror(ALL, "RAS", labels, ALL) == check_mirror(NONE, "RAS", labels, NONE) == {}


def test_axes_that_training_did_not_mirror_are_warned_of():
    heard = []
    check_mirror(ALL, "RAS", NO_SIDES, (False, True, False), heard.append)
    assert len(heard) == 1
    assert isinstance(heard[0], Warn)
    assert "axis i and k" in heard[0].message
    heard.clear()
    for mirror, trained in ((NONE, NONE), (ALL, ALL), ((False, True, False), (True, True, False))):
        check_mirror(mirror, "RAS", NO_SIDES, trained, heard.append)
    assert heard == []


# Which models may be averaged


ONE = (Stage(),)


def model(name, stages=ONE, labels=SIDES, channels=("CT",)):
    return Model(Recipe("any", stages=stages), labels, channels, {}, {}, Path(f"{name}.uxnet"))


def test_folds_go_together():
    other = replace(Stage(), training=replace(Stage().training, seed=7, steps=3), inference=Inference(overlap=0.1, batch=4))
    coloured = replace(SIDES, colours=(("liver", (1, 2, 3)),))
    explicit = replace(Stage(), inference=Inference(patch=(96, 96, 96)))
    check_same([model("a")])
    check_same([model("a"), model("b", (other,)), model("c", labels=coloured), model("d", (explicit,))])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"labels": replace(SIDES, foreground=(*SIDES.foreground[:2], Label("right kidney", 4)))}, "labels.foreground"),
        ({"labels": replace(SIDES, pairs=())}, "labels.pairs"),
        ({"channels": ("T1",)}, r"channels.*\('T1',\) instead of \('CT',\)"),
        ({"stages": (Stage(prepare=Preparation(spacing_mm=(1, 1, 2))),)}, r"stages.0.prepare.spacing_mm.*\(1, 1, 2\) instead of \(\)"),
        ({"stages": (Stage(sampling=Sampling(patch=(64, 64, 64))),)}, "stages.0.inference.patch.*64.*96"),
        ({"stages": (Stage(inference=Inference(blending="constant")),)}, "stages.0.inference.blending.*'constant' instead of 'gaussian'"),
        ({"stages": (Stage(), Stage(prior=Prior()))}, "number of stages.*2 instead of 1"),
    ],
)
def test_what_differs_is_named_with_its_file(changed, says):
    with pytest.raises(ModelError, match=rf"^c\.uxnet: its {says}.*"):
        check_same([model("a"), model("b"), model("c", **changed)])


def test_priors_must_agree():
    stages = [(Stage(), Stage(prior=Prior(patches=n))) for n in (50, 20)]
    with pytest.raises(ModelError, match=r"stages\.1\.prior\.patches.*20 instead of 50"):
        check_same([model("a", stages[0]), model("b", stages[1])])
