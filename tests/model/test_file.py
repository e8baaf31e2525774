import hashlib
import json
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from uxnet.errors import ModelError
from uxnet.labels import Label, Labels
from uxnet.model.file import SCHEMA, read_model, read_variant, read_weights, variants, with_variants, write_model
from uxnet.recipe import Prior, Recipe, Stage, load_recipe

LABELS = Labels(
    (Label("anterior", 1), Label("posterior", 2)),
    pairs=(("anterior", "posterior"),),
    ignore=9,
    colours=(("anterior", (1, 2, 3)),),
)
RECIPE = load_recipe("hippocampus")
STAGE = {"network": "uxnet", "in_channels": 1, "out_channels": 3, "weights": "weights/0.safetensors", "sha256": "", "parameters": 1}


def nested(depth):
    return [nested(depth - 1)] if depth else []


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "stem.weight": rng.normal(size=(4, 1, 3, 3, 3)).astype(np.float32),
        "stem.bias": rng.normal(size=4).astype(np.float16),
        "steps": np.array(7, np.int64),
        "running_var": rng.uniform(size=4).astype(np.float32),
        "turned": rng.normal(size=(3, 5)).astype(np.float32).T,
    }


def write(path, state=None, recipe=RECIPE):
    write_model(
        path,
        [weights()] if state is None else state,
        recipe=recipe,
        labels=LABELS,
        channels=("T1",),
        provenance={"scores": {"dice": 0.9}, "who": "é"},
    )
    return path


def parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuild(path, blobs):
    with zipfile.ZipFile(path, "w") as archive:
        for name, blob in blobs.items():
            archive.writestr(name, blob)
    return path


def redescribed(path, **changes):
    """The same file with another model.json."""
    blobs = parts(path)
    description = json.loads(blobs["model.json"]) | changes
    return rebuild(path, blobs | {"model.json": json.dumps({k: v for k, v in description.items() if v is not None}).encode()})


def test_a_model_is_read_as_it_was_written(tmp_path):
    model = read_model(write(tmp_path / "deep" / "a.uxnet"))
    assert (model.recipe, model.labels, model.channels) == (RECIPE, LABELS, ("T1",))
    assert model.provenance == {"scores": {"dice": 0.9}, "who": "é"}
    assert model.description["stages"][0]["parameters"] == sum(
        a.size for key, a in weights().items() if key not in ("steps", "running_var")
    )
    assert model.description["stages"][0]["out_channels"] == 3
    found = read_weights(model)
    assert sorted(found) == sorted(weights())
    for name, array in weights().items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)  # also of a single number
        np.testing.assert_array_equal(found[name], array)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.uxnet"]


def test_each_stage_has_weights_of_its_own(tmp_path):
    recipe = Recipe("two", stages=(Stage(), Stage(prior=Prior())))
    model = read_model(write(tmp_path / "a.uxnet", [weights(1), weights(2)], recipe))
    for n in (0, 1):
        np.testing.assert_array_equal(read_weights(model, n)["stem.weight"], weights(n + 1)["stem.weight"])
    with pytest.raises(ModelError, match="stage 2"):
        read_weights(model, 2)


def test_the_same_training_gives_the_same_file(tmp_path):
    write(tmp_path / "a.uxnet")
    write(tmp_path / "b.uxnet", [dict(reversed(weights().items()))])
    assert (tmp_path / "a.uxnet").read_bytes() == (tmp_path / "b.uxnet").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.uxnet") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}  # no clock in it
    write(tmp_path / "b.uxnet", [weights(1)])
    assert (tmp_path / "a.uxnet").read_bytes() != (tmp_path / "b.uxnet").read_bytes()


def test_nothing_in_it_can_run_code(tmp_path):
    blobs = parts(write(tmp_path / "a.uxnet"))
    assert sorted(blobs) == ["model.json", "weights/0.safetensors"]
    json.loads(blobs["model.json"])
    blob = blobs["weights/0.safetensors"]
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert set(header) == set(weights())
    assert not any(b.startswith(b"\x80") or b"cpickle" in b or b"__reduce__" in b for b in blobs.values())


def test_weights_that_are_not_those_that_were_written_are_refused(tmp_path):
    path = write(tmp_path / "a.uxnet")
    blobs = parts(path)
    blob = bytearray(blobs["weights/0.safetensors"])
    blob[-1] ^= 1
    rebuild(path, blobs | {"weights/0.safetensors": bytes(blob)})  # the zip's own checksum is right
    with pytest.raises(ModelError, match=r"a\.uxnet.*sha256"):
        read_weights(read_model(path))


def test_any_flipped_byte_is_noticed_or_changes_nothing(tmp_path):
    path = write(tmp_path / "a.uxnet")
    whole, reference, refusals = path.read_bytes(), read_model(path), []
    for offset in range(0, len(whole), 7):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x41]) + whole[offset + 1 :])
        try:
            model = read_model(path)
            found = read_weights(model)
        except ModelError as error:
            refusals.append(str(error))
        else:
            assert model.description == reference.description
            np.testing.assert_array_equal(found["stem.weight"], weights()["stem.weight"])
    assert len(refusals) > len(whole) / 14
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    path = write(tmp_path / "a.uxnet")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ModelError, match=r"a\.uxnet"):
        read_model(path)


def test_parts_that_are_compressed_are_refused(tmp_path):
    path = write(tmp_path / "a.uxnet")
    model, blobs = read_model(path), parts(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, blob in blobs.items():
            archive.writestr(name, blob, zipfile.ZIP_STORED if name == "model.json" else zipfile.ZIP_DEFLATED)
    for read in (read_model, lambda _: read_weights(model), lambda _: with_variants(path, tmp_path / "b.uxnet", [])):
        with pytest.raises(ModelError, match=r"a\.uxnet: its part weights/0\.safetensors is compressed"):
            read(path)


def test_a_part_that_says_it_is_larger_than_the_file_is_refused(tmp_path):
    path = write(tmp_path / "a.uxnet")
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02")  # of the last part, in the zip's directory: both of its sizes stand from byte 20 on
    path.write_bytes(whole[: entry + 20] + (2**31).to_bytes(4, "little") * 2 + whole[entry + 28 :])
    with pytest.raises(ModelError, match=r"a\.uxnet: its parts are larger than the file itself"):
        read_model(path)


@pytest.mark.parametrize("shape", [[2**40], [2**62, 0, 2**62]])
def test_tensors_that_say_they_are_larger_than_their_part_are_refused(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    blob = len(header).to_bytes(8, "little") + header
    path = rebuild(tmp_path / "a.uxnet", parts(write(tmp_path / "a.uxnet")) | {"weights/0.safetensors": blob})
    stage = read_model(path).description["stages"][0] | {"sha256": hashlib.sha256(blob).hexdigest()}
    with pytest.raises(ModelError, match=r"a\.uxnet: the weights of stage 0 cannot be read"):
        read_weights(read_model(redescribed(path, stages=[stage])))


def test_memory_that_is_not_there_is_damage(tmp_path, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    model = read_model(write(tmp_path / "a.uxnet"))
    monkeypatch.setattr("uxnet.model.file.load_safetensors", exhausted)
    with pytest.raises(ModelError, match=r"a\.uxnet: .*damaged \(it asks for more memory than there is\)"):
        read_weights(model)


def test_a_newer_schema_says_to_update(tmp_path):
    path = redescribed(write(tmp_path / "a.uxnet"), schema=SCHEMA + 1)
    with pytest.raises(ModelError, match=r"a\.uxnet: written by a newer uxnet.*update"):
        read_model(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": None},
        {"schema": "1"},
        {"recipe": None},
        {"recipe": {"name": "x", "colour": 1}},
        {"recipe": []},
        {"labels": None},
        {"labels": {}},
        {"labels": []},
        {"channels": None},
        {"channels": 3},
        {"provenance": None},
        {"provenance": 3},
        {"stages": None},
        {"stages": 3},
        {"stages": []},
        {"stages": [{}]},
        {"stages": [{"weights": "weights/0.safetensors"}]},
        {"stages": [STAGE | {"weights": "weights/9.safetensors"}]},
        {"stages": [STAGE | {"weights": 5}]},
        {"stages": [STAGE | {"network": None}]},
        {"stages": [STAGE | {"parameters": "many"}]},
        {"stages": [STAGE, STAGE]},
        {"stages": [5]},
        {"name": 5},
        {"uxnet": None},
        {"channels": [1]},
        {"labels": {"background": 0, "foreground": [{"name": "a", "value": 1e999}]}},
        {"recipe": {"name": "x", "stages": [{"network": {"settings": {"widths": nested(100)}}}]}},
        {"provenance": {"dataset": "Tiny"}},
        {"provenance": {"split": {"train": 3}}},
        {"provenance": {"stages": {"training": {}}}},
        {"provenance": {"validation": {"dice": "good"}}},
        {"provenance": {"validation": {"classes": {"a": 10**400}}}},
        {"provenance": {"init_from": {"model": "a.uxnet"}}},
        {"provenance": {"converted": True}},
    ],
    ids=str,
)
def test_a_description_that_does_not_hold_is_refused_by_name(tmp_path, changes):
    path = redescribed(write(tmp_path / "a.uxnet"), **changes)
    with pytest.raises(ModelError, match=r"a\.uxnet"):
        read_weights(read_model(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": [{k: v for k, v in STAGE.items() if k != "in_channels"}]}, r"stages\[0\]\.in_channels is missing"),
        ({"stages": [STAGE | {"out_channels": 10**300}]}, r"stages\[0\]\.out_channels is a whole number of 997 bits, .* it is 3"),
        ({"stages": [STAGE | {"in_channels": True}]}, r"stages\[0\]\.in_channels is True, .* it is 1"),
        ({"stages": [STAGE | {"network": "unet"}]}, r"stages\[0\]\.network is 'unet', .* it is 'uxnet'"),
        ({"channels": []}, "no channels"),
        ({"channels": ["T1", "T2"]}, r"stages\[0\]\.in_channels is 1, .* it is 2"),
        ({"recipe": {"name": "x", "stages": [{"prepare": {"intensity": [{}, {}]}}]}}, "prepares 2 channels, and it names 1"),
        (
            {"recipe": {"name": "x", "stages": [{"inference": {"patch": [4096, 4096, 4096]}}]}},
            r"stages\[0\]\.inference\.patch: .*too large",
        ),
    ],
)
def test_a_description_whose_parts_do_not_fit_together_is_refused(tmp_path, changes, said):
    with pytest.raises(ModelError, match=rf"a\.uxnet: .*{said}"):
        read_model(redescribed(write(tmp_path / "a.uxnet"), **changes))


def test_weights_that_are_no_safetensors_are_refused_by_name(tmp_path):
    path = write(tmp_path / "a.uxnet")
    for blob in (b"not safetensors at all", b"", save_safetensors({"a": np.zeros(3)})[:-1]):
        stage = STAGE | {"sha256": hashlib.sha256(blob).hexdigest()}
        rebuild(path, parts(path) | {"weights/0.safetensors": blob})
        with pytest.raises(ModelError, match=r"a\.uxnet"):
            read_weights(read_model(redescribed(path, stages=[stage])))


def test_what_is_no_model_is_refused_by_name(tmp_path):
    (tmp_path / "text.uxnet").write_text("hello")
    rebuild(tmp_path / "other.uxnet", {"readme.txt": b"a zip, but no model"})
    rebuild(tmp_path / "list.uxnet", {"model.json": b"[]"})
    rebuild(tmp_path / "binary.uxnet", {"model.json": b"\xff\x00"})
    (tmp_path / "folder.uxnet").mkdir()
    for name in ("text", "other", "list", "binary", "folder", "missing"):
        with pytest.raises(ModelError, match=rf"{name}\.uxnet"):
            read_model(tmp_path / f"{name}.uxnet")


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = write(tmp_path / "a.uxnet")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_model(path, [weights()], recipe=RECIPE, labels=LABELS, channels=("T1",), provenance={"when": object()})
    with pytest.raises(ValueError, match="zip"):
        write_model(path, [], recipe=RECIPE, labels=LABELS, channels=("T1",), provenance={})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- variants: a stage's network in another form, declared and hashed ---


DICE = {"float32": 0.9, "int8": 0.89, "cases": 3}
VARIANT = {"engine": "openvino", "precision": "int8", "stage": 0, "window": [8, 8, 8], "files": {}, "weights_sha256": ""}


def variant(model, **changes):
    """What a variant of stage 0 declares, without what is filled in."""
    stage = model.description["stages"][0]
    return {"precision": "int8", "stage": 0, "window": list(model.recipe.stages[0].window), "weights_sha256": stage["sha256"]} | changes


@pytest.fixture
def varied(tmp_path):
    """A model file with an int8 variant."""
    plain = write(tmp_path / "plain.uxnet")
    with_variants(
        plain, tmp_path / "v.uxnet", [(variant(read_model(plain), dice={"float32": 0.9, "int8": 0.89, "cases": 3}), b"<xml/>", b"numbers")]
    )
    return tmp_path / "v.uxnet"


def test_a_variant_is_read_as_it_was_written(varied):
    model = read_model(varied)
    assert read_variant(model, "int8") == (b"<xml/>", b"numbers")
    (declared,) = variants(model)
    assert (declared["engine"], declared["dice"]) == ("openvino", DICE)
    for part, blob in (("xml", b"<xml/>"), ("bin", b"numbers")):
        assert declared["files"][part] == {"name": f"variants/0-int8.{part}", "sha256": hashlib.sha256(blob).hexdigest()}


def test_a_variant_leaves_all_else_byte_for_byte(varied):
    before, after = parts(varied.with_name("plain.uxnet")), parts(varied)
    assert after.keys() - before.keys() == {"variants/0-int8.xml", "variants/0-int8.bin"}
    assert all(after[name] == blob for name, blob in before.items() if name != "model.json")
    old, new = (json.loads(p["model.json"]) for p in (before, after))
    assert old.pop("variants") == []
    new.pop("variants")
    assert old == new


def test_a_newer_variant_takes_the_place_of_the_older(varied):
    model = read_model(varied)
    with_variants(varied, varied, [(variant(model, note="new"), b"<new/>", b"new")])
    assert read_variant(read_model(varied), "int8") == (b"<new/>", b"new")
    assert [one["note"] for one in variants(read_model(varied))] == ["new"]
    with_variants(varied, varied, [(variant(model, precision="float32"), b"<f/>", b"f")])
    assert read_variant(read_model(varied), "int8") == (b"<new/>", b"new")
    assert read_variant(read_model(varied), "float32") == (b"<f/>", b"f")
    assert sorted(p.name for p in varied.parent.iterdir()) == ["plain.uxnet", "v.uxnet"]


def test_a_model_without_variant_says_how_to_make_one(tmp_path):
    path = write(tmp_path / "a.uxnet")
    for model in (read_model(path), read_model(redescribed(path, variants=None))):
        assert variants(model) == []
        with pytest.raises(ModelError, match=r"a\.uxnet.*no int8 variant of stage 0.*uxnet quantise"):
            read_variant(model, "int8")


@pytest.mark.parametrize("part", ["xml", "bin"])
def test_a_variant_that_is_not_the_one_that_was_written_is_refused(varied, part):
    rebuild(varied, parts(varied) | {f"variants/0-int8.{part}": b"other"})
    with pytest.raises(ModelError, match=r"v\.uxnet.*sha256"):
        read_variant(read_model(varied), "int8")
    rebuild(varied, {name: blob for name, blob in parts(varied).items() if not name.endswith(part)})
    with pytest.raises(ModelError, match=r"v\.uxnet.*damaged"):
        read_variant(read_model(varied), "int8")


@pytest.mark.parametrize(
    ("changes", "said"), [({"weights_sha256": "0" * 64}, "other weights"), ({"window": [8, 8, 8]}, r"windows of .*8.*8.*8.*recipe")]
)
def test_a_variant_of_something_else_is_refused(varied, changes, said):
    with_variants(varied, varied, [(variant(read_model(varied), **changes), b"<xml/>", b"numbers")])
    with pytest.raises(ModelError, match=rf"v\.uxnet.*{said}"):
        read_variant(read_model(varied), "int8")


@pytest.mark.parametrize(
    "declared",
    [3, {}, "int8", [3], [{}], [{"precision": "int8", "stage": 0}], [VARIANT | {"dice": 0.9}], [VARIANT | {"stage": []}]],
    ids=str,
)
def test_variants_that_are_not_declared_as_expected_are_refused(varied, declared):
    with pytest.raises(ModelError, match=r"v\.uxnet"):
        read_variant(read_model(redescribed(varied, variants=declared)), "int8")


def test_a_damaged_model_takes_no_variant_and_stays(varied):
    whole = varied.read_bytes()
    model = read_model(varied)
    at = whole.index(weights()["stem.weight"].tobytes())
    varied.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    before = varied.read_bytes()
    with pytest.raises(ModelError, match=r"v\.uxnet.*damaged"):
        with_variants(varied, varied, [(variant(model), b"", b"")])
    assert varied.read_bytes() == before


def test_each_stage_has_a_variant_of_its_own(tmp_path):
    recipe = Recipe("two", stages=(Stage(), Stage(prior=Prior())))
    path = write(tmp_path / "a.uxnet", [weights(1), weights(2)], recipe)
    model = read_model(path)
    second = {"stage": 1, "weights_sha256": model.description["stages"][1]["sha256"]}
    with_variants(path, path, [(variant(model), b"<a/>", b"a"), (variant(model, **second), b"<b/>", b"b")])
    with_variants(path, path, [(variant(model, **second), b"<c/>", b"c")])
    model = read_model(path)
    assert [read_variant(model, "int8", stage) for stage in (0, 1)] == [(b"<a/>", b"a"), (b"<c/>", b"c")]
    for n in (0, 1):
        np.testing.assert_array_equal(read_weights(model, n)["stem.weight"], weights(n + 1)["stem.weight"])
