"""The box of models: what is in it belongs together, and words mean what they should."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from made_cards import CARD, fill
from made_heads import WHOLE

import uxnet
from uxnet.errors import InputError, ModelError, UsageError
from uxnet.io import sha256
from uxnet.model.catalogue import BOX, MOST_BYTES, Card, Whole, choose, model_file, names, read_card, resolve, write_card
from uxnet.model.file import read_model
from uxnet.recipe import from_plain

FACTS = sorted((Path(__file__).parents[2] / "results" / "models").glob("*.facts.toml"))


def test_every_model_in_the_box_has_its_own_card():
    """True of an empty box, too; every file that is dropped in is held to it."""
    assert {path.stem for path in BOX.glob("*.toml")} == set(names())
    for name in names():
        card, path = read_card(name), model_file(name)
        assert card.sha256 == sha256(path)
        assert path.stat().st_size <= MOST_BYTES
        assert read_model(path).labels.classes == card.structures
        assert "medical device" in card.not_for
        assert card.licence
        assert card.limits
        assert card.made_by
        assert {score.structure for score in card.evaluation.scores} == {*card.structures, "mean"}
        if card.whole:
            assert set(card.whole.sides) <= set(read_card(card.whole.localiser).structures)


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.name)
def test_the_facts_of_the_cards_are_as_expected(path):
    facts = tomllib.loads(path.read_text(encoding="utf-8"))
    known = set(Card.__dataclass_fields__) | {"failures"}
    assert set(facts) <= known
    if "whole" in facts:
        whole = from_plain(Whole, facts["whole"])
        assert (path.parent / f"{whole.localiser}.facts.toml").is_file()


def test_a_card_is_read_as_it_was_written(tmp_path, tiny_model):
    card = fill(tmp_path, "tiny", tiny_model())
    assert names(tmp_path) == ["tiny"]
    assert read_card("tiny", tmp_path) == card


def test_a_card_that_is_not_the_files_is_refused(tmp_path, tiny_model):
    fill(tmp_path, "tiny", tiny_model())
    fill(tmp_path, "other", tiny_model(2))
    (tmp_path / "other.uxnet").write_bytes((tmp_path / "tiny.uxnet").read_bytes())
    with pytest.raises(ModelError, match=r"other\.toml: it is the card of another file than other\.uxnet"):
        read_card("other", tmp_path)
    (tmp_path / "other.toml").unlink()
    with pytest.raises(ModelError, match=r"other\.uxnet: its card other\.toml is missing beside it"):
        read_card("other", tmp_path)
    (tmp_path / "other.toml").write_text("title = 3")
    with pytest.raises(ModelError, match=r"other\.toml: not as a card should be \(title: expected a word in quotes, got 3\)"):
        read_card("other", tmp_path)
    (tmp_path / "other.toml").write_text('title = "a"')
    with pytest.raises(ModelError, match=r"not as a card should be \(description: is missing\)"):
        read_card("other", tmp_path)
    write_card(tmp_path / "tiny.toml", replace(CARD, schema=7))
    with pytest.raises(ModelError, match=r"tiny\.toml: a card of schema 7"):
        read_card("tiny", tmp_path)


def test_a_word_is_a_path_before_it_is_a_name(tmp_path, tiny_model, monkeypatch):
    box = tmp_path / "box"
    fill(box, "tiny", tiny_model())
    monkeypatch.chdir(tmp_path)
    file, scan = Path("some.uxnet"), Path("scan.nii.gz")
    chosen = choose([Path("tiny"), file, scan], box)
    assert chosen.models == (box / "tiny.uxnet", file)
    assert chosen.rest == (scan,)
    assert chosen.whole is None
    assert resolve(Path("tiny"), box) == box / "tiny.uxnet"
    assert resolve(file, box) == file
    with pytest.raises(UsageError, match=r"there is no model 'tinny' in .*box \(tiny\); give one of them, or a \.uxnet file"):
        resolve(Path("tinny"), box)
    with pytest.raises(InputError, match=r"no model: there is no file tinny, and no model of that name in .*box \(tiny\)"):
        choose([Path("tinny"), scan], box)

    Path("tiny").mkdir()
    for call in (lambda: choose([Path("tiny"), scan], box), lambda: resolve(Path("tiny"), box)):
        with pytest.raises(InputError, match=r"a folder tiny is here and is taken instead of the model of that name"):
            call()
    # With another model there is no doubt: it is to be segmented.
    assert choose([file, Path("tiny")], box).rest == (Path("tiny"),)


def test_a_path_means_what_the_name_does(tmp_path, tiny_model, monkeypatch):
    """Else a whole head would be segmented as a crop, without a word."""
    box = tmp_path / "box"
    fill(box, "thing", tiny_model(), whole=WHOLE)
    monkeypatch.chdir(tmp_path)
    scan = Path("scan.nii.gz")
    by_name = choose([Path("thing"), scan], box)
    assert by_name.whole == WHOLE
    assert choose([box / "thing.uxnet", scan], box) == by_name
    for path in (Path("box/thing.uxnet"), box / ".." / "box" / "thing.uxnet"):
        assert choose([path, scan], box).whole == WHOLE
    (box / "thing.toml").unlink()
    with pytest.raises(ModelError, match=r"its card thing\.toml is missing beside it"):
        choose([box / "thing.uxnet", scan], box)


def test_the_card_beside_any_file_counts_if_it_is_its_own(tmp_path, tiny_model):
    elsewhere, scan = tmp_path / "elsewhere", Path("scan.nii.gz")
    fill(elsewhere, "thing", tiny_model(), whole=WHOLE)
    chosen = choose([elsewhere / "thing.uxnet", scan])
    assert (chosen.whole, chosen.box) == (WHOLE, elsewhere)  # its localiser is where it is
    for another in ("learning_rate = 1\n", (elsewhere / "thing.toml").read_text().replace('sha256 = "', 'sha256 = "0')):
        (elsewhere / "thing.toml").write_text(another)
        assert choose([elsewhere / "thing.uxnet", scan]).whole is None
    with pytest.raises(UsageError, match=r"name at least one \.uxnet file"):
        choose([scan])


def test_python_takes_a_name_too(tmp_path, tiny_model, monkeypatch):
    fill(tmp_path, "tiny", tiny_model())
    monkeypatch.setattr("uxnet.model.catalogue.BOX", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert uxnet.load_model("tiny", device="cpu").labels.classes == ("bright", "dark")
    with pytest.raises(UsageError, match=r"there is no model 'tinny' in the box \(tiny\)"):
        uxnet.load_model("tinny")


def test_the_folder_of_a_training_run_means_its_model(tmp_path, tiny_model):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.uxnet").write_bytes(tiny_model().read_bytes())
    with pytest.raises(UsageError):
        choose([run, tmp_path])  # a folder of scans that somebody put a model into
    (run / "recipe.toml").write_text("")
    assert choose([run, tmp_path]).models == (run / "model.uxnet",)
    assert choose([run, tmp_path]).rest == (tmp_path,)
    assert resolve(run) == run / "model.uxnet"
