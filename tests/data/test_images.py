"""Images of any mode load as a viewer shows them; numpy computes the expected pixels from the written values."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTImageProcessor
from transformers.image_utils import load_image

from ftkit.data.feeding.stream import StreamedImages
from ftkit.data.feeding.tensors import image_tensors
from ftkit.data.pixels.images import describe_images, to_mode
from ftkit.data.pixels.kinds import KINDS, READ_DIFFERENTLY, kinds_of

HEIGHT, WIDTH = 16, 24
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
GRAY = np.rint(RAMP * 255).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1] // 2], axis=-1)
ALPHA = np.rint(RAMP.T.reshape(HEIGHT, WIDTH) * 255).astype(np.uint8)
INDEX = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 8
PALETTE = np.random.default_rng(0).integers(0, 256, (8, 3), np.uint8)
EXIF_ORIENTATION = 0x0112


def gray(values):
    return np.repeat(np.asarray(values, np.float64)[..., None], 3, axis=-1)


def on_white(color, alpha):
    alpha = np.asarray(alpha)[..., None] / 255
    return np.asarray(color) * alpha + 255 * (1 - alpha)


def palette_image() -> PILImage.Image:
    image = PILImage.fromarray(INDEX, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def big_endian_16_bit() -> PILImage.Image:
    return PILImage.frombytes("I;16B", (WIDTH, HEIGHT), (RAMP * 65535).astype(">u2").tobytes())


CMYK = np.dstack([COLOR, GRAY // 3])
CMYK_SHOWN = (255.0 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255
CMYK_IMAGE, RGBA_IMAGE = PILImage.fromarray(CMYK, "CMYK"), PILImage.fromarray(np.dstack([COLOR, ALPHA]))
SHOWN = PALETTE[INDEX]
THIRD_ON_WHITE = np.where((INDEX == 3)[..., None], 255, SHOWN)
THIRD_GRAY = gray(np.where(INDEX == 3, 255, INDEX))
ALPHAS = bytes(range(0, 256, 32))  # by palette entry
# What is written (image, file ending, how to save it), and what a viewer shows of it as RGB in 0..255.
FILES = {
    "gray": (PILImage.fromarray(GRAY), "png", {}, gray(GRAY)),
    "gray jpeg": (PILImage.fromarray(GRAY), "jpg", {"quality": 98}, gray(GRAY)),
    "gray, one value transparent": (PILImage.fromarray(INDEX), "png", {"transparency": 3}, THIRD_GRAY),
    "gray and alpha": (PILImage.fromarray(np.dstack([GRAY, ALPHA])), "png", {}, on_white(gray(GRAY), ALPHA)),
    "RGB": (PILImage.fromarray(COLOR), "png", {}, COLOR),
    "RGB jpeg": (PILImage.fromarray(COLOR), "jpg", {"quality": 98, "subsampling": 0}, COLOR),
    "RGB bmp": (PILImage.fromarray(COLOR), "bmp", {}, COLOR),
    "RGB, one color transparent": (
        PILImage.fromarray(SHOWN),
        "png",
        {"transparency": tuple(map(int, PALETTE[3]))},
        THIRD_ON_WHITE,
    ),
    "RGBA": (RGBA_IMAGE, "png", {}, on_white(COLOR, ALPHA)),
    "RGBA webp": (RGBA_IMAGE, "webp", {"lossless": True, "exact": True}, on_white(COLOR, ALPHA)),
    "palette": (palette_image(), "png", {}, SHOWN),
    "palette gif": (palette_image(), "gif", {}, SHOWN),
    "palette, one entry transparent": (palette_image(), "png", {"transparency": 3}, THIRD_ON_WHITE),
    "palette gif, one entry transparent": (palette_image(), "gif", {"transparency": 3}, THIRD_ON_WHITE),
    "palette with alphas": (palette_image(), "png", {"transparency": ALPHAS}, on_white(SHOWN, 32 * INDEX)),
    "1 bit": (PILImage.fromarray(GRAY > 99), "png", {}, gray(255 * (GRAY > 99))),
    "CMYK tiff": (CMYK_IMAGE, "tif", {}, CMYK_SHOWN),
    "CMYK jpeg": (CMYK_IMAGE, "jpg", {"quality": 100, "subsampling": 0}, CMYK_SHOWN),
    "16 bit": (PILImage.fromarray((RAMP * 65535).astype(np.uint16)), "png", {}, gray(RAMP * 255)),
    "16 bit, dark": (PILImage.fromarray((RAMP * 200).astype(np.uint16)), "png", {}, gray(RAMP * 0.8)),
    "16 bit tiff": (PILImage.fromarray((RAMP * 65535).astype(np.uint16)), "tif", {}, gray(RAMP * 255)),
    "16 bit tiff, big-endian": (big_endian_16_bit(), "tif", {}, gray(RAMP * 255)),
    "32 bit tiff up to 65535": (PILImage.fromarray((RAMP * 65535).astype(np.int32)), "tif", {}, gray(RAMP * 255)),
    "32 bit tiff up to 255": (PILImage.fromarray(GRAY.astype(np.int32)), "tif", {}, gray(GRAY)),
    "float tiff up to 1": (PILImage.fromarray(RAMP.astype(np.float32)), "tif", {}, gray(RAMP * 255)),
    "float tiff up to 255": (PILImage.fromarray(GRAY.astype(np.float32)), "tif", {}, gray(GRAY)),
}
# What a viewer does for each EXIF orientation.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture
def decoded(tmp_path):
    """The pixels (H, W, channels) that training gets from a file, and its `describe_images`."""

    def decode(path, channels):
        features = Features(image=Image(), label=ClassLabel(names=["a", "b"]), index=Value("int64"))
        split = Dataset.from_dict({"image": [str(path)], "label": [0], "index": [0]}, features=features)
        info = describe_images(split)
        processor = ViTImageProcessor(size=dict(zip(("height", "width"), info.size, strict=True)))
        tensors = image_tensors(split, processor, channels, cache_dir=str(tmp_path / "cache"))
        return tensors.images[0].permute(1, 2, 0).numpy().astype(np.float64), info

    return decode


def assert_shows(pixels, expected, channels, tolerance):
    if channels == 1:
        expected = expected @ [[0.299], [0.587], [0.114]]
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_images_load_as_a_viewer_shows_them(tmp_path, decoded, kind, channels):
    image, ending, options, shown = FILES[kind]
    image.save(tmp_path / f"file.{ending}", **options)
    pixels, info = decoded(tmp_path / f"file.{ending}", channels)
    assert_shows(pixels, shown, channels, tolerance=8 if ending == "jpg" else 1.5)
    is_gray = kind.startswith(("gray", "1 bit", "16 bit", "32 bit", "float"))
    assert info == ((HEIGHT, WIDTH), 1 if is_gray else 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("source, ending", [(COLOR, "jpg"), (COLOR, "png"), (GRAY, "jpg")])
def test_the_exif_orientation_is_applied(tmp_path, decoded, source, ending, orientation, channels):
    exif = PILImage.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / f"file.{ending}"
    PILImage.fromarray(source).save(path, exif=exif, **({"quality": 98, "subsampling": 0} if ending == "jpg" else {}))
    pixels, info = decoded(path, channels)
    expected = TURNS[orientation](source if source.ndim == 3 else gray(source))
    assert_shows(pixels, expected, channels, tolerance=8 if ending == "jpg" else 1.5)
    assert info == (expected.shape[:2], 1 if source is GRAY else 3)


@pytest.fixture
def describe(tmp_path, picture):
    """`describe_images` of files with the given bytes or images."""

    def describe(*images):
        paths = []
        for i, image in enumerate(images):
            paths.append(str(tmp_path / f"{i}.png"))
            if isinstance(image, bytes):
                (tmp_path / f"{i}.png").write_bytes(image)
            else:
                image.save(paths[-1])
        return describe_images(Dataset.from_dict({"image": paths}, features=Features(image=Image())))

    return describe


def test_describe_images(describe, picture):
    assert describe(picture(0), picture(1)) == ((4, 6), 1)
    assert describe(picture(0), picture(1, size=(6, 4))) == (None, 1)
    assert describe(picture(0), picture(1).convert("RGB")) == ((4, 6), 3)
    assert describe(picture(0), b"broken", b"") == ((4, 6), 1)
    assert describe(b"broken").size is None
    # More images than are sampled; the last one is in the sample.
    assert describe(*[picture(0)] * 300, picture(0).convert("RGB")).channels == 3


OPAQUE = np.full_like(ALPHA, 255)
TURNED = PILImage.Exif()
TURNED[EXIF_ORIENTATION] = 6
SECOND = {"save_all": True, "append_images": [PILImage.fromarray(COLOR[::-1])]}
# More files, and the kinds of each.
KINDS_OF_FILES = {
    "RGBA, opaque": (PILImage.fromarray(np.dstack([COLOR, OPAQUE])), "png", {}, []),
    "RGBA, opaque, turned": (PILImage.fromarray(np.dstack([COLOR, OPAQUE])), "png", {"exif": TURNED}, []),
    "RGBA, opaque, turned webp": (PILImage.fromarray(np.dstack([COLOR, OPAQUE])), "webp", {"exif": TURNED}, []),
    "RGBA tiff": (RGBA_IMAGE, "tif", {}, ["transparent"]),
    "RGBA, white behind": (PILImage.fromarray(np.dstack([COLOR * 0 + 255, ALPHA])), "png", {}, []),
    "gray and opaque alpha": (PILImage.fromarray(np.dstack([GRAY, OPAQUE])), "png", {}, []),
    "palette, no such entry transparent": (palette_image(), "png", {"transparency": 200}, []),
    "YCbCr jpeg": (PILImage.fromarray(COLOR).convert("YCbCr"), "jpg", {}, []),
    "RGB, turned": (PILImage.fromarray(COLOR), "jpg", {"exif": TURNED}, []),
    "16 bit pgm": (PILImage.fromarray((RAMP * 65535).astype(np.int32)), "pgm", {}, ["16-bit"]),
    "12 bit in 16": (PILImage.fromarray((RAMP * 4095).astype(np.uint16)), "png", {}, ["16-bit", "dim"]),
    "signed": (
        PILImage.fromarray((RAMP * 2000 - 1000).astype(np.int32)),
        "tif",
        {},
        ["32-bit", "out of range", "dim"],
    ),
    "kelvin": (PILImage.fromarray((RAMP * 40 + 270).astype(np.float32)), "tif", {}, ["out of range"]),
    "celsius": (PILImage.fromarray((RAMP * 30).astype(np.float32)), "tif", {}, ["floating-point", "dim"]),
    "no number": (
        PILImage.fromarray(np.where(RAMP > 0.9, np.nan, RAMP).astype(np.float32)),
        "tif",
        {},
        ["floating-point", "out of range"],
    ),
    "animated gif": (PILImage.fromarray(COLOR), "gif", SECOND, ["several frames"]),
    "animated webp": (PILImage.fromarray(COLOR), "webp", SECOND, ["several frames"]),
    "animated png": (PILImage.fromarray(COLOR), "png", SECOND, ["several frames"]),
    "pages": (PILImage.fromarray(COLOR), "tif", SECOND, ["several frames"]),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", [*FILES, *KINDS_OF_FILES])
def test_images_that_a_plain_pipeline_shows_otherwise_are_found(tmp_path, kind):
    image, ending, options, expected = {**FILES, **KINDS_OF_FILES}[kind]
    path = tmp_path / f"file.{ending}"
    image.save(path, **options)
    with PILImage.open(path) as opened:
        shown = to_mode(opened, 3)
        found = kinds_of(opened, shown)
    plain, others = np.asarray(load_image(str(path))), set(found) & READ_DIFFERENTLY
    assert np.array_equal(shown, plain) == (not others), found
    assert len(others) <= 1 and set(found) <= KINDS.keys()
    if kind in KINDS_OF_FILES:
        assert found == expected


def test_kinds_are_counted_by_split(tmp_path):
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        (RGBA_IMAGE if i < 2 else PILImage.fromarray(COLOR)).save(paths[-1])
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]), index=Value("int64"))
    split = Dataset.from_dict({"image": paths, "label": [0] * 5, "index": range(5)}, features=features)
    processor = ViTImageProcessor(size={"height": HEIGHT, "width": WIDTH})
    for channels, expected in ((3, {"transparent": 2}), (1, {"transparent": 2, "in colour": 5})):
        for engine in (image_tensors, StreamedImages):
            for _ in ("decoded", "from the cache"):
                found = engine(split, processor, channels, cache_dir=str(tmp_path / "cache"))
                assert found.kinds == expected
