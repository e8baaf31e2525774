"""The paper's tables with ours beside them: what was run, what was not, and that nothing is made up."""

import csv
import io
import json
import re

import pytest
from made_records import FETA, FLARE, made_record, made_trial, write_records

from uxnet.errors import InputError
from uxnet.paper.figures import chosen_cases, curve_figure, network_titles, validations
from uxnet.paper.printed import challenge_of, doubt, mean_of_row, paper
from uxnet.paper.records import stars
from uxnet.paper.setup import comment_above
from uxnet.paper.tables import paper_table, read_trials, write_table
from uxnet.paper.text import Cell, PaperTable, Section, letter, tex, to_csv, to_latex, to_markdown


def rows_of(table, **wanted):
    """Lines of the CSV file with these values."""
    found = list(csv.DictReader(io.StringIO(to_csv(table))))
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def trials_of(*folders, **said):
    return read_trials({"": folders, **said})


def check_latex(text):
    """Braces and environments are closed, and every line of a table has its columns."""
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin{(\w+)}", text).count("tabular") == text.count("\\end{tabular}")
    for kinds, body in re.findall(r"\\begin{tabular}{((?:[lr]|p{[^}]*})*)}(.*?)\\end{tabular}", text, re.DOTALL):
        columns = len(re.sub(r"p{[^}]*}", "p", kinds))
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert len(lines) > 1
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}


# ---- the facts


def test_the_facts_are_whole():
    facts = paper()
    assert [len(table) for table in (facts.table1, facts.table2, facts.table3)] == [9, 5, 10]
    for row in facts.table1:
        assert set(row.dice) == {"FeTA2021", "FLARE2021"}
    for row in (*facts.table1, *facts.table2):
        for name, printed in row.dice.items():
            assert list(printed) == [*facts.challenges[name].columns, facts.challenges[name].mean]
    assert [row.title for row in (*facts.table1, *facts.table2) if row.stars] == ["3D UX-Net"] * 2
    assert len(facts.hyperparameters["direct"]) == 19


def test_the_survey_prints_the_same_figures():
    from uxnet.paper.networks import TABLE_1, TABLE_3

    for row in paper().table1:
        assert (row.params_m, row.flops_g) == (float(TABLE_1[row.network].parameters_m), float(TABLE_1[row.network].flops_g))
    printed = [entry for entry in TABLE_3 if entry[3].parameters_m]
    for row, (network, _, settings, figures) in zip(paper().table3, printed, strict=True):
        assert (row.network, row.params_m) == (network, float(figures.parameters_m))
        assert set(settings.items()) <= set(row.settings.items())


def test_means_that_are_not_those_of_their_rows_are_found():
    facts = paper()
    unetr, ours = (next(r for r in facts.table2 if r.title == t) for t in ("UNETR", "3D UX-Net"))
    amos, flare = facts.challenges["AMOS2022"], facts.challenges["FLARE2021"]
    assert mean_of_row(unetr, amos) == pytest.approx(0.7874, abs=1e-4)
    assert "average 0.7874, not 0.762" in doubt(unetr, amos)
    assert "is not why" in doubt(ours, amos)
    assert "average 0.9333, not 0.934" in doubt(facts.table1[-1], flare)
    assert "may be why" in doubt(facts.table1[-1], flare)
    assert [r.title for r in facts.table1 if doubt(r, flare)] == ["SwinUNETR", "3D UX-Net"]


def test_a_dataset_is_the_papers_by_name_and_classes_together():
    assert challenge_of("FLARE2021", FLARE).name == "FLARE2021"
    assert challenge_of("Feta 2.1", FETA).name == "FeTA2021"
    assert challenge_of("Phantoms", FLARE) is None
    assert challenge_of("FLARE2021", FLARE[:3]) is None
    assert challenge_of("FLARE2021", (*FLARE, "spleen again")) is None


def test_the_datasets_of_the_box_have_the_papers_classes():
    from uxnet.dataset.challenges import AMOS_LABELS, FETA_LABELS, FLARE_LABELS

    for name, labels in (("FeTA2021", FETA_LABELS), ("FLARE2021", FLARE_LABELS), ("AMOS2022", AMOS_LABELS)):
        assert challenge_of(name, labels.classes).name == name


# ---- tables 1 and 2


def test_without_records_everything_of_ours_was_not_run(tmp_path):
    table = paper_table("table1")
    assert len(rows_of(table, status="not run")) == 9 * (8 + 5)
    assert not rows_of(table, status="run")
    assert all(row["value"] == "" for row in rows_of(table, status="not run"))
    assert any("nothing of ours was run" in note for note in table.notes)
    assert to_markdown(table).count("not run") == 9 * 13
    # The counts need no records.
    counted = rows_of(table, row="3D UX-Net", column="flops_g", source="ours")
    assert float(counted[0]["value"]) == pytest.approx(631.93, abs=0.01)
    assert "another network" in counted[0]["note"]


def test_ours_beside_the_papers_with_folds_cases_and_difference(tmp_path):
    trials = trials_of(made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9}, classes=FLARE, dataset="FLARE2021"))
    assert [t.challenge.name for t in trials] == ["FLARE2021"]
    table = paper_table("table1", trials)
    mean = rows_of(table, dataset="FLARE2021", row="3D UX-Net", column="Mean", source="ours A")[0]
    dices = [c["classes"]["liver"]["dice"] for r in trials[0].scores[1].records for c in r["cases"]]
    assert float(mean["value"]) == pytest.approx(sum(dices) / 20)
    assert float(mean["ours_minus_paper"]) == pytest.approx(sum(dices) / 20 - 0.934)
    assert (mean["folds"], mean["cases"], mean["star"], mean["status"]) == ("5", "20", "*", "run")
    assert rows_of(table, dataset="FLARE2021", row="SwinUNETR", source="ours A", status="not run")
    assert len(rows_of(table, dataset="FeTA2021", status="not run")) == 9 * 8
    text = to_markdown(table)
    assert "ours A − paper" in text
    assert "400 steps a network and fold" in text


def test_columns_are_the_papers_whatever_the_order_of_the_labels(tmp_path):
    record = made_record("uxnet", 0, {"a": [0.1, 0.2, 0.3, 0.4]}, classes=FLARE, dataset="FLARE2021")
    table = paper_table("table1", trials_of(write_records(tmp_path / "cv", [record])))
    shown = {row["column"]: float(row["value"]) for row in rows_of(table, source="ours A", status="run")}
    assert shown == {"Spleen": 0.3, "Kidney": 0.2, "Liver": 0.1, "Pancreas": 0.4, "Mean": pytest.approx(0.25)}


def test_another_dataset_has_its_own_columns_and_no_difference(tmp_path):
    table = paper_table("table1", trials_of(made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9})))
    ours = rows_of(table, dataset="Hippocampus", row="3D U-Net", source="ours A")
    assert [row["column"] for row in ours] == ["Anterior", "Posterior", "Mean"]
    assert all(row["ours_minus_paper"] == "" for row in ours)
    assert {row["status"] for row in rows_of(table, dataset="Hippocampus", source="paper")} == {"another dataset"}
    assert len(rows_of(table, dataset="FeTA2021", status="not run")) == 9 * 8
    assert "paper, another dataset" in to_markdown(table)


def test_a_class_that_does_not_count_says_over_how_many_cases(tmp_path):
    record = made_record("uxnet", 0, {"a": [0.5, None], "b": [0.7, 0.9]})
    table = paper_table("table1", trials_of(write_records(tmp_path / "cv", [record])))
    assert "0.900 (n = 1)" in to_markdown(table)
    assert rows_of(table, source="ours A", row="3D UX-Net", column="Posterior")[0]["cases"] == "1"


def test_a_star_needs_every_other_network(tmp_path):
    (one,) = trials_of(made_trial(tmp_path / "a", {"unet": 0.8, "segresnet": 0.85, "uxnet": 0.9}))
    assert set(stars(one, one.scores).values()) == {"uxnet"}
    (equal,) = trials_of(made_trial(tmp_path / "b", {"unet": 0.8, "segresnet": 0.9, "uxnet": 0.9}))
    assert stars(equal, equal.scores) == {}
    (few,) = trials_of(made_trial(tmp_path / "c", {"unet": 0.8, "uxnet": 0.9}, folds=1, each=7))
    assert stars(few, few.scores) == {}
    assert any("too few for any star" in note for note in paper_table("table1", [few]).notes)
    # Another setting of the same network is no other network.
    twice = {"unet": 0.8, "uxnet": 0.9, "text": (0.9, "uxnet", {"block": "paper"})}
    (same,) = trials_of(made_trial(tmp_path / "d", twice))
    assert set(stars(same, same.scores).values()) <= {"uxnet", "text"}
    assert len(stars(same, same.scores)) == 3


def test_stars_are_those_of_scipy(tmp_path):
    from scipy.stats import wilcoxon

    for seed in range(4):
        (trial,) = trials_of(made_trial(tmp_path / str(seed), {"unet": 0.8, "uxnet": 0.8008}, seed=seed))
        a, b = ([c["classes"]["Anterior"]["dice"] for r in s.records for c in r["cases"]] for s in trial.scores)
        assert bool(stars(trial, trial.scores)) == (wilcoxon(a, b).pvalue < 0.01)


def test_records_of_other_terms_stand_under_other_letters(tmp_path):
    made_trial(tmp_path / "a", {"uxnet": 0.9})
    made_trial(tmp_path / "b", {"uxnet": 0.8}, budget={"steps": [800]})
    made_trial(tmp_path / "c", {"uxnet": 0.7}, split_sha256="9" * 64)
    trials = trials_of(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert [t.letter for t in trials] == ["A", "B", "C"]
    table = paper_table("table1", trials)
    assert {row["source"] for row in rows_of(table, row="3D UX-Net", column="Mean", status="run")} == {"ours A", "ours B", "ours C"}
    assert any("not compared with each other" in note for note in table.notes)
    # The same folder twice is one.
    assert len(trials_of(tmp_path / "a", tmp_path / "a" / "records")) == 1


def test_records_of_one_fold_after_the_other_belong_together(tmp_path):
    made_trial(tmp_path / "all", {"uxnet": 0.9})
    for path in sorted((tmp_path / "all/records").iterdir()):
        target = tmp_path / ("x" if path.name < "uxnet-fold2" else "y") / "records" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (trial,) = trials_of(tmp_path / "x", tmp_path / "y")
    assert len(trial.scores[0].records) == 5
    assert len(trial.folders["uxnet"]) == 2


def test_records_said_to_be_of_a_dataset_must_have_its_classes(tmp_path):
    made_trial(tmp_path / "cv", {"uxnet": 0.9})
    with pytest.raises(InputError, match="are not those of FeTA2021"):
        trials_of(FeTA2021=[tmp_path / "cv"])
    made_trial(tmp_path / "mine", {"uxnet": 0.9}, classes=FETA, dataset="my copy")
    assert trials_of(FeTA2021=[tmp_path / "mine"])[0].challenge.name == "FeTA2021"
    assert trials_of(tmp_path / "mine")[0].challenge is None


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such"):
        trials_of(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no records"):
        trials_of(tmp_path / "empty")
    record = made_record("uxnet", 0, {"a": 0.5})
    del record["budget"]
    with pytest.raises(InputError, match=r"uxnet-fold0\.json: .*budget is missing"):
        trials_of(write_records(tmp_path / "old", [record]))


def test_table_2_says_that_ours_are_not_fine_tuned(tmp_path):
    table = paper_table("table2", trials_of(made_trial(tmp_path / "cv", {"uxnet": 0.9}, classes=FLARE, dataset="FLARE2021")))
    assert len(rows_of(table, status="not run")) == 5 * 16
    assert any("fresh weights" in note for note in table.notes)
    assert any(note.startswith("Left out: A, FLARE2021") for note in table.notes)


# ---- table 3


def test_ablations_are_found_by_their_settings_not_by_their_names(tmp_path):
    networks = {
        "misleading-k13": (0.81, "uxnet", {"size": "narrow", "kernel": 9}),
        "b": (0.82, "uxnet", {"scaling": "mlp"}),
        "c": (0.83, "uxnet", {"convolution": "standard", "kernel": [7, 7, 7]}),
        "plain": (0.84, "uxnet", {}),
        "own": (0.85, "uxnet", {"kernel": 9, "scaling": "mlp"}),
        "text": (0.86, "uxnet", {"block": "paper"}),
        "sw": (0.87, "swinunetr", {}),
        "unet": 0.5,
    }
    table = paper_table("table3", trials_of(made_trial(tmp_path / "cv", networks)))
    run = {row["row"]: row["note"].split(":")[0] for row in rows_of(table, status="run")}
    assert run == {
        "SwinUNETR": "sw",
        "Use Standard Conv.": "c",
        "Use Depth Conv.": "plain",
        "Kernel 7": "plain",
        "Kernel 9": "misleading-k13",
        "Use MLP": "b",
        "Use DCS 1x1x1": "plain",
        "own (A)": "own",
        "text (A), block = paper": "text",
    }
    shown = dict(table.footnotes).values()
    assert "A: misleading-k13: size = narrow, kernel = 9." in shown
    assert "A: plain: defaults." in shown
    assert rows_of(table, row="Kernel 13", source="ours A", status="not run")
    assert any(note == "Left out of A: unet, which is not of this table." for note in table.notes)
    text = dict(table.footnotes).values()
    assert any("52.5 M remain" in note for note in text)
    assert any("0.31 % below" in note for note in text)


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_shows_what_is_nearest_to_the_papers(tmp_path, turned):
    """Whatever the order of their names: fresh weights before the paper's size before the released block."""
    init = {"model": "m.uxnet", "weights_sha256": ["ab" * 32], "recipe": "r", "dataset": "S"}
    kinds = [({}, init), ({"size": "narrow"}, None), ({"block": "paper"}, None), ({"layer_scale": 0.1}, None), ({"size": "paper"}, None)]
    said = []
    for count in range(1, len(kinds) + 1):
        names = [f"{chr(ord('z') - n if turned else ord('a') + n)}{n}" for n in range(count)]
        made = [
            made_record(name, 0, {"a": 0.5}, network="uxnet", settings=settings, **({"init": begun} if begun else {}))
            for name, (settings, begun) in zip(names, kinds, strict=False)
        ]
        table = paper_table("table3", trials_of(write_records(tmp_path / str(count), made)))
        said.append(rows_of(table, row="Kernel 7", status="run")[0]["note"].split(":")[0][1:])
        # All that were run are somewhere, and each has a footnote that says what it is.
        assert {row["note"].split(":")[0] for row in rows_of(table, status="run")} == set(names)
        assert len([text for text in dict(table.footnotes).values() if text.startswith("A: ")]) == count
    assert said == ["0", "1", "2", "3", "4"]
    assert any("begins with m.uxnet" in text for text in dict(table.footnotes).values())


def test_table_1_leaves_ablations_to_table_3(tmp_path):
    networks = {"uxnet": 0.9, "k9": (0.95, "uxnet", {"kernel": 9})}
    table = paper_table("table1", trials_of(made_trial(tmp_path / "cv", networks)))
    assert [row["source"] for row in rows_of(table, row="3D UX-Net", column="Mean", status="run")] == ["ours A"]
    assert any("k9, with settings that table 3 is about" in note for note in table.notes)


# ---- tables 4 and 5


def test_hyperparameters_are_those_of_the_recipes():
    from uxnet.recipe import load_recipe

    table = paper_table("table4")
    for name in ("feta2021", "flare2021", "amos2022", "amos2022-finetune"):
        for reading in ("paper", "released"):
            stage = load_recipe(f"{name}-{reading}").stages[0]
            shown = {row["row"]: row["value"] for row in rows_of(table, dataset=f"{name}-{reading}")}
            assert float(shown["Weight decay"]) == stage.optimiser.weight_decay
            assert int(shown["Batch size"]) == stage.training.batch
            assert shown["Rotation, degrees"] == f"-{stage.augment.rotation_deg[2]:g} to {stage.augment.rotation_deg[2]:g} about z"
            assert len(shown) == 19
    text = to_markdown(table)
    assert "0.01 †" in text
    assert "0.08 †" not in text
    assert "ReduceLROnPlateau †" not in text


def test_the_paper_recipes_keep_to_the_papers_table():
    """But for dropout, which is ticked without a rate."""
    table = paper_table("table4")
    for section in table.sections:
        marked = [row[0].text for row in section.rows if "†" in row[2].text]
        assert marked == ["Dropout"]


def test_sources_are_the_comments_of_the_recipes():
    assert comment_above("flare2021-released", "optimiser.weight_decay") == "code: torch's defaults but for the rate"
    assert comment_above("flare2021-paper", "optimiser.weight_decay") == "T4"
    assert comment_above("flare2021-released", "schedule.patience") == "code: the scheduler is commented out"
    assert comment_above("flare2021-paper", "network.settings.hidden").startswith("T4")
    assert comment_above("flare2021-paper", "nothing.there") == ""


def test_datasets_beside_the_papers(tmp_path, tiny_dataset):
    from uxnet.dataset.check import check_dataset
    from uxnet.dataset.manifest import read_dataset

    read = paper_table("table5", datasets=[tiny_dataset])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inspection.json").write_text(json.dumps(check_dataset(read_dataset(tiny_dataset)).to_dict()))
    assert to_csv(paper_table("table5", datasets=[tmp_path / "run"])) == to_csv(read)
    assert to_csv(paper_table("table5", datasets=[tmp_path / "run" / "inspection.json"])) == to_csv(read)
    ours = {row["row"]: row["value"] for row in rows_of(read, dataset="Tiny")}
    assert (ours["cases"], ours["labels"], ours["modality"]) == ("10", "bright, dark", "MRI")
    assert ours["spacing, mm"] == "1.00 x 1.00 x 1.50"
    assert len(rows_of(read, status="not read", source="ours", dataset="FeTA2021")) == 6
    assert any("511" in text for _, text in read.footnotes)


def test_a_dataset_of_the_papers_shows_the_difference(tmp_path, tiny_dataset):
    from uxnet.dataset.check import check_dataset
    from uxnet.dataset.manifest import read_dataset

    data = check_dataset(read_dataset(tiny_dataset)).to_dict()
    data["dataset"] = "FLARE2021"
    data["labels"]["foreground"] = [{"name": name, "value": n} for n, name in enumerate(FLARE, 1)]
    (tmp_path / "a.json").write_text(json.dumps(data))
    table = paper_table("table5", datasets=[tmp_path / "a.json"])
    assert rows_of(table, dataset="FLARE2021", row="cases", source="ours")[0]["ours_minus_paper"] == "-351"
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(InputError, match="no inspection"):
        paper_table("table5", datasets=[tmp_path / "b.json"])


# ---- as files


def test_every_table_is_written_whole(tmp_path):
    trials = trials_of(made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9}))
    for name in ("table1", "table2", "table3", "table4", "table5"):
        table = paper_table(name, trials)
        paths = write_table(tmp_path / "out", table)
        assert [p.name for p in paths] == [f"{name}.md", f"{name}.csv", f"{name}.tex"]
        check_latex(paths[2].read_text(encoding="utf-8"))
        lines = list(csv.reader(paths[1].open(encoding="utf-8", newline="")))
        assert {len(line) for line in lines} == {len(lines[0])}
        assert all(len(row) == len(section.head) == len(section.align) for section in table.sections for row in section.rows)
        assert all(cell.text for section in table.sections for row in section.rows for cell in row[2:-2])
        marks = {c for s in table.sections for row in s.rows for cell in row for c in cell.feet}
        assert marks == {mark for mark, _ in table.footnotes}


def test_numbers_in_the_csv_have_all_their_digits(tmp_path):
    record = made_record("uxnet", 0, {"a": 0.123456, "b": 0.5})
    table = paper_table("table1", trials_of(write_records(tmp_path / "cv", [record])))
    assert float(rows_of(table, source="ours A", status="run")[0]["value"]) == (0.123456 + 0.5) / 2


def test_what_is_special_is_escaped():
    nasty = r"50% of $x_1 & {y}~#^\ <z> [opt] | *b* `c`"
    table = PaperTable(
        "t", nasty, (Section(nasty, (nasty, "b"), ((Cell(nasty), Cell("[x]")), (Cell("* star"), Cell("−1"))), "lr"),), (), (nasty,)
    )
    check_latex(to_latex(table))
    assert tex("a_b & 5% [x]") == r"a\_b \& 5\% {[}x{]}"
    assert tex("*") == "{}*"
    assert "\\textsuperscript" not in to_latex(table)
    body = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in body} == {3}


def test_letters():
    assert [letter(n) for n in (0, 25, 26, 52)] == ["a", "z", "aa", "ba"]


# ---- figures


def test_figure_3_over_steps_and_over_seconds(tmp_path):
    trials = trials_of(made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9}))
    for over, words in (("steps", "step"), ("seconds", "core-seconds of training")):
        paths = curve_figure(tmp_path / over, trials, over=over, band="interval", note="Made up.")
        assert [p.name for p in paths] == ["figure3.png", "figure3.svg"]
        texts = re.findall(r"<!-- (.*?) -->", paths[1].read_text(encoding="utf-8"))
        assert words in texts
        assert "Hippocampus (A), 5 folds" in texts
        # 2 threads for 40 s; steps to 400.
        assert ("80" if over == "seconds" else "400") in texts
    # Of one core's time, each step has its share, whatever the clock on the wall said.
    alone = made_record("uxnet", 0, {"a": 0.5}, threads=1, budget={"core_seconds": 1200.0, "threads": 1, "validations": "included"})
    paths = curve_figure(tmp_path / "alone", trials_of(write_records(tmp_path / "of-a-core", [alone])), over="seconds")
    assert "1200" in re.findall(r"<!-- (.*?) -->", paths[1].read_text(encoding="utf-8"))
    # Of a run that was stopped before, the steps that were done did not use up the time.
    stopped = made_record("uxnet", 0, {"a": 0.5}, threads=1, budget=alone["budget"], planned_steps=800)
    assert [x for x, _ in validations(stopped, "seconds")] == [150, 300, 450, 600]
    assert [x for x, _ in validations(stopped, "steps")] == [100, 200, 300, 400]
    with pytest.raises(InputError, match="needs records"):
        curve_figure(tmp_path, [])
    bare = made_record("uxnet", 0, {"a": 0.5}, curve=[])
    with pytest.raises(InputError, match="has a curve"):
        curve_figure(tmp_path, trials_of(write_records(tmp_path / "bare", [bare])))


def test_figure_3_is_of_the_folds_that_all_networks_have(tmp_path):
    """A mean over other folds would be no comparison."""
    made = [made_record("unet", 0, {"a": 0.8}), made_record("uxnet", 0, {"a": 0.9}), made_record("uxnet", 1, {"b": 0.1})]
    text = curve_figure(tmp_path, trials_of(write_records(tmp_path / "cv", made)))[1].read_text(encoding="utf-8")
    assert "Hippocampus (A), 1 fold" in text
    assert "A: of the folds that all networks have (0); 3D UX-Net has more." in text
    end = validations(made[1], "steps")[-1][1]
    assert f"3D UX-Net  {end:.3f}" in text
    # Without any in common, each has its own.
    text = curve_figure(tmp_path, trials_of(write_records(tmp_path / "apart", made[::2])))[1].read_text(encoding="utf-8")
    assert "Hippocampus (A), 2 folds" in text
    assert "has more" not in text
    assert "A: the networks have no fold in common, so their curves are of different cases." in text


@pytest.mark.parametrize("budget", [{"steps": [200, 400]}, {"core_seconds": 100.0, "threads": 1, "validations": "included"}])
def test_figure_3_has_no_seconds_of_a_second_stage(tmp_path, budget):
    """Its record has the steps of both stages, and the curve of the second alone."""
    two = made_record("rapnet", 0, {"a": 0.5}, steps=600, budget=budget, threads=1)
    one = made_record("uxnet", 0, {"a": 0.5}, budget=budget, threads=1)
    assert validations(two, "seconds") == []
    assert [x for x, _ in validations(two, "steps")] == [100, 200, 300, 400]
    trials = trials_of(write_records(tmp_path / "cv", [two, one]))
    for over, words in (
        ("seconds", "Not shown, since only the second of two stages was timed: rapnet (A)."),
        ("steps", "Of two stages, steps are those of the second: rapnet (A)."),
    ):
        text = curve_figure(tmp_path / over, trials, over=over)[1].read_text(encoding="utf-8")
        assert words in text
        assert ("RAP-Net  " in text) == (over == "steps")
    with pytest.raises(InputError, match="was timed"):
        curve_figure(tmp_path, trials_of(write_records(tmp_path / "two", [two])), over="seconds")


def test_networks_are_called_as_in_the_paper_where_that_is_clear(tmp_path):
    networks = {
        "uxnet": 0.9,
        "k9": (0.9, "uxnet", {"kernel": 9}),
        "a": (0.9, "unet", {"widths": [1]}),
        "mine": (0.9, "segresnet", {"x": 1}),
    }
    (trial,) = trials_of(made_trial(tmp_path / "cv", networks))
    assert network_titles(trial.scores) == {"a": "3D U-Net", "k9": "k9", "mine": "SegResNet", "uxnet": "3D UX-Net"}


def test_cases_are_chosen_evenly_from_the_lowest_to_the_highest(tmp_path):
    dices = {f"c{n}": n / 10 for n in range(9)}
    (trial,) = trials_of(write_records(tmp_path / "cv", [made_record("uxnet", 0, dices), made_record("unet", 0, dices)]))
    kept = {"uxnet": list(dices), "unet": list(dices)}
    assert chosen_cases(trial.scores, kept, 3) == ["c0", "c4", "c8"]
    assert chosen_cases(trial.scores, kept, 1) == ["c4"]
    assert chosen_cases(trial.scores, kept | {"unet": ["c3", "c2"]}, 3) == ["c2", "c3"]
