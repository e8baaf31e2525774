"""Networks compared: against hand-computed examples, scipy, and what must not change anything."""

import csv
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_records import made_record
from scipy import stats

from uxnet.errors import InputError
from uxnet.evaluation.compare import compare
from uxnet.evaluation.compare_text import markdown_table, standing_rows, to_dict, to_markdown, verdict, write_csv
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.paired import holm, signed_rank_p
from uxnet.evaluation.scores import Scores, differences, read_scores


def scores(name, dices, *, hd95=None, classes=("a",), persons=None, names=None):
    """A network with these Dices: one a case, or one a case and class."""
    names = names or [f"case_{n:02d}" for n in range(len(dices))]
    rows = [d if isinstance(d, list | tuple) else [d] * len(classes) for d in dices]
    cases = {
        case: {
            c: {"dice": d, "hd95_mm": (None if d is None else 10 * (1 - d)) if hd95 is None else hd95[n], "nsd": d}
            for c, d in zip(classes, row, strict=True)
        }
        for n, (case, row) in enumerate(zip(names, rows, strict=True))
    }
    return Scores(name, tuple(classes), cases, 1.0, "skip", persons or {})


def noisy(name, mean, seed, n=30):
    return scores(name, np.clip(np.random.default_rng(seed).normal(mean, 0.03, n), 0, 1).round(6).tolist())


# ---- the figures


def test_p_values_are_those_of_scipy():
    a, b = noisy("uxnet", 0.8, 0), noisy("other", 0.79, 1)
    found = compare([a, b]).against("other")
    column = [[v["a"]["dice"] for v in s.cases.values()] for s in (a, b)]
    assert found.p == pytest.approx(stats.wilcoxon(*column).pvalue)
    assert found.p_holm == found.p
    assert found.difference.mean == pytest.approx(np.median(np.subtract(*column)))


def test_a_small_example_by_hand():
    """Five cases, all better: the exact two-sided p is 2 / 2^5."""
    found = compare([scores("uxnet", [0.9, 0.8, 0.7, 0.6, 0.5]), scores("b", [0.8, 0.6, 0.4, 0.2, 0.0])])
    test = found.against("b")
    assert (test.n, test.unequal, test.effect) == (5, 5, 1.0)
    assert test.p == pytest.approx(2 / 32)
    assert found.standing("uxnet").interval.mean == pytest.approx(0.7)
    assert found.standing("b").interval.mean == pytest.approx(0.4)
    assert (found.standing("uxnet").rank, found.standing("b").rank) == (1, 2)
    assert any("too few cases" in note for note in found.notes)


# ---- what must not matter, and what must


def test_the_order_of_networks_and_cases_does_not_matter():
    networks = [noisy("uxnet", 0.8, 0), noisy("x", 0.82, 1), noisy("y", 0.7, 2)]
    first = to_dict(compare(networks))
    key = json.dumps
    for order in itertools.permutations(networks):
        turned = [Scores(s.name, s.classes, dict(reversed(s.cases.items())), 1.0, "skip") for s in order]
        again = to_dict(compare(turned))
        assert again["verdict"] == first["verdict"]
        assert sorted(map(key, again["networks"])) == sorted(map(key, first["networks"]))
        assert sorted(map(key, again["tests"])) == sorted(map(key, first["tests"]))


def test_turning_the_question_round_turns_the_signs():
    a, b = noisy("uxnet", 0.8, 0), noisy("b", 0.77, 1)
    one, other = compare([a, b]), compare([a, b], "b")
    for metric in METRICS:
        there, back = one.against("b", metric), other.against("uxnet", metric)
        assert (there.p, there.effect) == pytest.approx((back.p, -back.effect))
        assert there.difference.mean == pytest.approx(-back.difference.mean)
        assert there.favours(0.05) == -back.favours(0.05)


def test_a_smaller_distance_is_better():
    a = scores("uxnet", [0.5] * 8, hd95=[1, 2, 3, 4, 5, 6, 7, 8])
    b = scores("b", [0.5] * 8, hd95=[2, 4, 6, 8, 10, 12, 14, 16])
    found = compare([a, b])
    assert (found.standing("uxnet", "hd95_mm").rank, found.standing("b", "hd95_mm").rank) == (1, 2)
    test = found.against("b", "hd95_mm")
    assert (test.effect, test.favours(0.05)) == (1.0, 1)
    assert test.difference.mean == -4.5
    assert found.standing("uxnet", "hd95_mm").mean_rank == 1


def test_equal_networks_share_the_rank_and_have_p_1():
    found = compare([scores("uxnet", [0.5, 0.7]), scores("b", [0.7, 0.5]), scores("c", [0.5, 0.7]), scores("d", [0.1, 0.1])])
    assert [found.standing(n).rank for n in "bcd"] == [1, 1, 4]
    assert found.standing("uxnet").rank == 1
    test = found.against("c")
    assert (test.p, test.p_holm, test.effect, test.unequal) == (1.0, 1.0, None, 0)
    assert [found.standing(n).mean_rank for n in ("uxnet", "b", "c", "d")] == pytest.approx([2, 2, 2, 4])
    assert "have the same highest mean Dice" in verdict(found)[0]


def test_only_cases_that_both_have_are_paired():
    a = scores("uxnet", [0.9, 0.8, 0.7], names=["p", "q", "r"])
    b = scores("b", [0.5, 0.6], names=["r", "q"])
    c = scores("c", [0.1, 0.2, 0.3], names=["p", "q", "r"])
    found = compare([a, b, c])
    assert found.n == 2
    assert found.against("b").n == 2
    assert found.against("c").n == 3
    assert found.standing("c").interval.mean == pytest.approx(0.25)
    assert found.notes[0].startswith("Means and ranks are over the 2 cases that all networks have; more have uxnet (3), c (3)")
    with pytest.raises(InputError, match="no test case in common"):
        compare([a, scores("z", [0.1], names=["elsewhere"])])


def test_what_does_not_count_is_in_no_pair_and_no_family():
    classes = ("a", "b")
    one = scores("uxnet", [(0.9, None), (0.8, None), (0.7, None)], classes=classes)
    two = scores("x", [(0.5, None), (0.5, None), (0.6, None)], classes=classes)
    found = compare([one, two])
    assert (found.against("x", "dice", "a").n, found.against("x", "dice", "b").n) == (3, 0)
    empty = found.against("x", "dice", "b")
    assert (empty.p, empty.p_holm, empty.effect, empty.difference.mean) == (None, None, None, None)
    # One test is left in the family of the classes.
    assert found.against("x", "dice", "a").p_holm == found.against("x", "dice", "a").p
    assert found.standing("uxnet", "dice", "b").n == 0
    assert found.standing("uxnet").interval.mean == pytest.approx(0.8)
    assert "| - |" in to_markdown(found)


def test_whoever_finds_nothing_where_nothing_is_beats_whoever_does():
    """In 10 of 12 cases "b" is not there, and x finds it: 1 against 0 in a pair, though uxnet's own mean does not count them."""
    classes = ("a", "b")
    one = scores("uxnet", [(0.8, None)] * 10 + [(0.8, 0.4)] * 2, classes=classes, hd95=[None] * 12)
    two = scores("x", [(0.8, 0.0)] * 10 + [(0.8, 0.5)] * 2, classes=classes, hd95=[None] * 12)
    three = scores("y", [(0.8, None)] * 10 + [(0.8, 0.4)] * 2, classes=classes, hd95=[None] * 12)
    found = compare([one, two, three])
    for metric in ("dice", "nsd"):
        single, mean = found.against("x", metric, "b"), found.against("x", metric)
        assert (single.n, single.unequal, single.favours(0.05)) == (12, 12, 1)
        assert (mean.n, mean.favours(0.05)) == (12, 1)
        assert mean.difference.mean == pytest.approx(0.5)  # (0.8 + 1) / 2 against (0.8 + 0) / 2
        # Where neither finds it, nothing counts.
        assert (found.against("y", metric, "b").n, found.against("y", metric).unequal) == (2, 0)
        assert found.standing("uxnet", metric, "b").mean_rank == pytest.approx((10 * 1.5 + 2 * 2.5) / 12)
    assert found.against("x", "hd95_mm", "b").n == 0
    assert (found.standing("uxnet", "dice", "b").n, found.standing("x", "dice", "b").n) == (2, 12)
    turned = compare([one, two, three], "x")
    assert turned.against("uxnet").effect == -found.against("x").effect


def test_the_tables_say_over_how_many_cases_a_mean_is():
    one = scores("uxnet", [None, None, 0.7, 0.9], hd95=[None, None, 3.0, 1.0])
    two = scores("b", [0.0, None, 0.9, 0.9], hd95=[None, None, 1.0, 1.0])
    head, rows = standing_rows(compare([one, two]))
    assert [dict(zip(head, row, strict=True))["n"] for row in rows] == ["2", "3"]
    assert rows[1][head.index("HD95, mm")].endswith(", n = 2")
    assert not any("n =" in cell for cell in rows[0])
    first = verdict(compare([one, two]))[0]
    assert first == "uxnet has the highest mean Dice, 0.8000, over 2 cases."
    first = verdict(compare([scores("uxnet", [0.0, None, 0.9, 0.9]), scores("b", [None, None, 0.7, 0.9])]))[0]
    assert first == "b has the highest mean Dice, 0.8000, over 2 cases; uxnet has 0.6000 over 3 cases and is number 2 of 2."


def test_a_network_without_a_mean_has_no_rank():
    found = compare([scores("uxnet", [None, None]), scores("b", [0.0, 0.0])])
    assert verdict(found)[0] == "b has the highest mean Dice, 0.0000, over 2 cases; uxnet has none, since no case counts for it."
    assert "None" not in to_markdown(found)


def test_holm_goes_over_networks_and_for_classes_over_both():
    classes = ("a", "b")
    rng = np.random.default_rng(4)
    networks = [
        scores(n, rng.uniform(0.4 + s, 0.9 + s, (12, 2)).round(6).tolist(), classes=classes)
        for n, s in (("uxnet", 0.08), ("x", 0), ("y", 0.03))
    ]
    found = compare(networks)
    mean = [t for t in found.tests if (t.metric, t.class_name) == ("dice", "mean")]
    single = [t for t in found.tests if t.metric == "dice" and t.class_name != "mean"]
    assert [t.p_holm for t in mean] == pytest.approx(holm([t.p for t in mean]))
    assert len(single) == 4
    assert [t.p_holm for t in single] == pytest.approx(holm([t.p for t in single]))


def test_by_person_each_counts_once():
    persons = {f"case_{n:02d}": f"person {n // 2}" for n in range(12)}
    dices = np.random.default_rng(5).uniform(0.5, 0.9, 12).round(6)
    a = scores("uxnet", dices.tolist(), persons=persons)
    b = scores("b", (dices - 0.1).tolist(), persons=persons)
    by_case, by_person = compare([a, b]), compare([a, b], by="person")
    assert (by_case.against("b").n, by_person.against("b").n) == (12, 6)
    assert by_person.against("b").p == pytest.approx(2 / 2**6)
    assert by_person.standing("uxnet").interval.mean == pytest.approx(dices.mean())
    assert any("12 cases are of 6 persons" in note for note in by_case.notes)
    assert not any("persons" in note for note in by_person.notes)
    with pytest.raises(InputError, match="no record says whose case"):
        compare([scores("uxnet", [0.1]), scores("b", [0.1])], by="person")


def test_persons_are_paired_over_the_same_cases():
    """In one of a person's two cases the structure is not there; the other network finds it."""
    persons = {f"case_{n:02d}": f"person {n // 2}" for n in range(12)}
    ours = [x for n in range(6) for x in (0.8 + n / 100, 0.0)]
    theirs = [x for n in range(6) for x in (0.7 + n / 100, None)]
    found = compare([scores("uxnet", ours, persons=persons), scores("b", theirs, persons=persons)], by="person")
    test = found.against("b")
    assert (test.n, test.effect) == (6, -1.0)
    assert test.difference.mean == pytest.approx((0.8 + 0.0) / 2 - (0.7 + 1.0) / 2)
    assert found.standing("uxnet").mean_rank == 2
    assert found.standing("b").interval.mean == pytest.approx(0.725)  # its own mean is over all that count for it


# ---- words


def said(*networks, **more):
    return " ".join(verdict(compare(networks, **more)))


def test_the_verdict_names_the_winner_whoever_it_is():
    good, bad, same = noisy("uxnet", 0.8, 0), noisy("bad", 0.6, 1), noisy("same", 0.8, 2)
    assert "uxnet has the highest mean Dice" in said(good, bad)
    assert "uxnet wins against every other network" in said(good, bad)
    lost = said(noisy("uxnet", 0.6, 3), noisy("winner", 0.8, 4), bad)
    assert "winner has the highest mean Dice" in lost
    assert "uxnet has 0." in lost
    assert "significantly worse than winner" in lost
    assert "winner wins against uxnet: the difference is significant (p < 0.0001)" in lost
    undecided = said(good, same, bad)
    assert "not to be told from same" in undecided
    assert "wins against every" not in undecided
    if "uxnet has the highest" in undecided:
        assert "uxnet cannot be said to win against same, though its mean is the highest" in undecided
    else:
        assert "is not significant" in undecided


def test_who_is_best_in_distance_is_said_beside():
    dices = np.linspace(0.6, 0.9, 12).round(6)
    near, far = np.linspace(2, 4, 12).tolist(), np.linspace(3, 6, 12).tolist()
    words = said(scores("uxnet", dices.tolist(), hd95=far), scores("b", (dices - 0.1).tolist(), hd95=near))
    assert "In Dice, uxnet wins against every other network." in words
    assert "The lowest mean HD95, 3.00 mm, is that of b, significantly better than uxnet." in words
    assert "The highest mean NSD, 0.7500, is that of uxnet." in words


def test_a_mean_that_a_few_cases_decide_is_no_win():
    """In 19 of 20 cases uxnet is a little better, in one the other by far."""
    base = np.linspace(0.5, 0.9, 20).round(6)
    other = base - np.linspace(0.001, 0.002, 20).round(6)
    base[3] = 0.0
    words = said(scores("uxnet", base.tolist()), scores("b", other.tolist()))
    assert "b has the higher mean Dice, but in most cases uxnet is significantly the better" in words
    assert "wins" not in words


def test_one_network_alone_has_means_and_no_tests():
    found = compare([scores("b", [0.5, 0.7])])
    assert found.reference == "b"
    assert found.tests == ()
    assert "no other network" in verdict(found)[0]
    assert "against each other" not in to_markdown(found)


@pytest.mark.parametrize(
    ("others", "against", "words"),
    [
        ([scores("b", [0.5], classes=("x",))], None, "other classes"),
        ([Scores("b", ("a",), {"case_00": {"a": dict.fromkeys(METRICS, 0.5)}}, 2.0, "skip")], None, "tolerance of 2 mm"),
        ([scores("b", [0.5])], "c", "no network 'c'"),
        ([replace(scores("b", [0.5]), references={"case_00": {"a": 1.3}})], None, "case_00: b and uxnet .* different references.* 1.3 and"),
        ([scores("uxnet", [0.5])], None, "same name"),
    ],
)
def test_what_cannot_be_compared_is_refused(others, against, words):
    with pytest.raises(InputError, match=words):
        compare([replace(scores("uxnet", [0.5]), references={"case_00": {"a": 1.2}}), *others], against)


def test_tables_and_csv(tmp_path):
    networks = [
        scores("uxnet", [(0.9, 0.7), (0.8, 0.6)], classes=("left", "right|side")),
        scores("b", [(0.5, 0.5)] * 2, classes=("left", "right|side")),
    ]
    found = compare(networks)
    text = to_markdown(found)
    assert "| uxnet | 1 (1.00) | 2 | 0.7500 (" in text
    assert "right\\|side" in text
    assert text.index("| uxnet |") < text.index("| b | 2")
    assert markdown_table(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | ---: |\n| 1 | 2 |\n"
    write_csv(tmp_path / "all.csv", found)
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 2 * 3 * 3
    (row,) = [r for r in rows if (r["metric"], r["class"], r["network"]) == ("dice", "left", "b")]
    assert float(row["mean"]) == 0.5
    assert float(row["median_difference"]) == pytest.approx(0.35)
    assert all(r["p"] == "" for r in rows if r["network"] == "uxnet")
    assert json.loads(json.dumps(to_dict(found)))["tests"][0]["other"] == "b"


# ---- files


def record(name, fold, cases, **more):
    """A record of one class that says no more than it must."""
    rows = [{"case": c, "person": f"of {c}", "classes": {"a": dict.fromkeys(METRICS, v)}} for c, v in cases.items()]
    made = made_record(name, fold, {}, settings={}) | {"cases": rows}
    return {key: value for key, value in made.items() if key not in ("precision", "threads", "machine", "versions", "curve")} | more


def evaluated(cases, failures=(), **more):
    """A file of uxnet evaluate."""
    rows = [{"case": c, "classes": {"a": dict.fromkeys(METRICS, v)}} for c, v in cases.items()]
    return {"settings": {"tolerance_mm": 1.0, "empty": "skip"}, "classes": {"a": {}}, "cases": rows, "failures": list(failures)} | more


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_records_of_all_folds_are_put_together(tmp_path):
    for n, fold in enumerate(({"p1": 0.5, "p2": 0.6}, {"q1": 0.7})):
        write(tmp_path / "cv/records" / f"uxnet-fold{n}.json", record("uxnet", n, fold))
        write(tmp_path / "cv/records" / f"b-fold{n}.json", record("b", n, {c: v - 0.1 for c, v in fold.items()}))
    (tmp_path / "cv/records/.b-fold1.x.part.json").write_text("{")
    whole = read_scores([tmp_path / "cv"])
    assert {s.name: list(s.cases) for s in whole} == {"b": ["p1", "p2", "q1"], "uxnet": ["p1", "p2", "q1"]}
    assert [r["fold"] for r in whole[0].records] == [0, 1]
    assert whole[0].persons == {"p1": "of p1", "p2": "of p2", "q1": "of q1"}
    in_pieces = read_scores(sorted((tmp_path / "cv/records").glob("[ub]*.json"), reverse=True))
    one, other = compare(whole), compare(in_pieces)
    assert (one.standing("uxnet"), one.against("b")) == (other.standing("uxnet"), other.against("b"))


def test_cases_that_are_their_own_persons_are_nobodys(tmp_path):
    """Where nobody knew whose case it was, records once named each case for its person."""
    for name in ("uxnet", "b"):
        made = record(name, 0, {"p1": 0.5, "p2": 0.6})
        for case in made["cases"]:
            case["person"] = case["case"]
        write(tmp_path / f"records/{name}-fold0.json", made)
    found = read_scores([tmp_path])
    assert [s.persons for s in found] == [{}, {}]
    with pytest.raises(InputError, match="no record says whose case"):
        compare(found, by="person")


def test_records_of_an_earlier_version_are_of_the_same_recipe_where_a_newer_one_says_so(tmp_path):
    """Recipes are known by a hash of JSON; they were known by one of TOML, which newer records hold beside it."""
    new, old = {"recipe_sha256": "a" * 64, "recipe_toml_sha256": "b" * 64}, {"recipe_sha256": "b" * 64}
    for name, fold, hashes in (("uxnet", 0, old), ("uxnet", 1, new), ("b", 0, old), ("b", 1, old)):
        write(tmp_path / f"records/{name}-fold{fold}.json", record(name, fold, {f"p{fold}": 0.5, f"q{fold}": 0.6}) | hashes)
    assert not any("recipe" in note for note in compare(read_scores([tmp_path])).notes)
    write(tmp_path / "records/b-fold1.json", record("b", 1, {"p1": 0.5}) | {"recipe_sha256": "c" * 64})
    with pytest.raises(InputError, match="differ in recipe_sha256"):
        read_scores([tmp_path])


def test_files_of_evaluate_are_read_too(tmp_path):
    for name, dice in (("ours", 0.8), ("theirs", 0.7)):
        cases = [{"case": f"c{n}", "classes": {"a": dict.fromkeys(METRICS, dice + n / 100)}} for n in range(4)]
        data = {"settings": {"tolerance_mm": 2.0, "empty": "one"}, "classes": {"a": {}}, "cases": cases}
        write(tmp_path / name / "metrics.json", data)
    found = read_scores([tmp_path / "ours", f"b={tmp_path / 'theirs' / 'metrics.json'}"])
    assert [(s.name, s.tolerance_mm, s.empty, len(s.cases)) for s in found] == [("ours", 2.0, "one", 4), ("b", 2.0, "one", 4)]
    assert compare(found).reference == "ours"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (record("uxnet", 1, {"p1": 0.5}), "p1 scored twice"),
        (record("uxnet", 1, {"q1": 0.5}, budget={"steps": [9]}), "differ in budget"),
        (record("uxnet", 1, {"q1": 0.5}, settings={"kernel": 9}), "differ in settings"),
        (record("uxnet", 1, {"q1": 0.5}, version=2), "version 2"),
        ({"schema": "something"}, "no record"),
        ({"cases": []}, "neither a record"),
        (record("uxnet", 1, {}), "cases: expected a list that is not empty"),
        (record("uxnet", "1", {"q1": 0.5}), r"uxnet-fold1\.json: fold: expected a whole number, got text"),
        (record("uxnet", 1, {"q1": 0.5}, gmac=None), "gmac: expected a number, got null"),
        (record("uxnet", 1, {"q1": 0.5}, warnings=[{}]), r"warnings\[0\]: expected text"),
        (record("uxnet", 1, {"q1": 0.5}, init={"model": "m.uxnet"}), "init.weights_sha256 is missing"),
        (record("uxnet", 1, {"q1": "good"}), r"cases\[0\].classes.a.dice: expected a number or null, got text"),
        (record("uxnet", 1, {"q1": math.nan}), r"cases\[0\].classes.a.dice: expected a finite number;"),
        (record("uxnet", 1, {"q1": 93.1}), r"cases\[0\].classes.a.dice: expected a number of at most 1.0, got 93.1"),
        (record("uxnet", 1, {"q1": 0.5}, seconds_training=math.inf), "seconds_training: expected a finite number"),
        (record("uxnet", 1, {"q1": 0.5}, budget={"core_seconds": 1}), 'budget: expected "core_seconds" and "threads", or "steps"'),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, second, words):
    write(tmp_path / "records" / "uxnet-fold0.json", record("uxnet", 0, {"p1": 0.5}))
    write(tmp_path / "records" / "uxnet-fold1.json", second)
    with pytest.raises(InputError, match=words):
        read_scores([tmp_path])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["cases"][1]["classes"]["a"].update(dice=math.nan), "a.dice: expected a finite number"),
        (lambda data: data["cases"][1]["classes"]["a"].update(hd95_mm=math.inf), "a.hd95_mm: expected a finite number"),
        (lambda data: data["cases"][1]["classes"]["a"].update(reference_ml=-math.inf), "a.reference_ml: expected a finite number"),
        (lambda data: data.get("evaluation", data.get("settings")).update(tolerance_mm=math.nan), "tolerance_mm: expected a finite number"),
        (lambda data: data["cases"][1]["classes"]["a"].update(nsd=1.5), "a.nsd: expected a number of at most 1.0, got 1.5"),
        (lambda data: data["cases"][1]["classes"]["a"].update(hd95_mm=-1), "a.hd95_mm: expected a number of at least 0.0, got -1"),
    ],
)
def test_numbers_that_are_no_scores_are_refused_by_place(tmp_path, change, words):
    for name, data in (("a.json", evaluated({"p1": 0.5, "p2": 0.5})), ("uxnet-fold0.json", record("uxnet", 0, {"p1": 0.5, "p2": 0.5}))):
        read_scores([write(tmp_path / name, data)])
        change(data)
        with pytest.raises(InputError, match=f"{name}.*{words}"):
            read_scores([write(tmp_path / name, data)])


def test_cases_of_the_training_are_said(tmp_path):
    write(tmp_path / "a.json", evaluated({"p1": 0.5, "p2": 0.5}, cases_seen_in_training=["p2", "p3"]))
    write(tmp_path / "b.json", evaluated({"p1": 0.5, "p2": 0.5}))
    notes = compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"])).notes
    assert "a was trained on 1 of the 2 cases (p2): its scores do not say how good it is on others." in notes
    assert not any("b was trained" in note for note in notes)
    write(tmp_path / "b.json", evaluated({"p1": 0.5, "p2": 0.5}, cases_seen_in_training=7))
    with pytest.raises(InputError, match="cases_seen_in_training: expected a list, got a whole number"):
        read_scores([tmp_path / "b.json"])


def test_no_records_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_scores([tmp_path / "none"])
    with pytest.raises(InputError, match="no records"):
        read_scores([tmp_path])


def test_other_terms_are_said(tmp_path):
    write(tmp_path / "a.json", record("uxnet", 0, {"p1": 0.5}))
    write(tmp_path / "b.json", record("b", 0, {"p1": 0.5}, budget={"steps": [9]}, split_sha256="x"))
    notes = compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"])).notes
    assert any("differ in split, budget, too" in note for note in notes)


def test_what_a_file_does_not_say_is_no_difference(tmp_path):
    """A file of evaluate says nothing of recipe and split, a record of old nothing of the label table."""
    old = record("uxnet", 0, {"p1": 0.5})
    del old["labels_sha256"]
    write(tmp_path / "a" / "uxnet-fold0.json", old)
    write(tmp_path / "a" / "uxnet-fold1.json", record("uxnet", 1, {"p2": 0.5}, labels_sha256="l"))
    write(tmp_path / "b.json", evaluated({"p1": 0.5, "p2": 0.5}))
    read = read_scores([tmp_path / "a", tmp_path / "b.json"])
    assert [one["labels_sha256"] for one in read[0].records] == [None, "l"]
    assert not any("networks differ" in note for note in compare(read).notes)
    write(tmp_path / "a" / "uxnet-fold2.json", record("uxnet", 2, {"p3": 0.5}, labels_sha256="m"))
    with pytest.raises(InputError, match=r"differ in labels_sha256 \(l; m\)"):
        read_scores([tmp_path / "a"])


def test_scores_are_equal_however_many_digits_a_file_has(tmp_path):
    write(tmp_path / "a.json", record("uxnet", 0, {"p1": 0.333333, "p2": 0.666667}))
    write(tmp_path / "b.json", evaluated({"p1": 1 / 3, "p2": 2 / 3}))
    test = compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"])).against("b")
    assert (test.n, test.unequal, test.p) == (2, 0, 1.0)


def test_ties_of_means_do_not_hang_on_last_bits():
    """Means of two values of six digits lie half way between such numbers: all twelve differences are of one size."""
    base = np.random.default_rng(0).uniform(0.3, 0.8, (12, 2)).round(6)
    ours = [[a + 0.000005, b] if n % 3 else [a, b] for n, (a, b) in enumerate(base.tolist())]
    theirs = [[a, b] if n % 3 else [a, b + 0.000005] for n, (a, b) in enumerate(base.tolist())]
    test = compare([scores("uxnet", ours, classes=("a", "b")), scores("b", theirs, classes=("a", "b"))]).against("b")
    assert test.p == signed_rank_p([1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1])


def test_cases_that_failed_are_said(tmp_path):
    write(tmp_path / "a.json", evaluated({"p1": 0.5, "p2": 0.5}))
    write(tmp_path / "b.json", evaluated({"p1": 0.5}, failures=[{"case": "p2", "message": "damaged"}]))
    found = compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"]))
    assert "b failed on 1 case, which no mean here and no test of it includes: p2." in found.notes
    assert found.n == 1


def test_other_references_are_refused_by_case(tmp_path):
    def scored(ml):
        return {"cases": [{"case": "p1", "classes": {"a": {**dict.fromkeys(METRICS, 0.5), "reference_ml": ml}}}]}

    write(tmp_path / "a.json", record("uxnet", 0, {}) | scored(0.123457))
    write(tmp_path / "b.json", evaluated({}) | scored(0.1234567))
    assert compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"])).n == 1  # the same, to the digits of a record
    write(tmp_path / "b.json", evaluated({}) | scored(0.1245))
    with pytest.raises(InputError, match=r"^p1: .* different references, in which a has"):
        compare(read_scores([tmp_path / "a.json", tmp_path / "b.json"]))


def test_what_records_were_made_with_is_said_where_it_differs(tmp_path):
    gpu = {"processor": "Xeon", "instructions": ["AVX2"], "gpus": ["A100", "A100"], "device": "cuda:0"}
    init = {"model": "m.uxnet", "weights_sha256": ["ab" * 32], "recipe": "r", "dataset": ""}
    plain = {"precision": "float32", "machine": gpu, "versions": {"torch": "2.13"}, "threads": 1}
    write(tmp_path / "a.json", record("uxnet", 0, {"p1": 0.5}, **plain))
    write(tmp_path / "b.json", record("uxnet", 1, {"p2": 0.5}, **plain | {"machine": gpu | {"device": "cuda:1"}}))
    write(tmp_path / "c.json", record("b", 0, {"p1": 0.5}, **plain))
    write(tmp_path / "d.json", record("b", 1, {"p2": 0.5}))  # says nothing
    files = [tmp_path / f"{name}.json" for name in "abcd"]
    assert differences(read_scores(files)) == []
    assert not any("same" in note for note in compare(read_scores(files)).notes)
    other = {"precision": "bfloat16", "machine": gpu | {"device": "cpu"}, "versions": {"torch": "2.12"}, "threads": 2, "init": init}
    write(tmp_path / "c.json", record("b", 0, {"p1": 0.5}, **other))
    write(tmp_path / "d.json", record("b", 1, {"p2": 0.5}, **plain, init=init))
    notes = compare(read_scores(files)).notes
    assert "The networks do not begin with the same weights: uxnet with fresh ones, b with those of m.uxnet (abababababab)." in notes
    for words in (
        "The precision is not the same for all: float32 (uxnet; b on fold 1), bfloat16 (b on fold 0).",
        "The number of threads is not the same for all: 1 (uxnet; b on fold 1), 2 (b on fold 0).",
        "The machine is not the same for all: Xeon, AVX2, A100, cuda (uxnet; b on fold 1), Xeon, AVX2, cpu (b on fold 0).",
        "The version of torch is not the same for all: 2.13 (uxnet; b on fold 1), 2.12 (b on fold 0).",
    ):
        assert words in notes
