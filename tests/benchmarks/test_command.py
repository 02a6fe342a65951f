import json
import os

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import __main__ as command
from benchmarks import peers
from benchmarks.bench import Sizes
from benchmarks.cuda import GPT
from benchmarks.memory import live_bytes
from benchmarks.networks import Network, adaptive, plain

SMALL = Network("small-cnn", (1, 8, 8))
TINY = Sizes(networks=(SMALL,), elements=1000, batch=4, rounds=2, windows=1, peer_rounds=1)
KEYS = {
    "quantiser",
    "quantize",
    "many",
    "weights-small-cnn",
    "activations-small-cnn",
    "push-down-small-cnn",
    "memory-small-cnn",
    "execution-small-cnn",
    "learned-small-cnn",
}


@pytest.fixture
def _alone(monkeypatch):
    """No other package, and this process's threads, cores and allocator as they were afterwards."""
    monkeypatch.setattr(peers, "load", lambda name: peers.NOT_INSTALLED)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: False)
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("_alone")
def test_the_command_prints_the_whole_table_and_writes_it(tmp_path, capsys):
    command.main(["--device", "cpu", "--machine", "here", "--out", str(tmp_path)], TINY)
    written = json.loads((tmp_path / "here.json").read_text())
    assert set(written) == {"machine", "clock", "rows"}
    assert {row["key"] for row in written["rows"]} == KEYS
    printed = capsys.readouterr().out
    for row in written["rows"]:
        assert row["what"] in printed
        assert isinstance(row["value"], str) or 0 < row["value"]["lower"] <= row["value"]["upper"]
    by_key = {row["key"]: row for row in written["rows"]}
    assert by_key["quantiser"]["peers"]["QPyTorch"] == "not installed"
    assert by_key["weights-small-cnn"]["peers"] == {"QPyTorch": "not installed"}
    assert by_key["activations-small-cnn"]["peers"] == {"QPyTorch": "not installed", "brevitas W8A8": "not installed"}


@pytest.mark.usefixtures("_alone")
def test_a_part_alone_is_printed_but_not_written(tmp_path, capsys):
    command.main(["--only", "memory", "--device", "cpu", "--out", str(tmp_path)], TINY)
    assert "training state" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--only", "nothing"]])
def test_wrong_arguments_end_the_command(arguments):
    with pytest.raises(SystemExit):
        command.main(arguments, TINY)


def test_every_part_of_the_command_line_has_its_rows():
    assert list(command.SECTIONS) == ["quantiser", "steps", "push-down", "memory", "execution", "learned", "cuda"]


def test_live_bytes_counts_memory_once_and_gradients_too():
    before = live_bytes()
    weight = torch.zeros(1000, requires_grad=True)
    view = weight.detach()[:10]
    (2 * weight).sum().backward()
    assert live_bytes() - before == 2 * 4000
    del weight, view
    assert live_bytes() == before


def test_live_bytes_passes_over_sparse_tensors_and_those_that_a_compiler_left_behind():
    before = live_bytes()
    with FakeTensorMode():
        fake = torch.zeros(1000)
    sparse = torch.eye(100).to_sparse()
    assert live_bytes() == before
    del fake, sparse


def test_training_in_float32_and_at_adaptive_precision_starts_from_the_same_weights():
    batches = SMALL.batches(4, torch.device("cpu"))
    first, second = plain(SMALL, batches), adaptive(SMALL, batches)
    masters = second.controller.masters
    for name, parameter in first.model.named_parameters():
        if name in masters:
            assert torch.equal(parameter, masters[name])


def test_a_step_trains_and_shows_the_controller_the_loss():
    training = adaptive(SMALL, SMALL.batches(4, torch.device("cpu")))
    before = {name: master.clone() for name, master in training.controller.masters.items()}
    training()
    assert training.controller.step == 1
    assert any(not torch.equal(before[name], master) for name, master in training.controller.masters.items())
    assert training.controller.trace.step.tolist() == [1]


def test_the_usual_push_down_finds_more_bits_for_a_smaller_tolerance():
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    coarse, fine = (peers.push_down_by_histc(weights, 50, tolerance) for tolerance in (0.5, 0.001))
    assert 2 <= coarse < fine <= 32
    assert peers.push_down_by_histc(torch.zeros(5), 50, 0.01) == 2


@pytest.mark.long
@pytest.mark.parametrize("make", [peers.brevitas, lambda *a: peers.qpytorch(*a, activations=True)])
def test_peers_train_where_they_are_installed(make):
    batches = SMALL.batches(4, torch.device("cpu"))
    training = make(SMALL, batches)
    if isinstance(training, str):
        pytest.skip(training)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    training()
    assert any(not torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


def test_the_small_gpt_trains_at_adaptive_precision():
    gpt = GPT(blocks=1, width=8, heads=2, words=11, context=6)
    batches = gpt.batches(2, torch.device("cpu"))
    words, following = batches[0]
    assert torch.equal(words[:, 1:], following[:, :-1])
    training = adaptive(gpt, batches, autocast=True)
    assert training.model(words).shape == (2, 6, 11)
    training()
    assert training.controller.step == 1
