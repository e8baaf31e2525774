"""`uxnet synthesise`: from label maps to a dataset that is inspected and trained on; what it says and refuses."""

from commands import run
from label_maps import head_folder

from uxnet.recipe import recipe_to_toml


def test_from_label_maps_to_a_model(tmp_path, tiny_recipe, capsys):
    root, out = head_folder(tmp_path / "heads", ("a", "b", "c", "d", "e")), tmp_path / "out"
    command = ["synthesise", root, "-o", out, "--merge", "to_two", "--images-per-map", 2, "--spacing", 1.5, "--workers", 1]
    assert run(*command) == 0
    assert "10 images made; written:" in capsys.readouterr().out
    assert run(*command) == 0
    assert "0 images made, 10 were there" in capsys.readouterr().out
    assert run("inspect", out) == 0
    assert "10 cases of 5 persons, 2 classes" in capsys.readouterr().out
    (tmp_path / "tiny.toml").write_text(recipe_to_toml(tiny_recipe))
    trained = ["train", out, "--recipe", tmp_path / "tiny.toml", "-o", tmp_path / "run", "--device", "cpu", "--workers", 0]
    assert run(*trained, "--set", "training.steps=2", "--set", "training.validate_every=2") == 0
    assert (tmp_path / "run/model.uxnet").is_file()


def test_a_bad_map_is_named_and_the_code_is_1(tmp_path, capsys):
    root = head_folder(tmp_path / "heads")
    (root / "labelsTr/a.nii.gz").write_bytes(b"damaged")
    words = ["--label", "left hippocampus=17", "--label", "right hippocampus=53", "--set", "noise=0", "--workers", "1"]
    assert run("synthesise", root, "-o", tmp_path / "out", "--images-per-map", "1", *words) == 1
    said = capsys.readouterr().out
    assert "failed: a: " in said
    assert "1 images made" in said


def test_what_is_refused(tmp_path, capsys):
    root = head_folder(tmp_path / "heads")
    for more, code, said in (
        (["--merge", "to_three"], 1, "no such table"),
        (["--merge", "to_two", "--label", "a=2"], 2, "not by both"),
        (["--label", "a"], 2, "write NAME=VALUE"),
        (["--merge", "to_two", "--set", "loud=1"], 2, "with one of rotation_deg"),
        (["--merge", "to_two", "--spacing", "-1"], 2, "above 0 mm"),
        (["--merge", "to_two", "--images-per-map", "0"], 2, "between 1 and"),
        (["--label", "left=16", "--mirror", "yes"], 1, "on the wrong side"),
    ):
        assert run("synthesise", root, "-o", tmp_path / "out", *more, "--workers", "1") == code, more
        assert said in capsys.readouterr().err, more
    assert run("synthesise", tmp_path / "none", "-o", tmp_path / "out") == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
