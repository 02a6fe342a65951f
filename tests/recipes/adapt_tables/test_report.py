import pytest

from recipes.adapt_tables import tables
from recipes.adapt_tables.experiments import gather
from recipes.adapt_tables.report import document, summary, write
from recipes.common.markdown import END, insert, start
from tests.recipes.adapt_tables.samples import line, store


@pytest.fixture
def results(tmp_path):
    store(
        tmp_path,
        line("float32", 0, (0.5, 0.80)),
        line("float32", 1, (0.5, 0.82)),
        line("adapt", 0, (0.81, 0.81), size_ratio=0.4, training_speedup=1.3),
        line("adapt", 1, (0.5, 0.80), size_ratio=0.5, training_speedup=1.4),
        line("adapt-nearest", 0, (0.5, 0.7)),
    )
    return tmp_path


def cells(text, start):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_table_2_has_ours_beside_the_papers(results):
    text = tables.accuracies(gather(results), "cifar10")
    assert cells(text, "ResNet-20, AdaPT, the paper") == ["89.5", "90.0", "+0.5", "100 epochs, batch 512"]
    assert cells(text, "ResNet-20, AdaPT, ours") == [
        "81.0 ± 1.0", "80.5 ± 0.5", "−0.5 ± 1.5", "2 epochs, batch 128, 25,000 pictures, onecycle, 2 seeds",
    ]  # fmt: skip
    assert cells(text, "ResNet-20, MuPPET, the paper")[:3] == ["90.1", "90.9", "+0.8"]
    assert cells(text, "AlexNet, AdaPT, ours") == ["not run", "", "", ""]


def test_table_3_counts_in_every_way(results):
    text = tables.training(gather(results), "cifar10")
    assert cells(text, "ResNet-20, AdaPT, the paper") == ["–", "1.63", "1.20", "–", "1.49", "4.01"]
    assert cells(text, "ResNet-20, AdaPT, ours") == [
        "1.50", "1.70", "1.35 ± 0.05", "1.10", "3.00 (1 of 2 seeds)", "–",
    ]  # fmt: skip
    assert cells(text, "AlexNet, MuPPET, the paper") == ["–", "1.66", "?", "–", "?", "1.20"]


def test_tables_5_and_6(results):
    experiments = gather(results)
    assert cells(tables.sparsities(experiments, "cifar10"), "ResNet-20, AdaPT, ours") == ["0.10", "0.05"]
    assert cells(tables.sparsities(experiments, "cifar100"), "AlexNet, AdaPT, the paper") == ["0.44", "0.35"]
    text = tables.inference(experiments, "cifar10")
    assert cells(text, "ResNet-20, AdaPT, ours") == ["0.45 ± 0.05", "0.70", "2.00"]
    assert cells(text, "AlexNet, AdaPT, the paper") == ["–", "0.54", "3.56"]


def test_every_table_is_square(results):
    for part in document(gather(results), []).split("\n\n"):
        if part.startswith("|"):
            assert len({row.count("|") for row in part.splitlines()}) == 1, part


def test_the_summary_says_what_was_run_and_what_was_not(results):
    text = summary(gather(results))
    assert cells(text, "ResNet-20, AdaPT in the paper") == ["90.0", "+0.5", "–", "0.60", "1.20", "1.63", "1.63"]
    assert cells(text, "ResNet-20, AdaPT") == [
        "80.5 ± 0.5", "−0.5 ± 1.5", "16.0", "0.450 ± 0.050", "1.35 ± 0.05", "2.00", "1.50",
    ]  # fmt: skip
    assert cells(text, "ResNet-20, MuPPET")[0] == "not run"
    below = " ".join(text.split("\n\n")[1].split())
    assert "ResNet-20 2 epochs, batch 128, 25,000 pictures, onecycle, 2 seeds" in below
    assert "Not run: AlexNet on CIFAR-10, AlexNet on CIFAR-100" in below


def test_every_method_has_a_row_and_its_command(results):
    text = document(gather(results), [])
    assert cells(text, "adapt-nearest")[:2] == ["70.0", "−10.0"]
    assert "`python -m recipes.adapt_tables cifar10-resnet20 --methods adapt-nearest`" in text


def test_what_should_be_known_of_the_runs_is_told(results):
    write(results)
    without = (results / "adapt_tables.md").read_text()
    (results / "note.md").write_text("The pictures are noise.\n")
    write(results)
    told = (results / "adapt_tables.md").read_text()
    assert told.replace("The pictures are noise.\n\n", "") == without != told


def test_figures_are_drawn_from_the_traces_that_are_there(tmp_path):
    for network in ("resnet20", "alexnet"):
        made = [line(method, model=network) for method in ("adapt", "muppet")]
        for run in made:
            run["trace"] = f"traces/{network}-{run['settings']['method']}.npz"
        store(tmp_path, line("float32", model=network), *made)
    (tmp_path / "traces" / "alexnet-muppet.npz").unlink()
    write(tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [f"figure{n}.png" for n in range(3, 9)]
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "adapt_tables.md").read_text()
    for number in range(3, 9):
        assert f"](figures/figure{number}.png)" in text


def test_without_traces_there_are_tables_alone(results):
    write(results)
    assert list((results / "figures").iterdir()) == []
    assert "![" not in (results / "adapt_tables.md").read_text()


def test_the_summary_goes_between_the_marks(results, command, tmp_path):
    readme = tmp_path / "page.md"
    readme.write_text(f"before\n\n{start('adapt_tables')}\nold\n{END}\n\nafter\n")
    command("report", "--out", str(results), "--page", str(readme))
    text = readme.read_text()
    assert text == f"before\n\n{start('adapt_tables')}\n\n{summary(gather(results))}\n\n{END}\n\nafter\n"
    insert(summary(gather(results)), "adapt_tables", readme)
    assert readme.read_text() == text


def test_what_cannot_be_reported_ends_in_one_sentence(command, results, tmp_path):
    with pytest.raises(SystemExit, match="holds no results yet: run a row first"):
        command("report")
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match=r"page\.md must hold the lines"):
        command("report", "--out", str(results), "--page", str(page))
    assert page.read_text() == "no marks"
