"""The trade-off study: footprints by hand, the largest network within a budget, its runs, and the report."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recipes.common import ledger
from recipes.tradeoff.__main__ import LEDGER, main
from recipes.tradeoff.report import write
from recipes.tradeoff.runs import TradeoffSettings
from recipes.tradeoff.scaling import RATIO, Footprint, factors, footprint_of, largest
from recipes.tradeoff.study import gather
from recipes.tradeoff.tasks import TASKS, find
from tests.covering import picked
from tests.recipes.small_runs import interrupt, timeless, write_cifar
from tests.recipes.spoken import write_words


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the recipe on a few pictures; its results lie in tmp_path / "out"."""
    write_cifar("cifar10", tmp_path / "data", monkeypatch)

    def run(*arguments):
        main([
            *arguments, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--no-download",
            "--threads", "1", "--device", "cpu", "--epochs", "2", "--subset", "0", "--budget", "6",
        ])  # fmt: skip

    return run


def test_the_baselines_have_the_papers_sizes():
    # Its table 2: ResNet-20 has 270k parameters and a largest activation of 16k.
    assert footprint_of(*TASKS["pictures"]().network(1.0, 1.0)) == Footprint(269_722, 16 * 32 * 32)
    # A light EfficientNet: 254k and 49k.
    assert footprint_of(*TASKS["pictures-efficientnet"]().network(1.0, 1.0)) == Footprint(254_253, 48 * 32 * 32)
    # A character GPT of 4 layers and 128 dimensions: embeddings, then attention, feed-forward and norms, then the head.
    # Its table 1: a GRU of 280k parameters.
    assert 275_000 < footprint_of(*TASKS["keywords-gru"]().network(1.0, 1.0)).parameters < 285_000
    layer = 128 * 384 + 384 + 128 * 128 + 128 + 2 * 128 * 512 + 512 + 128 + 4 * 128
    wanted = 65 * 128 + 64 * 128 + 4 * layer + 2 * 128 + 128 * 65 + 65
    assert footprint_of(*TASKS["text"]().network(1.0, 1.0)) == Footprint(wanted, 512)


def test_the_footprint_counts_parameters_and_the_largest_activation():
    assert Footprint(1000, 200).kilobytes(2, 4) == (2000 + 800) / 8000


@given(st.floats(0.01, 100))
def test_parameters_grow_by_the_scale(scale):
    for scaling in ("compound", "width"):
        width, depth = factors(scale, scaling)
        assert depth * width**2 == pytest.approx(scale)
    assert factors(scale, "width")[1] == 1


def test_a_light_efficientnet_grows_in_width_and_depth():
    network = TASKS["pictures-efficientnet"]().network
    sizes = [footprint_of(*network(*factors(1.3**i, "compound"))) for i in range(-20, 8, 4)]
    assert sizes == sorted(sizes)
    smallest, x = network(0.01, 0.01)
    assert smallest(torch.cat([x, x])).shape == (2, 10)


def made(width, depth):
    """A stack of square layers."""
    size = max(round(10 * width), 1)
    return nn.Sequential(*[nn.Linear(size, size) for _ in range(max(round(5 * depth), 1))]), torch.zeros(1, size)


@settings(deadline=None, max_examples=12)
@given(st.floats(0.01, 50), st.integers(1, 32), st.integers(1, 32), st.sampled_from(["compound", "width"]))
def test_the_largest_network_fits_and_the_next_scale_does_not(budget, bits, activation_bits, scaling):
    try:
        found = largest(made, budget, bits, activation_bits, scaling)
    except ValueError:
        assert footprint_of(*made(*factors(RATIO**-600, scaling))).kilobytes(bits, activation_bits) > budget
        return
    assert found.footprint.kilobytes(bits, activation_bits) <= budget
    following = footprint_of(*made(*factors(found.scale * RATIO, scaling)))
    assert following.kilobytes(bits, activation_bits) > budget or found.scale > RATIO**298


@pytest.mark.parametrize("name", TASKS)
def test_networks_never_become_smaller_when_a_factor_grows(name):
    task = TASKS[name]()
    for fixed in (False, True):
        sizes = [footprint_of(*task.network(f, 0.5 if fixed else f)) for f in (0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3)]
        assert sizes == sorted(sizes)


def test_every_run_leaves_a_line_and_is_not_repeated(command, tmp_path, capsys):
    command("--bits", "4", "32", "--extra-bits", "0", "2")
    lines = ledger.read(tmp_path / "out" / LEDGER)
    assert [(one["settings"]["bits"], one["settings"]["activation_bits"]) for one in lines] == [
        (4, 4),
        (4, 6),
        (32, 32),
    ]
    assert all(one["kilobytes"] <= 6 for one in lines)
    assert lines[0]["parameters"] > lines[1]["parameters"] > lines[2]["parameters"]
    command("--bits", "4", "32", "--extra-bits", "0", "2")
    assert len(ledger.read(tmp_path / "out" / LEDGER)) == 3
    assert "3 of 3" in capsys.readouterr().out
    command("report")
    text = (tmp_path / "out" / "tradeoff.md").read_text(encoding="utf-8")
    assert "## Pictures within 6 kB, 2 epochs" in text
    assert (tmp_path / "out" / "figures" / "tradeoff_pictures_6.png").exists()


def test_an_interrupted_run_goes_on_from_its_last_whole_epoch(command, tmp_path, monkeypatch):
    arguments = ("--bits", "4", "--extra-bits", "0")
    command(*arguments)
    path = tmp_path / "out" / LEDGER
    whole = timeless(ledger.read(path)[0])
    path.unlink()
    interrupt(monkeypatch, lambda: command(*arguments), epoch=2)
    command(*arguments)
    assert timeless(ledger.read(path)[0]) == whole


def test_text_is_trained_with_activations_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(TASKS["text"], "steps", 20)
    (tmp_path / "text").write_text("To be, or not to be, that is the question. " * 60, encoding="utf-8")
    main([
        "--task", "text", "--bits", "3", "--budget", "4", "--epochs", "1", "--data", str(tmp_path / "text"), "--out",
        str(tmp_path), "--device", "cpu",
    ])  # fmt: skip
    (line,) = ledger.read(tmp_path / LEDGER)
    assert line["settings"]["activation_bits"] == 32
    assert line["bits_per_character"] < 5.5
    assert "Best is" in write(tmp_path / LEDGER)


@pytest.mark.parametrize("task", picked(["keywords", "keywords-gru"], "keywords-gru"))
def test_spoken_words_are_told_apart(task, tmp_path):
    write_words(tmp_path, words=("no", "yes"), each=12)
    main([
        "--task", task, "--bits", "4", "--extra-bits", *(["1"] if task == "keywords" else []), "--budget", "12",
        "--epochs", "25", "--data", str(tmp_path), "--out", str(tmp_path), "--device", "cpu",
    ])  # fmt: skip
    (line,) = ledger.read(tmp_path / LEDGER)
    assert line["kilobytes"] <= 12
    assert line["accuracy"] > 0.8


def test_the_winner_is_the_best_mean(tmp_path):
    for bits, scores in ((2, (0.5, 0.7)), (4, (0.55, 0.56))):
        for seed, score in enumerate(scores):
            made = TradeoffSettings(
                method="lsq", task="pictures", budget=40.0, scaling="compound", bits=bits, activation_bits=bits + 1,
                seed=seed,
            )  # fmt: skip
            sizes = {"scale": 1.0, "parameters": 1000, "activation": 10, "kilobytes": 39.0}
            ledger.append(tmp_path / LEDGER, {**made.identity(1), "accuracy": score, **sizes})
    (study,) = gather(tmp_path / LEDGER)
    assert study.best.bits == 2
    assert "Best is 60.00 ± 10.00 % accuracy at 2 bits (compound, k = 1), with 1,000 parameters" in " ".join(
        write(tmp_path / LEDGER).split()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "9"], "bits must be 1 to 8, or 32, got 9"),
        (["--task", "nothing"], "task must be pictures, pictures-efficientnet, text, .*, or module:class"),
        (["--budget", "0.001"], "budget must be at least"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path / "data", monkeypatch)
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(tmp_path / "data"), "--out", str(tmp_path), "--no-download"])


def test_a_task_of_ones_own_is_found_by_module_and_class():
    assert find("recipes.tradeoff.tasks:TextTask").name == "text"
