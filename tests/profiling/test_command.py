import json
import re

import pytest
import torch
import torch.nn.functional as F

import adapt
from adapt import cli, perfmodel
from adapt.perfmodel import HardwareProfile
from adapt.profiling import calibration, command
from adapt.profiling.html import fragment
from tests.profiling.networks import small

SMALL = ["profile", "tests.profiling.networks:small", "--input", "2,3,4,4"]


def printed(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def card(capsys, *arguments):
    return json.loads(printed(capsys, *arguments, "--format", "json"))


@pytest.fixture
def trace(tmp_path):
    torch.manual_seed(0)
    model = small()
    optimizer = adapt.ASGD(model, lr=0.1, policy=adapt.AdaPT.compact(), rounding="nearest")
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(8, 3, 4, 4)), torch.randint(5, (8,)))
        loss.backward()
        optimizer.controller.observe(loss)
        optimizer.step()
    optimizer.controller.trace.save(tmp_path / "trace.npz")
    return adapt.Trace.load(tmp_path / "trace.npz")


def test_a_card_of_equal_widths(capsys):
    found = card(capsys, *SMALL, "--bits", 4, "--activation-bits", 8, "--hardware", "t4")
    assert found["machine"] == "NVIDIA T4"
    assert found["batch_size"] == 2
    assert found["training"] is None
    first, last = found["layers"]
    assert (first["layer"], first["multiply_adds"], first["runs_at"]) == ("0.weight", 27 * 4 * 16, [8, 8])
    assert (last["weight_bits"], last["activation_bits"]) == (4, 8)
    assert found["totals"]["parameters"] == sum(parameter.numel() for parameter in small().parameters())
    assert found["totals"]["idealised_speedup"] == 8


def test_widths_of_a_trace(capsys, tmp_path, trace):
    found = card(capsys, *SMALL, "--trace", tmp_path)
    counts = perfmodel.operations(small(), torch.zeros(2, 3, 4, 4))
    counts = [counts[name] for name in trace.layers]
    ideal = perfmodel.inference_speedup(counts, trace.word_length[-1:], trace.nonzero[-1:])
    assert found["totals"]["idealised_speedup"] == pytest.approx(ideal)
    assert [row["weight_bits"] for row in found["layers"]] == trace.word_length[-1].tolist()
    training = perfmodel.profiled_training_speedup(counts, trace.word_length, perfmodel.A100)
    assert found["training"]["profiled_speedup"] == pytest.approx(training)
    assert card(capsys, *SMALL, "--trace", tmp_path, "--hardware", "mpic", "--activation-bits", 8)["training"] is None


def test_text_and_html_show_the_same_figures(capsys, trace, tmp_path):
    arguments = [*SMALL, "--trace", tmp_path / "trace.npz"]
    figures, text, page = (
        card(capsys, *arguments),
        printed(capsys, *arguments),
        printed(capsys, *arguments, "--format", "html"),
    )
    for shown in (text, page):
        for value in (
            f"{figures['layers'][0]['multiply_adds']:,}",
            f"profiled {figures['totals']['profiled_speedup']:.2f}×",
            f"bounded by memory {figures['totals']['bounded_speedup']:.2f}×",
            "speedup of training",
            "modelled",
            "NVIDIA A100",
        ):
            assert value in shown
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?://|src=|<script|<link", page)


def test_names_are_escaped(capsys):
    page = printed(capsys, "profile", "tests.profiling.networks:risky", "--input", "1,3", "--format", "html")
    assert "&lt;b&gt;&amp;.weight" in page
    assert "<b>" not in page


def test_a_part_for_another_page(capsys):
    part = fragment(card(capsys, *SMALL))
    assert part.startswith('<section class="adapt-card">')
    assert part.endswith("</section>")


def test_whole_numbers_as_input(capsys):
    found = card(capsys, "profile", "tests.profiling.networks:text", "--input", "1,5:int")
    assert [row["kind"] for row in found["layers"]] == ["lookup", "linear"]


def test_measuring_writes_a_machine_that_cards_can_use(capsys, tmp_path, monkeypatch):
    def quick(progress):
        return calibration.measure_processor(layers=5, rounds=1, progress=progress)

    monkeypatch.setattr(command, "measure_processor", quick)
    file = tmp_path / "mine.toml"
    assert printed(capsys, "profile", "--measure", "-o", file) == ""
    profile = HardwareProfile.load(file)
    found = card(capsys, *SMALL, "--hardware", file)
    assert (found["machine"], found["bound"]) == (profile.name, "measured layers")
    assert card(capsys, *SMALL, "--measure", "-o", file)["machine"] == profile.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile"], "name a network as MODULE:FUNCTION, or measure this processor with --measure"),
        (SMALL[:2], "--input is needed"),
        ([*SMALL[:3], "1,x"], "--input must be whole numbers such as 1,3,32,32 or 1,64:int, got '1,x'"),
        ([*SMALL[:3], "1,0"], "--input must be whole numbers"),
        ([*SMALL[:3], "1,2:float"], "--input must be whole numbers"),
        ([*SMALL[:3], "1,2"], "--input does not fit the network: example_inputs could not be run through Sequential"),
        (["profile", "nowhere", "--input", "1"], "the network must be MODULE:FUNCTION, got 'nowhere'"),
        ([*SMALL, "--hardware", "abacus"], "there is no machine abacus: name a TOML file, or one of a100"),
        ([*SMALL, "--hardware", "mpic", "--bits", "9"], "bits on MPIC (RISC-V), 250 MHz must be between 0 and 8"),
        ([*SMALL, "--bits", "-1"], "word_length must be between 0 and 32, got -1"),
    ],
)
def test_mistakes_are_named(capsys, arguments, message):
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("trace")
def test_a_trace_of_another_network_is_refused(capsys, tmp_path):
    arguments = ["profile", "tests.profiling.networks:text", "--input", "1,5:int", "--trace", str(tmp_path)]
    assert cli.main(arguments) == 1
    assert "has the layer 3.weight, which the network lacks; it has 0.weight, 1.weight" in capsys.readouterr().err
