"""The benchmarks' own arithmetic, their table, and a measurement so small that it ends at once."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click import ClickException
from conftest import REPOSITORY

from benchmarks import corpora, document, fit, generation, lines, peers, revisions, studies, table, variants
from benchmarks.context import Context
from benchmarks.goals import GOALS, verdict
from benchmarks.machine import processor_kind
from benchmarks.measure import Measured, Round, Side, SideFailedError, facts_of, ratios, take_turns
from benchmarks.results import Results, Row, compared, read, shown_command
from benchmarks.studies import EXACT, FAST, SHIPPED, Study, Trained
from pipeline.params.params import Params
from pipeline.params.presets import write_preset
from pipeline.params.reader import load_params

ROW = Row(
    "training M, 1 thread", "nanoGPT (fp32)", 2.5, "times", "tokens per processor-second", 2000.0, 800.0, 2.4,
    [2.4, 2.5, 2.6], "the book's run",
)  # fmt: skip


def rounds(*seconds: float) -> list[Round]:
    return [Round(10.0, processor, 2 * processor) for processor in seconds]


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    ours, theirs = rounds(1.0, 4.0, 1.0), rounds(3.0, 4.0, 2.0)
    assert ratios(ours, theirs) == [3.0, 1.0, 2.0]
    row = compared("x", "other", Measured(ours, {}, 1), Measured(theirs, {"setting": "fp32"}, 1), "tokens")
    assert (row.value, row.wall, row.against) == (2.0, 2.0, "other (fp32)")
    assert (row.ours, row.theirs) == (10.0, 10.0 / 3.0)


def test_a_verdict_holds_the_value_against_its_goal() -> None:
    assert verdict(ROW) == "reached"
    assert verdict(Row("x", "", 1.0, goal="training against nanoGPT")) == "missed"
    assert verdict(Row("x", "", 0.3, "seconds", goal="--help")) == "missed"
    assert verdict(Row("x", "", 0.3, "seconds")) == ""


def test_a_comparison_of_many_rounds_shows_their_quartiles() -> None:
    row = replace(ROW, rounds=[2.0, 2.4, 2.5, 2.6, 3.0])
    assert "2.50× (2.40× to 2.60×)" in table.plain([Results("training", [row])])
    assert "to" not in table.lines([Results("training", [ROW])])[1][4], "three rounds have none"


def test_the_table_says_where_each_subject_was_measured(tmp_path: Path) -> None:
    amx = Results(
        "training", [ROW], date="2026-01-02", machine={"processor": "A", "cores": 2, "instructions": ["amx"]}
    )
    plain = replace(amx, date="2026-01-01", machine={"processor": "B", "cores": 4, "instructions": []})
    book = replace(plain, subject="book")
    for each in (amx, plain, book):
        each.write(tmp_path / processor_kind(each.machine))
    assert table.every(tmp_path) == [amx, plain, book]
    text = table.markdown(table.every(tmp_path))
    assert "### Training, amx\n" in text
    assert "Measured on 2026-01-02: A, 2 cores, amx; " in text
    assert text.index("### Training, other") < text.index("on 2026-01-01: B, 4 cores; ") < text.index("### Book")


@pytest.mark.parametrize("name", ["transformers", "nanoGPT", "litgpt", "the book"])
def test_each_precision_of_others_is_tried_eager_and_compiled(name: str) -> None:
    eager = peers.settings(name, quick=True)
    assert all(setting.endswith(", eager") for setting in eager)
    compiled = [setting.replace("eager", "compiled") for setting in eager]
    assert sorted(peers.settings(name, quick=False)) == sorted([*eager, *compiled])


class Recorder(Context):
    """A context that every clone is there for, and which looks for no text."""

    def peer(self, name: str, shown: str) -> tuple[Path, ...] | None:
        return (Path(name),)


def recorder(folder: Path, quick: bool = False) -> Recorder:
    return Recorder(quick, 1, folder, {}, None, False, False, Results("training"))


def test_others_are_measured_with_the_setting_that_took_the_fewest_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"fp32, eager": 3.0, "bf16 autocast, eager": 2.0, "bf16 autocast, compiled": 1.0}
    asked = []

    def tried(side: Side) -> dict[str, Any]:
        asked.append(side.name)
        if side.name == "litgpt":
            raise SideFailedError("litgpt: it began\nno such module")
        failed = {"fp32, compiled": "no compiler"} if side.name == "nanoGPT" else {}
        known = {each: seconds.get(each, 2.5) for each in side.settings["settings"] if each not in failed}
        return {"tried": known, "failed": failed}

    monkeypatch.setattr(peers, "facts_of", tried)
    context, chosen = recorder(tmp_path), dict[str, peers.Chosen]()
    sides = {side.name: side for side in peers.training_sides(context, SHAPE, 1, chosen)}
    assert {name: side.settings["settings"] for name, side in sides.items()} == {
        "transformers": ["bf16 autocast, compiled"],
        "nanoGPT": ["fp32, eager"],
        "the book": ["fp32, compiled"],
    }
    assert "no such module" in context.results.skipped["litgpt"]
    assert "no compiler" in context.results.skipped["nanoGPT, fp32, compiled"]
    asked.clear()
    again = peers.training_sides(context, SHAPE, 2, chosen)
    assert asked == ["litgpt"], "what was found with one thread is taken with two"
    assert [side.threads for side in again] == [2, 2, 2]


def test_a_setting_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.zeros(SHAPE["vocab_size"], 4))

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy((weight[x] @ weight.T).flatten(0, 1), y.flatten())

    def no_compiler(*_: object, **__: object) -> Any:
        def called(*_: object) -> Any:
            raise RuntimeError("no compiler\nof C++")

        return called

    monkeypatch.setattr(torch, "compile", no_compiler)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    work, facts = peers._prepared(SHAPE, loss, optimizer, ["fp32, compiled", "fp32, eager", "bf16 autocast, eager"])
    assert facts["failed"] == {"fp32, compiled": "no compiler"}
    assert list(facts["tried"]) == ["fp32, eager", "bf16 autocast, eager"]
    assert work() == SHAPE["batch_size"] * SHAPE["context_length"]
    with pytest.raises(RuntimeError, match="no compiler"):
        peers._prepared(SHAPE, loss, optimizer, ["fp32, compiled"])


def test_results_are_read_as_they_were_written_and_become_a_table(tmp_path: Path) -> None:
    results = Results("training", [ROW], {"litgpt": "no path was given"}, 12.0)
    results.write(tmp_path)
    assert read(tmp_path, ["book", "training"]) == [results]
    text = table.markdown([results])
    cells = "nanoGPT (fp32) | 2,000 tokens per processor-second | 800 | 2.50× | 2.40× | ≥ 2.00× | reached |"
    assert cells in text
    assert "Not measured: litgpt (no path was given)" in text
    document = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    once = table.with_table(document, text)
    assert cells in once
    assert "\nold\n" not in once
    assert table.with_table(once, text) == once
    for missing in (table.BEGIN, table.END):
        with pytest.raises(ValueError, match=missing):
            table.with_table(document.replace(missing, ""), text)
    assert "reached" in table.plain([results])


def test_the_documents_table_is_made_from_the_results_that_are_committed() -> None:
    text = document.DOCUMENT.read_text()
    assert table.with_table(text, table.markdown(table.every())) == text, "run `python -m benchmarks.table`"


def test_the_documents_tables_of_studies_are_made_from_the_results_that_are_committed() -> None:
    text = document.DOCUMENT.read_text()
    assert studies.with_tables(text, studies.every()) == text, "run `python -m benchmarks.table`"


def test_both_sides_of_generation_draw_the_same_from_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setitem(
        generation.SHAPES, "B", {**generation.SHAPES["B"], "n_layers": 1, "n_heads": 2, "emb_dim": 16}
    )
    generation.weights(str(tmp_path))
    drawn = []
    for side in (generation.ours, generation.transformers):
        work, facts = side(str(tmp_path), threads=torch.get_num_threads(), batch=2, new=3, dtype="fp32")
        assert work() == 6
        drawn.append(facts["ids"])
    assert drawn[0] == drawn[1]


def test_each_missed_goal_is_explained() -> None:
    explained = document.DOCUMENT.read_text().partition("## Goals that are missed")[2]
    for results in table.every():
        for row in results.rows:
            assert verdict(row) != "missed" or row.goal in explained, row.goal


def test_results_name_no_folder_of_the_machine() -> None:
    assert (
        shown_command(["--book", "/somewhere/of/mine/book", "--quick"])
        == "python -m benchmarks --book book --quick"
    )
    for path in (REPOSITORY / "benchmarks" / "results").rglob("*.json"):
        assert not any(place in path.read_text() for place in ("/home/", "/tmp/", "/work/", "/Users/")), path


def test_every_goal_is_some_rows() -> None:
    files = [path for path in (REPOSITORY / "benchmarks").rglob("*.py") if path.stem != "goals"]
    sources = "".join(path.read_text() for path in files)
    for goal in GOALS:
        assert f'"{goal}"' in sources or re.match("(training|generation).* against ", goal), goal


def test_the_cost_of_a_command_has_all_its_processes(tmp_path: Path) -> None:
    inner = "import time\nx = bytearray(50_000_000)\nwhile time.process_time() < 0.4: pass"
    outer = f"import subprocess, sys; print(subprocess.call([sys.executable, '-c', {inner!r}]))"
    taken, out = corpora.cost([sys.executable, "-c", outer], tmp_path, 1)
    assert out == "0\n"
    assert taken.processor > 0.3
    assert taken.memory > 50_000_000


def test_sides_take_turns_each_in_its_process() -> None:
    line = {"commands": [["python", "-c", "sum(range(100000))"]], "folder": ".", "work": 2.0}
    sides = [
        Side("command", "benchmarks.measure:command", line),
        Side("loader", "benchmarks.loading:ours", {"shape": SHAPE, "tokens": 1000}),
    ]
    done = take_turns(sides, 3)
    assert [len(done[name].rounds) for name in ("command", "loader")] == [3, 3]
    assert all(each.work == 2.0 and 0 < each.processor < each.wall * 4 for each in done["command"].rounds)
    assert done["loader"].peak_memory > 1e7
    assert done["loader"].rate > 0


SHAPE = {"vocab_size": 512, "context_length": 16, "batch_size": 2}


def test_a_side_that_fails_is_named_with_its_error() -> None:
    line = {"commands": [["python", "-c", "raise SystemExit('no such luck')"]], "folder": ".", "work": 1.0}
    with pytest.raises(SideFailedError, match=r"(?s)unlucky: .*no such luck"):
        take_turns([Side("unlucky", "benchmarks.measure:command", line)], 1)


def trained(variant: str, seed: int, loss: float, preset: str = "shakespeare-fast") -> Trained:
    return Trained(preset, variant, seed, [], loss, [0, 10], [4.0 + loss, loss], 1000, 2.0, 3.0)


def fake(variant: variants.Variant, seed: int) -> Trained:
    if variant.name == "unlucky":
        raise SideFailedError("unlucky: it began\nerror: no such luck")
    return trained(variant.name, seed, 1.0)


def test_a_study_keeps_what_is_done_and_goes_on_with_what_it_lacks(tmp_path: Path) -> None:
    all_three = [variants.Variant(name) for name in (SHIPPED, "wide", "unlucky")]
    study = variants.begun("ablation", False, tmp_path)
    variants.measure(study, tmp_path, variants.missing(study, "shakespeare-fast", all_three, 1), fake)
    again = variants.begun("ablation", False, tmp_path)
    assert again.runs == study.runs == [trained(SHIPPED, 1, 1.0), trained("wide", 1, 1.0)]
    assert again.skipped == {"unlucky, seed 1": "error: no such luck"}
    lacking = variants.missing(again, "shakespeare-fast", all_three, 2)
    assert [(each.name, seed) for each, seed in lacking] == [
        ("unlucky", 1), (SHIPPED, 2), ("wide", 2), ("unlucky", 2),
    ]  # fmt: skip
    assert not variants.begun("ablation", True, tmp_path).runs


def test_results_of_another_processor_are_not_gone_on_with(tmp_path: Path) -> None:
    Study("ablation", machine={"processor": "another"}, runs=[trained(SHIPPED, 1, 1.0)]).write(tmp_path)
    with pytest.raises(ClickException, match="--fresh"):
        variants.begun("ablation", False, tmp_path)


def test_an_ablation_is_shown_as_mean_and_standard_deviation_against_the_preset() -> None:
    runs = [trained(SHIPPED, 1, 1.0), trained(SHIPPED, 2, 1.2), trained("wide", 1, 1.5), trained("wide", 2, 1.5)]
    text = studies.markdown(Study("ablation", runs=runs), "ablation")
    assert "| as shipped | 2 | 1.1000 ± 0.1414 |  | 2.00 ± 0.00 | 3.00 ± 0.00 | 1,000 |" in text
    assert "| wide | 2 | 1.5000 ± 0.0000 | +0.4000 ± 0.2000 |" in text


def test_precision_is_within_two_standard_errors_or_not() -> None:
    losses = {FAST: (1.0, 1.2), EXACT: (1.3, 1.3)}
    runs = [trained(name, seed, each[seed - 1]) for name, each in losses.items() for seed in (1, 2)]
    text = studies.markdown(Study("precision", runs=runs), "precision")
    assert "| 10 | 1.1000 ± 0.1414 | 1.3000 ± 0.0000 | -0.2000 | 0.2000 | " in text
    further = [*runs, trained(FAST, 3, 1.1), trained(EXACT, 3, 1.3)]
    assert "| 1.1000 ± 0.1000 | 1.3000 ± 0.0000 | -0.2000 | 0.1155 | no |" in studies.markdown(
        Study("precision", runs=further), "precision"
    )


def test_without_runs_a_study_says_how_to_measure_it(tmp_path: Path) -> None:
    for subject, study in studies.every(tmp_path):
        assert study is None
        assert "Not measured yet" in studies.markdown(study, subject)


@pytest.mark.parametrize("variant", variants.ABLATION[1:], ids=lambda each: each.name)
def test_each_variant_changes_the_preset(variant: variants.Variant, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    write_preset("shakespeare-fast", path)
    changed = load_params(path, list(variant.settings))
    assert changed != load_params(path)
    for setting in variant.settings:
        key = setting.partition("=")[0]
        if variant.name.endswith(("halved", "doubled")):
            one, other = (value_of(each, key) for each in (changed, load_params(path)))
            assert one / other == pytest.approx(0.5 if variant.name.endswith("halved") else 2.0)


def value_of(params: Params, key: str) -> float:
    value = params.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


def test_a_variant_is_trained_through_the_stages(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 200)
    small = (
        "train.budget.amount=2", "train.evaluation.every=1", "train.eval_callbacks.use=[]", "model.n_layers=1",
        "model.emb_dim=16",
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    train = variants.Trainer(tmp_path / "work", "shakespeare-fast", text, small)
    run = train(variants.Variant("two heads", ("model.n_heads=2", "train.batch_size=3")), 7)
    assert (run.preset, run.variant, run.seed, run.steps) == ("shakespeare-fast", "two heads", 7, [0, 1, 2])
    assert run.losses[0] > run.losses[-1] > 0
    assert 0 < run.step_seconds < run.stage_seconds


def test_lines_are_counted_by_room_and_those_that_are_optional_apart() -> None:
    counts = lines.rooms()
    assert counts.total() == sum(path.read_bytes().count(b"\n") for path in (REPOSITORY / "pipeline").rglob("*.py"))
    assert all(counts[room] > 0 for room in lines.OPTIONAL)
    totals = {row.split("  ")[0]: int(row.split()[-1].replace(",", "")) for row in lines.table() if row[0] != " "}
    assert list(totals) == ["the core", "optional", "plugins/"]
    assert totals["the core"] + totals["optional"] == counts.total()


# ── settings of `pipeline fit` ────────────────────────────────────────────────────────────────────


def fit_rows(plan: list[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Made-up runs: the random setting of number n reaches 2 + n/10 bits a byte, fit 2.01."""
    bits = {"fit": 2.01, "0": 2.0, "1": 2.1, "2": 2.2}
    return [
        {"text": text, "setting": setting, "seed": seed, "bits_per_byte": bits[setting] + seed / 1000}
        for text, setting, seed in plan
    ]


def test_the_study_of_fit_repeats_the_best_random_settings_and_compares_means() -> None:
    first = fit.missing([], ["a", "b"], 3)
    assert first[:3] == [("a", "fit", 1), ("b", "fit", 1), ("a", "0", 1)]
    second = fit.missing(fit_rows(first), ["a", "b"], 3)
    assert {(setting, seed) for _, setting, seed in second} == {("0", 2), ("0", 3), ("1", 2), ("1", 3)}
    rows = fit_rows([*first, *second])
    assert fit.missing(rows, ["a", "b"], 3) == []
    header, *lines = fit.table(rows)
    found = dict(zip(header, lines[0], strict=True))
    assert (found["text"], found["settings"], found["fit − best"], found["within"]) == ("a", "3", "+0.010", "yes")


def test_random_settings_are_the_same_each_time_and_can_be_built() -> None:
    for number in range(16):
        drawn = fit.drawn(number)
        assert drawn == fit.drawn(number)
        assert drawn["train.batch_size"] * drawn["model.context_length"] in {1024, 2048, 4096, 8192}
        load_params(REPOSITORY / "params.yaml", [f"{key}={value}" for key, value in drawn.items()])


def test_the_steps_of_a_revision_are_measured_with_its_own_code(tmp_path: Path) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a git checkout")
    revisions.extract("HEAD", tmp_path)
    (tmp_path / "benchmarks" / "mine.py").write_text("def side():\n    return lambda: 1.0, {'here': __file__}\n")
    assert facts_of(Side("mine", "benchmarks.mine:side", project=tmp_path)) == {
        "here": f"{tmp_path}/benchmarks/mine.py"
    }
    assert revisions.summary([1.0, 1.1, 1.2]) == "1.100 (quartiles 1.000 to 1.200)"
