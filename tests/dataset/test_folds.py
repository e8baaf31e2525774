import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxnet.dataset.check import check_dataset
from uxnet.dataset.folds import PROTOCOLS, Fold, Gap, Split, gaps, make_split, read_fold, read_split, split_for, write_split
from uxnet.dataset.manifest import Case, Manifest, read_dataset
from uxnet.errors import DatasetError, UsageError
from uxnet.events import Warn
from uxnet.labels import Label, Labels


def a_manifest(persons, grouped_by="person"):
    """A dataset that exists only as names: {person: number of cases}."""
    cases = [
        Case(f"{person}_{n}", (Path(f"{person}_{n}.nii"),), None, f"{person}") for person, count in persons.items() for n in range(count)
    ]
    return Manifest(Path("tiny"), "tiny", "folders", tuple(cases), Labels((Label("a", 1),)), ("CT",), grouped_by)


def one_each(n):
    return a_manifest({f"p{k:02d}": 1 for k in range(n)})


def held_out(fold):
    return (*fold.validation, *fold.test)


# person -> (cases, classes that the first of them shows); at least ten persons, so that every protocol is possible
people = st.dictionaries(
    st.integers(0, 99).map(lambda n: f"p{n:02d}"), st.tuples(st.integers(1, 5), st.sets(st.sampled_from("ABCD"))), min_size=10, max_size=25
)


@given(people, st.sampled_from(PROTOCOLS), st.integers(0, 2**31), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_what_holds_for_every_split(persons, protocol, seed, random):
    manifest = a_manifest({name: count for name, (count, _) in persons.items()})
    presence = {f"{name}_0": classes for name, (_, classes) in persons.items()}
    split = make_split(manifest, presence, protocol=protocol, seed=seed)
    everyone = sorted(case.name for case in manifest.cases)
    for fold in split.folds:
        assert sorted(fold.train + held_out(fold)) == everyone
        assert fold.train
        assert fold.validation
        assert bool(fold.test) == (protocol == "5x80-10-10")
        whose = [{name.split("_")[0] for name in part} for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, whose)) == len(set.union(*whose)) == len(persons)
    assert sorted(name for fold in split.folds for name in held_out(fold)) == everyone
    shuffled = list(manifest.cases)
    random.shuffle(shuffled)
    assert make_split(replace(manifest, cases=tuple(shuffled)), presence, protocol=protocol, seed=seed) == split


@given(st.dictionaries(st.integers(0, 99).map(str), st.integers(1, 6), min_size=5, max_size=30), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_fifths_are_even_to_within_one_person(persons, seed):
    manifest = a_manifest(persons)
    split = make_split(manifest, {case.name: {"a"} for case in manifest.cases}, seed=seed)
    sizes = [len(fold.validation) for fold in split.folds]
    assert max(sizes) - min(sizes) <= max(persons.values())


@given(st.integers(5, 30), st.data())
@settings(max_examples=40, deadline=None)
def test_a_rare_class_is_in_every_fold_if_five_persons_show_it(n, data):
    manifest = one_each(n)
    rare = data.draw(st.sets(st.sampled_from([case.name for case in manifest.cases]), min_size=5))
    presence = {case.name: {"common"} | ({"rare"} if case.name in rare else set()) for case in manifest.cases}
    split = make_split(manifest, presence)
    assert all(set(fold.validation) & rare for fold in split.folds)
    assert all(set(fold.train) & rare for fold in split.folds)
    assert gaps(split, presence) == ()
    sizes = [len(fold.validation) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1


def test_classes_that_overlap_are_all_in_every_fold():
    shows = ["AB", "AB", "A", "A", "A", "B", "B", "BC", "C", "C", "C", "CA", "", ""]
    manifest = one_each(len(shows))
    presence = {case.name: set(classes) for case, classes in zip(manifest.cases, shows, strict=True)}
    for seed in range(5):
        assert gaps(make_split(manifest, presence, seed=seed), presence) == ()


def test_a_class_in_ten_persons_is_in_every_half():
    manifest = one_each(30)
    presence = {case.name: {"common"} | ({"rare"} if n < 10 else set()) for n, case in enumerate(manifest.cases)}
    assert gaps(make_split(manifest, presence, protocol="5x80-10-10"), presence) == ()


def test_a_class_in_too_few_persons_leaves_gaps():
    manifest = one_each(10)
    presence = {case.name: {"common"} | ({"rare"} if n < 3 else set()) for n, case in enumerate(manifest.cases)}
    missing = gaps(make_split(manifest, presence), presence)
    assert len(missing) == 2
    assert {(gap.part, gap.class_name) for gap in missing} == {("validation", "rare")}


def test_one_person_with_most_cases_leaves_enough_for_the_others():
    manifest = a_manifest({"big": 60, **{f"p{k}": 1 for k in range(9)}})
    for protocol in PROTOCOLS:
        split = make_split(manifest, {}, protocol=protocol)
        assert all(fold.validation for fold in split.folds)
        assert all(fold.test for fold in split.folds) == (protocol == "5x80-10-10")


def test_seeds_differ():
    manifest = one_each(20)
    assert make_split(manifest, {}, seed=1).folds != make_split(manifest, {}, seed=2).folds


@pytest.mark.parametrize(("protocol", "persons"), [("5x80-20", 4), ("5x80-10-10", 9)])
def test_too_few_persons(protocol, persons):
    with pytest.raises(DatasetError, match=f"{persons} persons are too few for {protocol}, which needs {persons + 1}"):
        make_split(one_each(persons), {}, protocol=protocol)
    with pytest.raises(DatasetError, match="4 cases are too few"):
        make_split(replace(one_each(4), grouped_by="case"), {})


def test_an_unknown_protocol():
    with pytest.raises(DatasetError, match="'3x70-30' is no protocol"):
        make_split(one_each(9), {}, protocol="3x70-30")


def test_written_and_read_again(tmp_path):
    manifest = one_each(12)
    for protocol in PROTOCOLS:
        split = make_split(manifest, {}, protocol=protocol, seed=3)
        write_split(tmp_path / "split.json", split)
        assert read_split(tmp_path / "split.json", manifest) == split


TRAIN, VALIDATION = ["p00_0", "p01_0"], ["p02_0"]


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([], "folds"),
        ("x", "folds"),
        ([["p00_0"]], "fold 0: .*train"),
        ([{"train": TRAIN, "validation": VALIDATION}, {"train": TRAIN, "validation": []}], "fold 1: .*validation.* empty"),
        ([{"train": TRAIN, "validation": [3]}], "list of the names"),
        ([{"train": TRAIN, "validation": ["nobody"]}], "case nobody in 'validation' cannot be found"),
        ([{"train": TRAIN, "validation": ["p01_0"]}], "case p01_0 would be in 'train' and in 'validation'"),
        ([{"train": TRAIN, "validation": VALIDATION, "test": ["p02_0"]}], "case p02_0 would be in 'validation' and in 'test'"),
        ([{"train": [*TRAIN, "p00_0"], "validation": VALIDATION}], "more than once in 'train': case p00_0"),
        ([{"train": TRAIN, "validation": ["p00_1"]}], "p00_0, p00_1 are of the same persons"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, folds, message):
    (tmp_path / "split.json").write_text(json.dumps({"folds": folds}))
    with pytest.raises(DatasetError, match=message) as caught:
        read_split(tmp_path / "split.json", a_manifest({"p00": 2, "p01": 1, "p02": 1}))
    assert str(caught.value).startswith(str(tmp_path / "split.json"))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(DatasetError, match=r"split\.json: cannot be read .* or remove it to make a new split"):
        read_split(tmp_path / "split.json", one_each(5))
    (tmp_path / "split.json").write_text("[1]")
    with pytest.raises(DatasetError, match="a JSON object"):
        read_split(tmp_path / "split.json", one_each(5))
    (tmp_path / "split.json").write_text(json.dumps({"version": 2, "folds": [{"train": TRAIN, "validation": VALIDATION}]}))
    with pytest.raises(DatasetError, match="version 2"):
        read_split(tmp_path / "split.json", one_each(5))


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"folds": [{"train": TRAIN, "validation": VALIDATION}]}))
    split = read_split(tmp_path / "split.json", one_each(5))
    assert split == Split("own", 0, "person", (Fold(tuple(TRAIN), tuple(VALIDATION), ()),))


def test_a_split_is_made_once_and_read_from_then_on(tmp_path):
    path, manifest, heard = tmp_path / "runs/split.json", one_each(6), []
    presence = {case.name: {"common"} for case in manifest.cases}
    made = split_for(manifest, path, presence, seed=1, report=heard.append)
    assert heard == []
    assert split_for(manifest, path, presence, seed=2) == made
    with pytest.raises(DatasetError, match="5x80-20 split, but 5x80-10-10"):
        split_for(manifest, path, presence, protocol="5x80-10-10")
    split_for(one_each(7), path, presence, report=heard.append)
    assert [type(event) for event in heard] == [Warn]
    assert "case p06_0" in heard[0].message


def test_gaps_are_told(tmp_path):
    heard = []
    manifest = one_each(5)
    split = split_for(manifest, tmp_path / "split.json", {"p00_0": {"rare"}}, report=heard.append)
    (where,) = [k for k, fold in enumerate(split.folds) if "p00_0" in fold.validation]
    assert Gap(where, "train", "rare") in gaps(split, {"p00_0": {"rare"}})
    assert "'rare'" in heard[0].message
    assert f"train of fold {where}" in heard[0].message


def test_hippocampus_keeps_both_sides_of_a_person_together(data_dir):
    manifest = read_dataset(data_dir / "hippocampus")
    presence = check_dataset(manifest).class_presence()
    person_of = {case.name: case.person for case in manifest.cases}
    for protocol in PROTOCOLS:
        split = make_split(manifest, presence, protocol=protocol)
        assert split.grouped_by == "person"
        assert gaps(split, presence) == ()
        assert {len(held_out(fold)) for fold in split.folds} == {41, 42}
        for fold in split.folds:
            parts = [{person_of[name] for name in part} for part in (fold.train, fold.validation, fold.test)]
            assert max(Counter(person for part in parts for person in part).values()) == 1


def test_a_fold_is_read_without_its_dataset(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(
        json.dumps({"folds": [{"train": ["a"], "validation": ["c", "b"]}, {"train": ["a"], "validation": ["b"], "test": ["c"]}]})
    )
    assert [read_fold(path, k).scored for k in (0, 1)] == [("b", "c"), ("c",)]
    with pytest.raises(UsageError, match=r"split\.json: it has the folds 0 to 1, not 2"):
        read_fold(path, 2)
    path.write_text("{}")
    with pytest.raises(DatasetError, match=r'split\.json: a split has a list of "folds"'):
        read_fold(path, 0)
