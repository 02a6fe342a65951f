import pytest

from recipes.common.markdown import END, inserted
from recipes.common.markdown import start as start_of
from recipes.mixed_precision import figure
from recipes.mixed_precision.report import gather, summary, table
from tests.recipes.mixed_precision.samples import line, start, store


@pytest.fixture
def results(tmp_path):
    store(
        tmp_path,
        start(0, 0.75),
        start(1, 0.77),
        line("float32", 0, 0.80),
        line("lsq4", 0, 0.78, seconds=12.0),
        line("learned4", 0, 0.79, seconds=13.0, missed=0.05),
        line("learned4", 1, 0.81, seconds=14.0, missed=0.07),
        line("float32", 1, 0.82),
        line("lsq4", 1, 0.77, seconds=14.0),
        line("compact", 0, 0.70),
        line("learned3", 0, 0.76),
    )
    return tmp_path


def cells(text, start):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_learned_widths_are_compared_with_lsq_of_their_bytes_and_seed(results):
    (experiment,) = gather(results)
    text = table(experiment)
    assert cells(text, "start")[0] == "76.00 ± 1.00"
    assert cells(text, "float32") == [
        "81.00 ± 1.00", "–", "–", "320.0", "160.0", "480.0", "32.00, 32.00", "–", "–", "–", "2",
    ]  # fmt: skip
    assert cells(text, "lsq4") == [
        "77.50 ± 0.50", "−3.50 ± 1.50", "–", "40.0", "20.0", "60.0", "4.00, 4.00", "–", "–",
        "1.30 ± 0.10", "2",
    ]  # fmt: skip
    assert cells(text, "learned4") == [
        "80.00 ± 1.00", "−1.00", "+2.50 ± 1.50", "39.6", "19.6", "59.2", "3.96, 3.92", "−1.00 %, −2.00 %",
        "+6.00 %, +10.00 %", "1.35 ± 0.05", "2",
    ]  # fmt: skip
    assert cells(text, "learned3")[1:3] == ["−4.00", "–"]
    assert cells(text, "learned3")[7:9] == ["–", "–"]
    assert cells(text, "compact")[:6] == ["70.00", "−10.00", "–", "60.0", "30.0", "90.0"]
    assert len({row.count("|") for row in text.splitlines()}) == 1


def test_the_summary_has_a_row_for_each_budget_and_tells_the_rest(results):
    text = summary(gather(results))
    assert cells(text, "ResNet-20, 4 bits on average") == [
        "59", "77.50 ± 0.50", "80.00 ± 1.00", "+2.50 ± 1.50", "−1.00",
    ]  # fmt: skip
    assert "3 bits" not in text
    told = " ".join(text.split("\n\n")[1].split())
    assert told == (
        "ResNet-20 on 25,000 pictures of CIFAR-10: 8 epochs in float32, then 2 of tuning, batch 128; 1 to 2 seeds. "
        "Start 76.00 ± 1.00 %, float32 tuned for as long 81.00 ± 1.00 %, compact 70.00 % in 90 kB."
    )


def test_networks_and_schedules_are_kept_apart(results):
    store(
        results,
        start(0, 0.5, "mobilenet-v2-quarter"),
        line("lsq4", 0, 0.6, model="mobilenet-v2-quarter"),
        line("lsq4", 0, 0.9, epochs=5),
    )
    first, second, third = gather(results)
    assert first.title == ("ResNet-20 on 25,000 pictures of CIFAR-10: 8 epochs in float32, then 2 of tuning, batch 128")
    assert second.title.startswith("MobileNetV2 with a quarter of the channels on 25,000")
    assert third.title.endswith("then 5 of tuning, batch 128")
    assert [list(experiment.starts) for experiment in (first, second, third)] == [[0, 1], [0], [0, 1]]
    assert list(second.methods) == ["lsq4"]


def test_a_run_made_again_in_another_way_replaces_those_before(results):
    store(results, line("learned4", 0, 0.9, policy={"name": "LearnedWidths", "update_every": 5}))
    (experiment,) = gather(results)
    assert {seed: run["accuracy"] for seed, run in experiment.runs("learned4").items()} == {0: 0.9}


def test_on_a_device_the_clock_counts(results):
    runs = [line("float32", 5, 0.8), line("lsq4", 5, 0.8, seconds=20.0)]
    for run in runs:
        run["provenance"]["device"] = "cuda"
        run["settings"]["epochs"] = 3
        for epoch in run["history"]:
            epoch["processor_seconds"] = 0.0
    store(results, *runs)
    assert cells(table(gather(results)[1]), "lsq4")[9] == "2.00"


def test_the_report_lies_beside_the_results_and_its_summary_goes_between_the_marks(results, command, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{start_of('mixed_precision')}\nold\n{END}\nafter\n")
    command("report", "--out", str(results), "--page", str(page))
    assert capsys.readouterr().out.strip() == summary(gather(results)) == inserted("mixed_precision", page)
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{END}\nafter\n")
    text = (results / "mixed_precision.md").read_text()
    assert "78.00, 77.00 % with the seeds 0, 1; the first by `python -m recipes.mixed_precision --methods lsq`" in text
    assert "](figures/mixed_precision.png)" in text
    assert (results / "figures" / "mixed_precision.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_shows_every_point(results):
    (axes,) = figure.draw(gather(results)).axes
    assert axes.get_title(loc="left") == "ResNet-20"
    by_label = {handle.get_label(): handle for handle in axes.containers}
    learned = by_label["learned widths"].lines[0]
    assert learned.get_xdata().tolist() == pytest.approx([44.4, 59.2])
    assert learned.get_ydata().tolist() == pytest.approx([76, 80])
    assert by_label["AdaPT, compact"].lines[0].get_ydata().tolist() == pytest.approx([70])


def test_the_front_holds_what_nothing_beats():
    points = [(10.0, 70.0), (20.0, 69.0), (20.0, 80.0), (30.0, 80.0), (40.0, 81.0)]
    assert figure.pareto(points) == [True, False, True, False, True]


def test_labels_of_sizes_do_not_touch():
    assert figure.spaced([44.4, 45.0, 59.2, 60.0, 118.4, 120.0]) == [120.0, 60.0, 45.0]
    assert figure.spaced([]) == []


def test_a_damaged_file_is_told(results, command):
    with (results / "mixed_precision.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(SystemExit, match=r"mixed_precision\.jsonl is damaged in line 11"):
        command("report", "--out", str(results))
