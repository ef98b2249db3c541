from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.data import Augment, ImageLoader
from shoal.data.mix import Mixing

IMAGES = torch.randint(
    0, 256, (9, 12, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(9) % 4


def mixings(count=200):
    rng = np.random.default_rng(0)
    return [Mixing.draw(0.8, 12, 10, rng) for _ in range(count)]


def test_half_of_the_batches_are_cut_and_half_are_mixed():
    boxes = [mixing.box is not None for mixing in mixings()]
    assert 70 < sum(boxes) < 130
    assert 0.4 < np.mean([m.share for m in mixings() if m.box is None]) < 0.6


def test_mixup_is_the_sum_of_both_in_shares():
    mixed = Mixing(0.25).images(IMAGES)
    torch.testing.assert_close(mixed, 0.25 * IMAGES[1:].float() + 0.75 * IMAGES[:-1].float())


def test_cutmix_shares_are_the_pixels_of_each():
    for mixing in mixings():
        if mixing.box is None:
            continue
        marked = torch.stack([torch.zeros(12, 10, 1), torch.ones(12, 10, 1)])
        mixed = mixing.images(marked)
        assert float(mixed.mean()) == pytest.approx(mixing.share, abs=1e-6)


def test_labels_are_probabilities_in_the_same_shares():
    labels = Mixing(0.25).labels(LABELS, 4)
    assert labels[0].tolist() == [0.75, 0.25, 0, 0]
    assert torch.allclose(labels.sum(1), torch.ones(8))


def loader(**options):
    images = IMAGES.permute(0, 3, 1, 2)
    augment = Augment(flip=True, crop=1, mix=0.8)
    common = {"batch_size": 4, "augment": augment, "shuffle": True, "num_classes": 4}
    return ImageLoader(images, LABELS, **{**common, **options})


@pytest.mark.parametrize("world", [2, 3, 4])
def test_several_processes_together_mix_as_one_does(world):
    whole = loader().with_batch_size(6)
    shards = [[*whole.shard(rank, world)] for rank in range(world)]
    for number, (images, labels) in enumerate(whole):
        if all(number < len(shard) for shard in shards):
            assert torch.equal(torch.cat([shard[number][0] for shard in shards]), images)
            assert torch.equal(torch.cat([shard[number][1] for shard in shards]), labels)


def test_the_first_image_of_a_batch_is_mixed_with_the_last():
    plain, mixed = loader(augment=None), loader(augment=Augment(mix=0.8))
    (_, own), (_, targets) = next(iter(plain)), next(iter(mixed))
    for row in range(4):
        assert set(torch.nonzero(targets[row]).flatten().tolist()) <= {
            int(own[row]),
            int(own[row - 1]),
        }


def test_scoring_sees_neither_mixed_images_nor_mixed_labels():
    assert next(iter(loader().plain()))[1].tolist() == LABELS[:4].tolist()
