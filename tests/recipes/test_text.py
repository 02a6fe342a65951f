import hashlib

import pytest
import torch

from recipes.common import text as texts
from recipes.common.download import DataError
from recipes.common.text import Excerpts, Text, load, windows


def test_a_text_becomes_numbers_and_back():
    content = "the cat sat on the mat, the hat\n" * 4
    text = Text.of(content)
    numbers = torch.cat([text.training, text.held_out])
    assert "".join(text.alphabet[number] for number in numbers) == content
    assert len(text.held_out) == len(content) // 10
    assert text.alphabet == "".join(sorted(set(content)))
    assert text.digest != Text.of(content + "!").digest


def epoch_of(excerpts, epoch):
    excerpts.set_epoch(epoch)
    return [torch.cat([x[:, :1], y], dim=1) for x, y in excerpts]


def test_excerpts_follow_from_seed_and_epoch_alone():
    numbers = torch.arange(1000)
    options = {"batch_size": 3, "context": 20, "steps": 4}
    first = epoch_of(Excerpts(numbers, **options, seed=1), 2)
    assert len(first) == len(Excerpts(numbers, **options, seed=1)) == 4
    for batch in first:
        assert batch.shape == (3, 21)
        assert torch.equal(batch - batch[:, :1], torch.arange(21).expand(3, 21))
    torch.rand(5)
    again = Excerpts(numbers, **options, seed=1)
    assert all(map(torch.equal, first, epoch_of(again, 2)))
    for others in (epoch_of(again, 3), epoch_of(Excerpts(numbers, **options, seed=2), 2)):
        assert not all(map(torch.equal, first, others))


def test_the_classes_of_an_excerpt_are_one_character_on():
    for x, y in Excerpts(torch.arange(1000), batch_size=3, context=20, steps=4, seed=1):
        assert x.shape == (3, 20)
        assert torch.equal(y, x + 1)


def test_excerpts_reach_the_ends_of_the_text():
    batches = epoch_of(Excerpts(torch.arange(5), batch_size=50, context=3, steps=2, seed=0), 0)
    assert {int(row[0]) for batch in batches for row in batch} == {0, 1}
    assert max(int(batch.max()) for batch in batches) == 4


@pytest.mark.parametrize("length", [2, 7, 8, 9, 300, 321])
def test_windows_guess_every_character_once_from_those_before_it(length):
    numbers = torch.arange(length)
    pairs = list(windows(numbers, 8))
    guessed = torch.cat([y.flatten() for _, y in pairs])
    assert torch.equal(guessed, numbers[1:])
    for x, y in pairs:
        assert torch.equal(y, x + 1)
        assert x.shape[1] <= 8


def test_a_file_or_a_folder_can_be_named(tmp_path, monkeypatch):
    content = "abcdefghij" * 3
    (tmp_path / "input.txt").write_text(content)
    assert load(tmp_path / "input.txt").digest == Text.of(content).digest
    with pytest.raises(DataError, match=r"input\.txt has the MD5 checksum"):
        load(tmp_path)
    remote = texts.Remote("input.txt", hashlib.md5(content.encode()).hexdigest(), 1000, ("http://127.0.0.1:9/",))
    monkeypatch.setattr(texts, "SHAKESPEARE", remote)
    assert load(tmp_path).digest == Text.of(content).digest


def test_the_address_can_be_chosen(tmp_path, monkeypatch):
    content = "abcdefghij" * 3
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "input.txt").write_text(content)
    remote = texts.Remote("input.txt", hashlib.md5(content.encode()).hexdigest(), 1000, ("http://127.0.0.1:9/",))
    monkeypatch.setattr(texts, "SHAKESPEARE", remote)
    assert load(tmp_path / "here", address=(tmp_path / "there").as_uri() + "/").digest == Text.of(content).digest


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is neither a text nor a folder with input\.txt"):
        load(tmp_path / "nowhere", download=False)
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ValueError, match="text must have at least 10 characters, got 3"):
        load(tmp_path / "short")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd" * 9)
    with pytest.raises(DataError, match="bytes is not UTF-8 text"):
        load(tmp_path / "bytes")
    with pytest.raises(ValueError, match="context must be below the 5 characters of the training text, got 5"):
        Excerpts(torch.arange(5), batch_size=1, context=5, steps=1, seed=0)
