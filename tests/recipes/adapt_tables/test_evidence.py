import pytest

from recipes.adapt_tables.evidence import gather
from tests.recipes.adapt_tables.made import line, store


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
    (group,) = gather(tmp_path)
    difference = group.difference("adapt")
    assert (difference.mean, difference.error, difference.seeds) == (pytest.approx(2), pytest.approx(1), 2)
    assert group.difference("muppet") is None
    assert not group.runs("muppet")
    assert list(group.methods["adapt"]) == [0, 1, 5]


def test_schedules_data_sets_and_networks_are_kept_apart(tmp_path):
    longer = line("adapt", 0, (0.1, 0.2, 0.3))
    store(tmp_path, longer, line(), line(model="alexnet"), line(data_set="cifar100"))
    groups = gather(tmp_path)
    assert [group.key for group in groups] == [
        ("cifar10", "alexnet"), ("cifar10", "resnet20"), ("cifar10", "resnet20"), ("cifar100", "resnet20"),
    ]  # fmt: skip
    assert groups[1].schedule == "2 epochs, batch 128, 25,000 pictures, onecycle"
    assert groups[2].schedule == "3 epochs, batch 128, 25,000 pictures, onecycle"


def test_where_a_policy_changed_the_newest_counts_alone(tmp_path):
    store(
        tmp_path,
        line("adapt", 0, (0.1,), policy={"name": "AdaPT"}),
        line("adapt", 1, (0.2,), policy={"name": "AdaPT"}),
        line("adapt", 0, (0.3,), policy={"name": "AdaPT", "kl_tolerance": 1}),
    )
    (group,) = gather(tmp_path)
    assert {seed: run["accuracy"] for seed, run in group.methods["adapt"].items()} == {0: 0.3}


def test_iso_accuracy_counts_up_to_the_first_epoch_that_is_as_good(tmp_path):
    store(
        tmp_path,
        line("float32", 0, (0.1, 0.2, 0.5, 0.4)),
        line("adapt", 0, (0.1, 0.4, 0.3, 0.6)),
        line("float32", 1, (0.1, 0.2, 0.5, 0.7)),
        line("adapt", 1, (0.1, 0.2, 0.3, 0.6)),
    )
    (group,) = gather(tmp_path)
    figure = group.iso_accuracy("adapt")
    # Twice as cheap as the whole, and what the two epochs gained by themselves; seed 1 never gets there.
    assert (figure.mean, figure.seeds) == (pytest.approx(1.5 * 4 / 2), 1)


def test_no_file_gives_no_groups(tmp_path):
    assert gather(tmp_path) == []
