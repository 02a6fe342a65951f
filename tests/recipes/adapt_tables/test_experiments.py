import pytest

from recipes.adapt_tables.experiments import gather
from tests.recipes.adapt_tables.samples import line, store


def test_differences_pair_runs_of_one_seed(tmp_path):
    store(
        tmp_path,
        line("float32", 0, (0.50,)),
        line("float32", 1, (0.60,)),
        line("float32", 7, (0.99,)),
        line("adapt", 1, (0.63,)),
        line("adapt", 0, (0.51,)),
        line("adapt", 5, (0.01,)),
    )
    (experiment,) = gather(tmp_path)
    difference = experiment.difference("adapt")
    assert (difference.mean, difference.error, difference.seeds) == (pytest.approx(2), pytest.approx(1), 2)
    assert experiment.difference("muppet") is None
    assert not experiment.runs("muppet")
    assert list(experiment.methods["adapt"]) == [0, 1, 5]


def test_schedules_data_sets_and_networks_are_kept_apart(tmp_path):
    longer = line("adapt", 0, (0.1, 0.2, 0.3))
    store(tmp_path, longer, line(), line(model="alexnet"), line(data_set="cifar100"))
    experiments = gather(tmp_path)
    assert [experiment.key for experiment in experiments] == [
        ("cifar10", "alexnet"), ("cifar10", "resnet20"), ("cifar10", "resnet20"), ("cifar100", "resnet20"),
    ]  # fmt: skip
    assert experiments[1].schedule == "2 epochs, batch 128, 25,000 pictures, onecycle"
    assert experiments[2].schedule == "3 epochs, batch 128, 25,000 pictures, onecycle"


def test_where_a_policy_changed_the_newest_counts_alone(tmp_path):
    store(
        tmp_path,
        line("adapt", 0, (0.1,), policy={"name": "AdaPT"}),
        line("adapt", 1, (0.2,), policy={"name": "AdaPT"}),
        line("adapt", 0, (0.3,), policy={"name": "AdaPT", "kl_tolerance": 1}),
    )
    (experiment,) = gather(tmp_path)
    assert {seed: run["accuracy"] for seed, run in experiment.methods["adapt"].items()} == {0: 0.3}


def test_iso_accuracy_counts_up_to_the_first_epoch_that_is_as_good(tmp_path):
    store(
        tmp_path,
        line("float32", 0, (0.1, 0.2, 0.5, 0.4)),
        line("adapt", 0, (0.1, 0.4, 0.3, 0.6)),
        line("float32", 1, (0.1, 0.2, 0.5, 0.7)),
        line("adapt", 1, (0.1, 0.2, 0.3, 0.6)),
    )
    (experiment,) = gather(tmp_path)
    figure = experiment.iso_accuracy("adapt")
    # Twice as cheap as the whole, and what the two epochs gained by themselves; seed 1 never gets there.
    assert (figure.mean, figure.seeds) == (pytest.approx(1.5 * 4 / 2), 1)


def test_no_file_gives_no_experiments(tmp_path):
    assert gather(tmp_path) == []
