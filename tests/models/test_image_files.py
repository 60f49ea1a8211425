"""Image files are read correctly, or skipped with a warning that names the file."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse import models
from fastrepulse.models import encode_folder
from fastrepulse.models.image_files import read_image


def test_images_of_an_earlier_run_are_encoded_without_the_grid_and_upright(tmp_path):
    model = models.load_model()
    result = fastrepulse.sample("a planet", 2, num_inference_steps=2, seed=0, progress=False)
    latents = encode_folder(result.save(tmp_path / "run"), model)
    torch.testing.assert_close(latents, torch.cat([encode(model, i) for i in result.images]))
    (tmp_path / "phone").mkdir()
    turned, exif = result.images[0].transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # the viewer must rotate it by 90 degrees clockwise
    turned.save(tmp_path / "phone" / "a.png", exif=exif)
    torch.testing.assert_close(encode_folder(tmp_path / "phone", model), latents[:1])


def encode(model, image):
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    return model.encode(pixels).detach()


def test_images_in_a_folder_are_encoded(tmp_path):
    model = models.load_model()
    with pytest.raises(ValueError, match="folder must hold images"):
        encode_folder(tmp_path, model)
    image = fastrepulse.sample("a planet", 1, num_inference_steps=4, progress=False).images[0]
    image.save(tmp_path / "a.png")
    Image.new("RGB", (100, 50), "red").save(tmp_path / "b.jpg")
    latents = encode_folder(tmp_path, model)
    assert latents.shape == (2, 4, 16, 16)
    decoded = model.decode(latents[:1].detach())[0]
    original = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    original = original.view(64, 64, 3).permute(2, 0, 1) / 255
    assert (decoded - original).abs().mean() < 0.02


RAMP = np.linspace(0, 1, 64)[None].repeat(48, axis=0)
"""Brightness from left to right."""


def ramp(largest, dtype):
    return (RAMP * largest).round().astype(dtype)


def red_on(background):
    image = Image.new("RGBA", (64, 48), background)
    image.paste((200, 30, 30, 255), (0, 0, 32, 48))
    return image


def palette_with_a_hole(path):
    image = red_on((0, 0, 0, 0)).quantize(8)
    image.save(path)


def cmyk(path):
    Image.new("RGB", (64, 48), (200, 30, 30)).convert("CMYK").save(path, quality=95)


def animated(path):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ((200, 30, 30), (0, 0, 255))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def turned(path):
    image, exif = Image.new("RGB", (48, 64), (200, 30, 30)), Image.Exif()
    image.paste((0, 0, 0), (0, 0, 48, 32))
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)


LEFT, RIGHT = (10, 24), (54, 24)
RED, WHITE, BLACK = (200, 30, 30), (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "write", "left", "right"),
    [
        ("16-bit.png", lambda p: Image.fromarray(ramp(65535, np.uint16)).save(p), 41, 219),
        ("dark-16-bit.png", lambda p: Image.fromarray(ramp(6553, np.uint16)).save(p), 4, 22),
        (
            "fractions.tif",
            lambda p: Image.fromarray(ramp(1, np.float32) + RAMP * 0).save(p),
            0,
            255,
        ),
        ("float.tiff", lambda p: Image.fromarray(ramp(255, np.float32)).save(p), 41, 219),
        ("int.tif", lambda p: Image.fromarray(ramp(65535, np.int32)).save(p), 41, 219),
        ("grey.png", lambda p: Image.fromarray(ramp(255, np.uint8)).save(p), 41, 219),
        ("bits.png", lambda p: Image.new("1", (64, 48), 1).save(p), WHITE, WHITE),
        ("palette.gif", lambda p: red_on("white").convert("RGB").quantize(8).save(p), RED, WHITE),
        ("palette-with-a-hole.png", palette_with_a_hole, RED, WHITE),
        ("transparent.png", lambda p: red_on((0, 0, 0, 0)).save(p), RED, WHITE),
        ("grey-alpha.png", lambda p: Image.new("LA", (64, 48), (90, 255)).save(p), 90, 90),
        ("cmyk.jpg", cmyk, RED, RED),
        ("animated.gif", animated, RED, RED),
        ("animated.webp", animated, RED, RED),
        ("turned.jpg", turned, RED, BLACK),
        ("wrong-name.png", lambda p: Image.new("RGB", (64, 48), RED).save(p, "JPEG"), RED, RED),
        ("upper.PNG", lambda p: Image.new("RGB", (64, 48), RED).save(p), RED, RED),
        ("windows.bmp", lambda p: Image.new("RGB", (64, 48), RED).save(p), RED, RED),
        ("modern.avif", lambda p: Image.new("RGB", (64, 48), RED).save(p), RED, RED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_image_format_is_read_correctly(name, write, left, right, tmp_path):
    if name.endswith("avif") and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow reads no AVIF")
    write(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == (64, 48)
    for place, expected in ((LEFT, left), (RIGHT, right)):
        expected = (expected,) * 3 if isinstance(expected, int) else expected
        assert np.abs(np.subtract(image.getpixel(place), expected)).max() <= 8
    assert encode_folder(tmp_path, models.load_model()).shape == (1, 4, 16, 16)


def cut_in_half(path):
    drawn = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(path)
    path.write_bytes(path.read_bytes()[:4000])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("empty.png", lambda p: p.write_bytes(b"")),
        ("cut.png", cut_in_half),
        ("cut.jpg", lambda p: (cut_in_half(p), p.write_bytes(p.read_bytes()[:900]))),
        ("._beside.png", lambda p: p.write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")),
        ("text.jpg", lambda p: p.write_text("no image")),
        ("folder.png", lambda p: p.mkdir()),
        ("invisible.png", lambda p: Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(p)),
        ("not-finite.tif", lambda p: Image.fromarray(np.full((8, 8), np.nan, "f4")).save(p)),
        ("nothing.heic", lambda p: p.write_bytes(b"\0\0\0\30ftypheic" + bytes(64))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unreadable_file_is_skipped_with_a_warning(name, write, tmp_path, caplog):
    write(tmp_path / name)
    with pytest.raises(ValueError, match="folder must hold images that can be read"):
        encode_folder(tmp_path, models.load_model())
    assert f"{tmp_path / name} is skipped" in caplog.text
    Image.new("RGB", (64, 64), RED).save(tmp_path / "good.png")
    assert len(encode_folder(tmp_path, models.load_model())) == 1


def test_a_too_large_image_is_skipped(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    # Pillow warns above the limit and refuses above twice the limit
    for name, side in (("large", 64), ("larger-than-some", 12), ("small", 10)):
        Image.new("RGB", (side, side), RED).save(tmp_path / f"{name}.png")
    assert len(encode_folder(tmp_path, models.load_model())) == 1
    for name in ("large", "larger-than-some"):
        assert f"{name}.png is skipped" in caplog.text
