import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from recipes.common.batches import Batches, crop
from recipes.common.data import Pictures


def pictures(number=20, shape=(3, 6, 5)):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (number, *shape), generator=generator, dtype=torch.uint8)
    return Pictures(images, torch.arange(number), number)


def batches(split, size=4, **options):
    return Batches(split, size, *split.statistics(), **options)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_equals_slicing_picture_by_picture(padding):
    images = pictures().images
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(2 * padding + 1, (20, 2), generator=generator)
    mirrored = torch.rand(20, generator=generator) < 0.5
    result = crop(images, corners, mirrored, padding)
    for image, (top, left), flip, found in zip(images, corners.tolist(), mirrored, result, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
        expected = padded[:, top : top + 6, left : left + 5]
        assert np.array_equal(found.numpy(), expected[:, :, ::-1] if flip else expected)


def test_order_crops_and_flips_all_vary():
    split = Pictures(
        torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 6, 5).repeat(400, 1, 1, 1), torch.arange(400), 400
    )
    first = next(iter(Batches(split, 400, torch.zeros(1), torch.ones(1), shuffle=True, padding=2, flip=True)))
    x, y = first
    assert y.tolist() != sorted(y.tolist())
    kinds = {tuple(image.flatten().tolist()) for image in x}
    assert len(kinds) == 50  # 5 × 5 corners, mirrored or not: a miss has probability below 50·(49/50)^400 = 2 %


def test_batches_are_normalised_channels_last_float32():
    split = pictures(400)
    x, y = next(iter(batches(split, 400)))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.tolist() == list(range(400))
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_order_without_shuffling_gives_every_picture():
    loader = batches(pictures(10), 4)
    assert [len(y) for _, y in loader] == [4, 4, 2]
    assert len(loader) == 3
    assert torch.cat([y for _, y in loader]).tolist() == list(range(10))


def test_shuffled_batches_are_whole_and_hold_no_picture_twice():
    loader = batches(pictures(10), 4, shuffle=True)
    labels = [y for _, y in loader]
    assert [len(y) for y in labels] == [4, 4]
    assert len(loader) == 2
    assert len(set(torch.cat(labels).tolist())) == 8


def run(loader, epoch):
    loader.set_epoch(epoch)
    return [(x, y) for x, y in loader]


def same(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_an_epoch_follows_from_seed_and_number_alone():
    options = {"shuffle": True, "padding": 2, "flip": True}
    one, other = (batches(pictures(), seed=3, **options) for _ in range(2))
    first = [run(one, epoch) for epoch in range(3)]
    torch.rand(100)  # the global stream must not matter
    assert same(run(other, 2), first[2])  # a resumed run begins at epoch 2
    assert same(run(one, 0), first[0])
    assert not same(first[0], first[1])
    assert not same(run(batches(pictures(), seed=4, **options), 0), first[0])


def test_the_global_stream_stays_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(batches(pictures(), shuffle=True, padding=2, flip=True), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [0, -1, 21])
def test_batch_size_that_cannot_be_is_refused(size):
    with pytest.raises(ValueError, match=f"batch_size must lie between 1 and the 20 pictures, got {size}"):
        batches(pictures(), size, shuffle=True)


def test_lightning_takes_batches_and_sets_the_epoch(tmp_path):
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(90, 20))

        def training_step(self, batch, index):
            seen.append(batch[1].clone())
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> OptimizerLRScheduler:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = batches(pictures(), 4, shuffle=True, padding=1, flip=True, seed=5)
    expected = [y for epoch in range(3) for _, y in run(loader, epoch)]
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), batches(pictures(), 4, shuffle=True, padding=1, flip=True, seed=5), batches(pictures(), 7))
    assert torch.equal(torch.cat(seen), torch.cat(expected))
