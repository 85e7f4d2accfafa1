"""Augmentation of a batch, compared with torchvision for the same parameters; its random numbers are reproducible."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pretend_device import pretend_device
from support import finetune, interrupt, train, weights
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.v2 import functional as TV

from ftkit.data.augmentation import augment as A
from ftkit.data.augmentation import trivial_augment as T
from ftkit.data.augmentation.augment import AUGMENTATIONS
from ftkit.data.checks import options
from ftkit.owners import parse_config

ROWS = torch.arange(40)
COLOUR_ONLY = {"saturation"}  # operations that leave grey images as they are


@pytest.fixture(params=[(3, 20, 28), (1, 16, 16)], ids=["colour", "grey"])
def images(request):
    coarse = torch.randint(0, 256, (40, request.param[0], 8, 8), generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse.float(), size=request.param[1:], mode="bilinear").round().to(torch.uint8)


def check(name, images, reference, tolerance=0, **options):
    """Compare an operation on the batch with `reference(image, uniform numbers of that image)`, image by image."""
    bits = A.random_bits(1, 2, ROWS, name, 8)
    before, done = images.clone(), getattr(A, name)(images, bits, **options)
    expected = torch.stack([reference(image, u) for image, u in zip(images, (bits / 2**32).tolist(), strict=True)])
    assert done.dtype == torch.uint8 and done.shape == images.shape and torch.equal(images, before)
    difference = (done.int() - expected.int()).abs()
    assert difference.max() <= tolerance and (difference > 0).float().mean() < 0.15
    assert torch.equal(done, images) == (name in COLOUR_ONLY and images.shape[1] == 1)


def test_every_operation_is_tested_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in AUGMENTATIONS if f'"{name}"' not in text] == []


def test_flip(images):
    bits = A.random_bits(1, 2, ROWS, "flip", 8)
    expected = [TV.horizontal_flip(i) if b % 2 else i for i, b in zip(images, bits[:, 0].tolist(), strict=True)]
    assert torch.equal(A.flip(images, bits), torch.stack(expected))


@pytest.mark.parametrize(("padding", "mode"), [(4, "zeros"), (40, "zeros"), (3, "reflect"), (15, "reflect")])
def test_random_crop(images, padding, mode):
    def reference(image, u):
        padded = TV.pad(image, [padding], padding_mode="constant" if mode == "zeros" else mode)
        return TV.crop(padded, *(int(n * (2 * padding + 1)) for n in u[:2]), *image.shape[1:])

    check("random_crop", images, reference, padding=padding, mode=mode)


def test_translate(images):
    def reference(image, u):
        most = [int(0.2 * side) for side in image.shape[1:]]
        down, right = (int(n * (2 * m + 1)) - m for n, m in zip(u, most, strict=False))
        return TV.affine(image, 0.0, [-right, -down], 1.0, [0.0, 0.0])

    check("translate", images, reference, share=0.2)


def test_cutout(images):
    def reference(image, u):
        top, left = (int(n * side) - 3 for n, side in zip(u, image.shape[1:], strict=False))
        bottom, right = top + 6, left + 6
        top, left = max(top, 0), max(left, 0)
        return TV.erase(image, top, left, bottom - top, right - left, torch.tensor(0, dtype=torch.uint8))

    check("cutout", images, reference, size=6)


def sides(image, u, scale, ratio):
    """Height and width as torchvision draws them from an area and an aspect ratio."""
    height, width = image.shape[1:]
    area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
    aspect = np.exp(np.log(ratio[0]) + u[1] * (np.log(ratio[1]) - np.log(ratio[0])))
    tall, wide = min(round(np.sqrt(area / aspect)), height), min(round(np.sqrt(area * aspect)), width)
    return int(u[2] * (height - tall + 1)), int(u[3] * (width - wide + 1)), tall, wide


def test_random_erasing(images):
    def reference(image, u):
        place = sides(image, u, (0.02, 0.33), (0.3, 3.3))
        return TV.erase(image, *place, torch.tensor(0, dtype=torch.uint8)) if u[4] < 0.7 else image

    check("random_erasing", images, reference, probability=0.7)


def test_random_resized_crop(images):
    def reference(image, u):
        place = sides(image, u, (0.08, 1.0), (3 / 4, 4 / 3))
        return TV.resized_crop(image, *place, list(image.shape[1:]), antialias=True)

    check("random_resized_crop", images, reference, tolerance=1)  # torchvision's weights are of 8 bits


def test_rotate_and_affine(images):
    def turned(image, u):
        return TV.affine(image, (2 * u[0] - 1) * 15, [0, 0], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)

    def moved(image, u):
        v, (height, width) = [2 * n - 1 for n in u], image.shape[1:]
        shift = [round(v[4] * 0.2 * width), round(v[5] * 0.2 * height)]
        scale, shear = 0.8 + u[1] * 0.5, [v[2] * 7, v[3] * 7]
        return TV.affine(image, v[0] * 20, shift, scale, shear, InterpolationMode.BILINEAR)

    check("rotate", images, turned, tolerance=1, degrees=15)
    check("affine", images, moved, tolerance=1, degrees=20, translate=0.2, scale=(0.8, 1.3), shear=7)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours(images, name):
    function = getattr(TV, f"adjust_{name}")
    check(name, images, lambda image, u: function(image, 1 + (2 * u[0] - 1) * 0.4), tolerance=1, strength=0.4)


def test_alternating_flip(images):
    first, second, third = (A.augment(images, ROWS, ["alternating_flip"], seed=5, epoch=e) for e in (6, 7, 8))
    assert torch.equal(first, third) and torch.equal(second, first.flip(3))
    pairs = torch.tensor([0, 1], dtype=torch.uint8).expand(4000, 1, 1, 2)
    begin = A.augment(pairs, torch.arange(4000), ["alternating_flip"], seed=5, epoch=0)[..., 0]
    assert abs(begin.float().mean() - 0.5) < 0.03


@pytest.mark.parametrize("name", T.SPACE)
def test_trivial_augment_has_the_operations_of_torchvision(images, name):
    """Every operation with every magnitude."""
    theirs = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    their_name = next(n for n in theirs._AUGMENTATION_SPACE if n.lower() == name.replace("_", ""))
    bins, signed = theirs._AUGMENTATION_SPACE[their_name]
    strengths = bins(31, *images.shape[2:])
    strengths = [0.0] * 31 if strengths is None else [float(n) for n in strengths]
    strengths += [-n if signed else n for n in strengths]
    images, magnitudes = images.repeat(2, 1, 1, 1)[:62], T._MAGNITUDES[list(T.SPACE).index(name)]
    done = T.SPACE[name][0](images, magnitudes)
    expected = torch.stack(
        [
            theirs._apply_image_or_video_transform(image, their_name, n, theirs.interpolation, theirs._fill)
            for image, n in zip(images, strengths, strict=True)
        ]
    )
    difference = (done.int() - expected.int()).abs()
    assert done.dtype == torch.uint8 and difference.max() <= 1 and (difference > 0).float().mean() < 0.02


def test_trivial_augment_draws_each_operation_and_magnitude_equally_often():
    operation, magnitude = T.draw(A.random_bits(0, 0, torch.arange(140_000), "trivial_augment", 2))
    assert (operation.bincount() - 10_000).abs().max() < 400
    turns = magnitude[operation == list(T.SPACE).index("rotate")].unique(return_counts=True)
    assert len(turns[0]) == 61 and turns[0].max() == -turns[0].min() == 135
    assert turns[1].min() > 110 and turns[1].max() < 400  # 161 each, 323 of no turn


@pytest.mark.parametrize("shape", [(3, 20, 28), (1, 8, 8), (3, 2, 5), (1, 1, 1)], ids=str)
def test_trivial_augment_applies_to_each_image_what_it_drew(shape):
    images = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    bits = A.random_bits(1, 2, ROWS, "trivial_augment", 8)
    before, done = images.clone(), T.trivial_augment(images, bits)
    assert torch.equal(images, before) and (max(shape) == 1 or not torch.equal(done, images))
    functions = [function for function, *_ in T.SPACE.values()]
    for n, (operation, magnitude) in enumerate(zip(*T.draw(bits), strict=True)):
        assert torch.equal(done[n], functions[operation](images[n : n + 1], magnitude.view(1))[0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_result_does_not_depend_on_the_batch(images, name):
    steps = [{name: options(name)}]
    whole = A.augment(images, ROWS, steps, seed=5, epoch=3)
    assert torch.equal(whole, A.augment(images, ROWS, [name], seed=5, epoch=3))
    order = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(0))
    parts = [A.augment(images[rows], ROWS[rows], steps, seed=5, epoch=3) for rows in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    if name in COLOUR_ONLY and images.shape[1] == 1:
        assert torch.equal(whole, images)
    else:
        assert not torch.equal(whole, A.augment(images, ROWS, steps, seed=5, epoch=4))
        assert not torch.equal(whole, A.augment(images, ROWS, steps, seed=6, epoch=3))


def test_the_random_numbers_do_not_change_between_versions():
    """A run of an older version can be repeated."""
    numbers = A.random_bits(1, 2, torch.tensor([0, 7]), "flip", 2)
    assert numbers.tolist() == [[1496946126, 145323901], [2745226516, 1166999434]]
    assert A.random_bits(2**31, 0, torch.tensor([5]), "random_crop", 1).tolist() == [[986392550]]


@pytest.mark.parametrize("one", ["random_crop", "andom_crop", "x_andom_crop", "crop_random"])
def test_random_numbers_depend_on_the_whole_name_of_an_operation(one):
    other = A.random_bits(1, 2, ROWS, f"a_{one}", 2)
    assert not torch.equal(A.random_bits(1, 2, ROWS, one, 2), other)


def test_no_two_operations_share_random_numbers():
    drawn = [tuple(A.random_bits(1, 2, ROWS, name, 1).flatten().tolist()) for name in [*AUGMENTATIONS, "mixing",
                                                                                     "transform"]]  # fmt: skip
    assert len(set(drawn)) == len(drawn)


def test_the_numbers_look_random():
    """Uniform by image and by epoch, and independent of the neighbour, the epoch, the seed and the operation."""
    rows = torch.arange(50_000)
    draws = [
        A.random_bits(*key, rows, name, 2).double().numpy() / 2**32
        for *key, name in ((1, 2, "flip"), (1, 3, "flip"), (2, 2, "flip"), (1, 2, "random_crop"))
    ]
    columns = np.concatenate([*draws, np.roll(draws[0], 1, axis=0)], axis=1)
    assert np.abs(np.histogram(columns, bins=16, range=(0, 1))[0] / columns.size * 16 - 1).max() < 0.02
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.025
    epochs = np.concatenate([A.random_bits(0, e, torch.tensor([7]), "flip", 1).numpy() & 1 for e in range(4000)])
    assert abs(epochs.mean() - 0.5) < 0.03


def test_a_run_with_augmentation_repeats_and_resumes(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "dataset: digits\nmodel: convnet\nmax_train_samples: 96\nnum_train_epochs: 3\nsave_total_limit: 9\n"
        "augment: [{random_crop: {padding: 1, mode: reflect}}, flip, cutout: {size: 2}]\n"
    )
    whole = train(tmp_path / "whole", "--config", recipe).folder
    plain = train(tmp_path / "plain", "--config", recipe, "--augment", "translate").folder
    again = train(tmp_path / "again", "--config", whole / "config.yaml").folder
    part = shutil.copytree(whole, tmp_path / "part")
    interrupt(part)
    train(part, "--config", recipe, "--resume_from_checkpoint", "true")
    files = [weights(run) for run in (whole, part, again, plain)]
    assert files[0] == files[1] == files[2] != files[3]


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (["flipp"], ["'flipp' is not one of flip, alternating_flip", "did you mean 'flip'"]),
        (["flip", "flip"], ["flip is listed twice"]),
        (["flip", "alternating_flip"], ["flip and alternating_flip would undo each other"]),
        (['[{"random_crop": {"paddin": 2}}]'], ["random_crop has no option 'paddin' (did you mean 'padding'?)"]),
        (['[{"random_crop": {"padding": 2.5}}]'], ["padding: 2.5 must be a whole number"]),
        (['[{"random_crop": {"mode": "wrap"}}]'], ["mode: 'wrap' must be zeros or reflect"]),
        (['[{"random_crop": 4}]'], ["random_crop: 4 is not a mapping of padding, mode"]),
        (['[{"affine": {"scale": 2}}]'], ["scale: 2 must be two numbers"]),
        (['[{"affine": {"scale": [2, 1]}}]'], ["the larger one last"]),
        (['[{"rotate": {"degrees": "ten"}}]'], ["degrees: 'ten' must be a number"]),
        (['[["flip"]]'], ["is not one of"]),
        (['[{"flip": {"p": 1}}]'], ["flip has no option 'p'"]),
    ],
    ids=str,
)
def test_an_invalid_augmentation_is_named(refused, augment, words):
    with refused(*words):
        parse_config(["--dataset", "digits", "--augment", *augment])


def test_reflect_padding_needs_a_large_enough_image(tmp_path, refused):
    with refused("padding 8 must be less than the side"):
        finetune(tmp_path / "run", "--max_train_samples", 64, "--num_train_epochs", 1, "--augment",
                 '[{"random_crop": {"padding": 8, "mode": "reflect"}}]')  # fmt: skip


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_device_without_float64_gives_almost_the_same(name, monkeypatch):
    """As on Apple's GPUs. The same numbers are drawn, up to their last bits."""
    images = torch.randint(0, 256, (64, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = A.augment(images, torch.arange(64), [name], seed=1, epoch=1)
    monkeypatch.setattr("ftkit.data.augmentation.pixel_ops._WITHOUT_FLOAT64", ("lazy",))
    with pretend_device(float64=False) as pretended:
        there, before = images.to(pretended.device), pretended.waits.copy()
        found = A.augment(there, torch.arange(64), [name], seed=1, epoch=1)
        assert pretended.waits == before  # nobody waits for the device
        found = found.cpu()
    assert ((found.int() - expected.int()).abs() > 1).float().mean() < 0.01
