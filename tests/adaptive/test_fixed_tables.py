"""A whole table of formats: written as JSON, read again, and trained with."""

import json

import pytest
import torch

import adapt
from adapt.cli import main
from adapt.export import to_json
from adapt.numerics import BlockFloat
from tests.learned import networks
from tests.training import RESTLESS, assembled, copies, net, train

EVERYTHING = {"quantize_biases": True, "activations": 8}
TABLE = {"0.weight": adapt.Precision(6, 5), "2.weight": adapt.Precision(4, 3)}


def trained(policy=RESTLESS, steps=9, **options):
    model, optimizer, controller = assembled(policy=policy, **options)
    train(model, optimizer, steps, controller=controller)
    return model, optimizer, controller


@pytest.mark.parametrize("policy", [RESTLESS, adapt.AdaPT.compact(bits=3, lookback=(2, 4)), adapt.MuPPET(2)])
def test_a_run_goes_on_in_the_formats_of_a_file(policy, tmp_path):
    _, optimizer, controller = trained(policy, **EVERYTHING)
    adapt.save({"optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    to_json(controller.formats, tmp_path / "f.json")
    assert main(["export", str(tmp_path / "run.pt"), "--to", "json", "-o", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "f.json").read_bytes()
    assert adapt.formats(tmp_path / "f.json") == controller.formats == adapt.formats(tmp_path / "run.pt")

    for source in ("f.json", "run.pt"):
        again, its_optimizer, its_controller = assembled(net(), adapt.Fixed(adapt.formats(tmp_path / source)))
        assert its_controller.precisions == controller.precisions
        train(again, its_optimizer, 5, controller=its_controller)
        assert its_controller.precisions == controller.precisions
        with its_controller.evaluation_weights():
            for name, weight in copies(again.named_parameters()).items():
                if name in its_controller.precisions:
                    assert torch.equal(its_controller.formats[name].quantize(weight), weight)


def test_a_table_of_any_formats():
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4)))
    table = {"3.weight": None, "1.weight": BlockFloat(5), "0.weight": adapt.Precision(6, 5)}
    table |= {"2.weight": adapt.Format.of(adapt.Precision(7, 6)), "0.input": adapt.Format(8, 0.3125, False, 0, 255)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = adapt.attach(optimizer, model, adapt.Fixed(table))
    found = list(controller.precisions.values())
    assert found[0] == adapt.Precision(6, 5)
    assert (found[1].word_length, found[2], found[3]) == (5, adapt.Precision(7, 6), None)


def test_a_table_and_one_format_behave_alike():
    precision = adapt.Precision(6, 5)
    one, table = trained(adapt.Fixed(precision)), trained(adapt.Fixed(dict.fromkeys(TABLE, precision)))
    for name, master in one[2].masters.items():
        assert torch.equal(master, table[2].masters[name])


def test_a_resumed_run_takes_the_formats_of_its_table():
    _, optimizer, controller = trained(adapt.Fixed(TABLE))
    state = optimizer.state_dict()
    for table in (TABLE, {**TABLE, "0.weight": adapt.Precision(8, 7)}):
        model, its_optimizer, its_controller = assembled(policy=adapt.Fixed(table))
        its_optimizer.load_state_dict(state)
        train(model, its_optimizer, 2, first=9, controller=its_controller)
        assert its_controller.precisions == table
    controller.policy = adapt.Fixed(dict.fromkeys(TABLE, adapt.Precision(5, 4)))
    with pytest.raises(ValueError, match=r"precision has no format for 2.weight"):
        controller.policy = adapt.Fixed({"0.weight": adapt.Precision(5, 4)})
    assert controller.policy.precision["0.weight"] == adapt.Precision(5, 4)


def test_layers_come_in_their_own_order_and_may_join_and_begin_anew():
    model = net()
    model[0].requires_grad_(False)
    model, optimizer, controller = assembled(model, adapt.Fixed(TABLE))
    train(model, optimizer, 2, controller=controller)
    model[0].requires_grad_(True)
    train(model, optimizer, 2, first=2, controller=controller)
    assert controller.precisions == TABLE
    model[2].weight.data.copy_(net(4)[2].weight)
    model.load_state_dict(net(4).state_dict() | {"0.weight": model[0].weight})
    train(model, optimizer, 2, first=4, controller=controller)
    assert controller.precisions == TABLE


def test_what_cannot_be_trained_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"precision has no format for 2.weight, but for 0.weight: add the missing"):
        assembled(policy=adapt.Fixed({"0.weight": adapt.Precision(6, 5)}))
    _, _, learner = networks.learning()
    to_json(learner.formats, tmp_path / "f.json")
    table = adapt.formats(tmp_path / "f.json")
    assert table == learner.formats
    model, optimizer = networks.build()
    with pytest.raises(
        ValueError, match=r"first.weight cannot be trained in its format: its channels' steps are not all powers of two"
    ):
        adapt.attach(optimizer, model, adapt.Fixed(table))
    for wrong in (8, {"0.weight": 8}, {0: adapt.Precision(6, 5)}, None, BlockFloat):
        with pytest.raises(TypeError, match="precision must"):
            adapt.Fixed(wrong)
    with pytest.raises(TypeError, match=r"formats that stay, by the layers' names, are adapt.Fixed\(formats\)"):
        adapt.attach(optimizer, model, TABLE)


def test_steps_of_lsq_that_are_powers_of_two_can_be_trained_with():
    _, _, learner = networks.given(4, per_channel=False, power_of_two=True)
    model, optimizer = networks.build()
    controller = adapt.attach(optimizer, model, adapt.Fixed(adapt.formats(learner)))
    assert all(learner.formats[name] == form for name, form in controller.formats.items())


def test_a_table_by_hand(tmp_path, capsys):
    table = {name: {"word_length": p.word_length, "fraction_length": p.fraction_length} for name, p in TABLE.items()}
    content = {"format": "adapt.formats", "version": 1, "formats": table}
    (tmp_path / "f.json").write_text(json.dumps(content))
    _, _, controller = assembled(policy=adapt.Fixed(adapt.formats(tmp_path / "f.json")))
    assert controller.precisions == TABLE
    assert main(["show", str(tmp_path / "f.json")]) == 0
    assert "0.weight  ⟨6, 5⟩" in capsys.readouterr().out
