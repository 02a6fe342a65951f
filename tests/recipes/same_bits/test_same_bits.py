"""The recipe that compares adaptive precision with the same bits for every layer."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import adapt
from adapt import files
from recipes.common import ledger
from recipes.common.data import Pictures
from recipes.common.models import resnet
from recipes.same_bits import __main__ as command_line
from recipes.same_bits import methods, sizes
from recipes.same_bits.report import Difference, document, paired
from recipes.same_bits.settings import Settings
from recipes.same_bits.start import Start, own, published
from recipes.same_bits.tuning import tune


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Pictures(images, torch.randint(10, (number,), generator=generator), 10)


SPLITS = pictures(24), pictures(20, seed=1)


def start(seed=0):
    torch.manual_seed(seed)
    return Start("random", resnet(), *SPLITS[0].statistics(), natural=True)


def published_name(name):
    """The name that a published checkpoint has for a tensor of `resnet20`."""
    head, _, rest = name.partition(".")
    if head in {"0": "conv1", "1": "bn1", "14": "linear"}:
        return f"module.{ {'0': 'conv1', '1': 'bn1', '14': 'linear'}[head] }.{rest}"
    stage, block = divmod(int(head) - 3, 3)
    return f"module.layer{stage + 1}.{block}.{rest.replace('norm', 'bn')}"


def test_a_published_checkpoint_becomes_the_network(tmp_path):
    torch.manual_seed(1)
    model = resnet()
    state = {published_name(n): t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert "module.layer2.0.bn1.running_var" in state
    torch.save({"state_dict": state}, tmp_path / "net.th")
    found = published(tmp_path / "net.th")
    assert found.name == "net.th"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.model.eval()(x), model.eval()(x))


@pytest.mark.parametrize("content", [{"weights": 1}, {"state_dict": {"module.conv1.weight": torch.zeros(16, 3, 3, 3)}}])
def test_another_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.th")
    with pytest.raises(ValueError, match=r"net\.th (must hold|is not a ResNet-20)"):
        published(tmp_path / "net.th")


def test_an_own_start_is_trained_once(tmp_path, capsys):
    splits = pictures(128), SPLITS[1]
    first, again = (own(splits, "cifar10", "resnet20", 1, tmp_path) for _ in range(2))
    assert (first.name, first.natural) == ("resnet20 on cifar10, epoch 1", True)
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_sizes_of_known_words():
    lengths = [torch.tensor([3] * 3), torch.tensor([8] * 10 + [6] * 2)]
    assert sizes.mean_bits(lengths) == pytest.approx(101 / 15)
    assert sizes.dense_bytes(lengths) == 2 + 12
    assert sizes.entropy(torch.tensor([0, 0, 1, -1])) == 1.5
    assert sizes.entropy(torch.zeros(5)) == sizes.entropy(torch.zeros(0)) == 0
    assert sizes.entropy_bytes([torch.arange(16), torch.arange(2).repeat(4)]) == 8 + 1
    form = adapt.Format(np.array([2, 4]), np.ones(2), np.ones(2, bool), np.array([-2, -8]), np.array([1, 7]), axis=0)
    assert sizes.word_lengths(form, torch.zeros(2, 3)).tolist() == [2, 2, 2, 4, 4, 4]
    assert sizes.word_lengths(adapt.Format.of(adapt.Precision(5, 1)), torch.zeros(2, 2)).tolist() == [5] * 4


def attached(method, bits, **options):
    model = torch.nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return methods.attach(Settings(method, bits, options), optimizer, model, steps=100)


def test_methods_attach_their_controllers():
    assert attached("float32", None) is None
    assert attached("block", 5).policy.word_lengths == (5,)
    uniform = attached("uniform", 4)
    assert uniform.policy == attached("compact", 4).policy
    assert uniform.formats["weight"].word_length == 4
    assert attached("cyclic", 6, cycles=2).policy == adapt.CyclicPrecision(100, (3, 6), cycles=2)
    assert attached("compact", 4, lookback=[1, 9]).policy == adapt.AdaPT.compact(bits=4, lookback=(1, 9))
    assert attached("compact", None).policy == adapt.AdaPT.compact()
    assert attached("lsq", 3).formats["weight"].word_length.tolist() == [3] * 8
    assert attached("lsq-layer", 3).formats["weight"].word_length.size == 1
    assert attached("lsq-p2", 3).formats["weight"].fraction_length.size == 8
    assert attached("lsq-layer-p2", 3).formats["weight"].fraction_length.size == 1
    assert attached("adapt", None).policy == adapt.AdaPT()
    learned = attached("learned", 4).plan
    assert learned.weight_budget.bits == 4
    assert learned.phases == adapt.learned.Phases(10, 80, 10)
    assert attached("learned", 4, phases=[0.1, 0.2, 0.7]).plan.phases == adapt.learned.Phases(10, 20, 70)
    with pytest.raises(ValueError, match="adapt chooses its bits by itself, got 4"):
        attached("adapt", 4)
    with pytest.raises(ValueError, match="block needs the bits"):
        attached("block", None)
    with pytest.raises(ValueError, match="float32 takes neither"):
        attached("float32", 4)


@pytest.mark.parametrize(("method", "step_bytes"), [("block", 0), ("uniform", 0), ("lsq", 4), ("lsq-p2", 1)])
def test_words_of_one_length_fill_their_bytes_beside_the_steps_of_channels(method, step_bytes):
    figures = tune(Settings(method, 3, batch_size=8), start(), SPLITS)
    layers = [p for p in resnet().parameters() if p.ndim > 1]
    assert figures["bits"] == 3
    assert figures["dense_bytes"] == sum(-(-3 * p.numel() // 8) + step_bytes * len(p) for p in layers)


@pytest.mark.parametrize("method", ["block", "compact", "lsq", "learned", "aqt"])
def test_activations_get_their_bits(method):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, settings = torch.randn(4, 6), Settings(method, 4, {"activations": 5})
    controller = methods.attach(settings, optimizer, model, steps=5, calibration=[x])
    model(x).sum().backward()
    optimizer.step()
    model(x)
    # Learned widths begin above their budget; the first layer of aqt has 8 bits, and so has the last.
    wanted = {"learned": 7, "aqt": 8}.get(method, 5)
    assert controller.formats["0.input"].word_length == wanted


@pytest.mark.parametrize("method", ["compact", "compact-channels"])
def test_a_run_reports_what_it_has_on_disk(method):
    settings = Settings(method, 4, {"lookback": [1, 4]}, batch_size=4)
    figures = tune(settings, start(), SPLITS)
    words = [word for word, _ in figures["formats"]]
    layers = [p for p in resnet().parameters() if p.ndim > 1]
    numel = [p.numel() for p in layers]
    shifts = sum(map(len, layers)) if method == "compact-channels" else 0
    assert figures["bits"] == pytest.approx(np.dot(words, numel) / sum(numel))
    assert 3.92 <= figures["bits"] <= 4
    assert figures["dense_bytes"] - shifts == pytest.approx(figures["bits"] * sum(numel) / 8, abs=len(words))
    assert 0 < figures["entropy_bytes"] <= figures["dense_bytes"]
    assert len(figures["changes"]) == 10
    assert 0 <= figures["accuracy"] <= 1


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    settings = Settings("compact", 3, {"lookback": [1, 4]}, epochs=2, batch_size=8, execution=None)
    whole = tune(settings, start(), SPLITS)

    def interrupted(state, path, save=files.save):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(settings, start(), SPLITS, tmp_path / "run.pt")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="belongs to another run"):
        tune(Settings("block", 3, batch_size=8), start(), SPLITS, tmp_path / "run.pt")
    assert tune(settings, start(seed=5), SPLITS, tmp_path / "run.pt") == whole
    assert not (tmp_path / "run.pt").exists()


def test_the_command_makes_each_run_once(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(command_line.data, "load", lambda *a, **k: SPLITS)
    monkeypatch.setattr(command_line, "own", lambda *a: start())
    monkeypatch.setattr(command_line, "tune", lambda s, *a: made.append(s) or {"accuracy": 0.5, "bits": 4.0})
    arguments = ["block:4", "compact", "--seeds", "0", "1", "--out", str(tmp_path / "a.jsonl")]
    command_line.main(arguments)
    command_line.main(arguments)
    assert [(s.method, s.bits, s.seed) for s in made] == [
        ("block", 4, 0),
        ("compact", None, 0),
        ("block", 4, 1),
        ("compact", None, 1),
    ]
    with pytest.raises(SystemExit, match="leave it out to train lenet5 on fashion-mnist first"):
        command_line.main(["block:4", "--start", "a.th", "--data-set", "fashion-mnist", "--model", "lenet5"])
    with pytest.raises(SystemExit, match=r"method must be one of float32, block, uniform, .*, got 'blok'"):
        command_line.main(["blok:4"])
    lines = ledger.read(tmp_path / "a.jsonl")
    assert len(lines) == 4
    assert lines[0]["command"].startswith("python -m recipes.same_bits block:4 compact --seeds 0 1")


def test_differences_have_the_interval_of_students_t():
    a, b = [0.3, 0.5, 0.1, 0.45], [0.1, 0.2, 0.2, 0.3]
    found = Difference.of(a, b)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.pairs == 4
    assert Difference.of([1.0], [0.5]).text() == "+0.50"
    assert math.isnan(Difference.of([1.0], [0.5]).half_width)
    with pytest.raises(ValueError, match="at least one pair"):
        Difference.of([], [])


def line(method, bits, seed, accuracy):
    settings = {"method": method, "bits": bits, "options": {}, "seed": seed, "epochs": 1}
    sizes_ = {} if method == "float32" else {"dense_bytes": 1000, "entropy_bytes": 900}
    return {"label": "", "start": "net.th", "settings": settings, "accuracy": accuracy, "bits": bits or 32.0, **sizes_}


def test_the_report_pairs_runs_of_the_same_seed():
    lines = [line("block", 4, 0, 0.86), line("block", 4, 1, 0.85), line("float32", None, 0, 0.87)]
    lines += [line("compact", 4, seed, accuracy) for seed, accuracy in ((0, 0.865), (1, 0.859), (2, 0.5))]
    runs = {seed: lines[3 + seed] for seed in range(3)}
    assert paired(runs, {0: lines[0], 1: lines[1]}).mean == pytest.approx(0.7)
    assert paired(runs, {7: lines[0]}) is None
    text = document(lines)
    assert "| compact 4 | 4.00 | 74.13 ± 12.07 | 1,000 | 900 | +0.70 [−1.84, +3.24] | – | – | −0.50 | 3 |" in text
    assert "| float32 | 32.00 | 87.00 | – | – | – | – | – | – | 1 |" in text
    coded = [line("block", 3, 0, 0.81) | {"entropy_bytes": 400}, line("compact-entropy", 2, 0, 0.862)]
    coded += [line("lsq-layer-p2", 4, 0, 0.86), line("uniform", 4, 0, 0.863)]
    coded += [line("compact-channels", 3.979, 0, 0.864)]
    text = document(lines + coded)
    assert "| compact-entropy 2 | 2.00 | 86.20 | 1,000 | 900 | +0.20 | – | – | −0.80 | 1 |" in text
    assert "900 | +0.70 [−1.84, +3.24] | +0.20 | +0.50 | −0.50 | 3 |" in text
    assert "900 | +0.40 | +0.10 | +0.40 | −0.60 | 1 |" in text, "compact-channels 3.979 stands beside 4 bits"
    other = document([*lines, line("compact", 4, 0, 0.99) | {"start": "lenet5"}])
    assert other.startswith(document(lines))  # nothing is paired with runs from another start
    assert other.split("## From lenet5")[1].count("| compact 4 | 4.00 | 99.00 | 1,000 | 900 | – | – | – | – | 1 |") == 1
    with pytest.raises(ValueError, match="no results yet"):
        document([])


def test_the_report_compares_runs_with_the_same_activations():
    def rounded(method, accuracy):
        found = line(method, 4, 0, accuracy)
        return found | {"settings": found["settings"] | {"options": {"activations": 5}}}

    text = document([line("block", 4, 0, 0.86), rounded("block", 0.83), rounded("compact", 0.84)])
    assert "| compact 4 with 5-bit activations | 4.00 | 84.00 | 1,000 | 900 | +1.00 | – | – | – | 1 |" in text
