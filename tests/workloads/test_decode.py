"""Decoding images that nobody vouches for."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from qvl_lab.config import ImagePolicy
from qvl_lab.errors import ImageError
from qvl_lab.workloads.decode import decode_image, image_size, read_bytes
from qvl_lab.workloads.sources import load_workload

POLICY = ImagePolicy()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(width=40, height=20, colour=RED):
    return Image.new("RGB", (width, height), colour)


def noise(width=64, height=64):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_header(width, height):
    """A complete PNG that claims any size and holds ten bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def pixels(data):
    """All pixels of a decoded image, row by row."""
    image = decode_image(data, POLICY)
    assert image.mode == "RGB"
    return [tuple(p) for p in np.asarray(image).reshape(-1, 3).tolist()]


# ---- decoding ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied_and_the_header_agrees(fmt, orientation):
    image = picture(48, 16, BLUE)
    image.paste(RED, (0, 0, 16, 16))  # the left third
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, fmt, exif=exif)
    upright = decode_image(data, POLICY)
    # where the stored left end belongs, by the EXIF standard
    red_end = {1: "left", 2: "right", 3: "right", 4: "left"}.get(
        orientation, "top" if orientation in (5, 6) else "bottom"
    )
    spots = {"left": (4, 8), "right": (43, 8), "top": (8, 4), "bottom": (8, 43)}
    assert upright.size == image_size(data, POLICY) == ((48, 16) if orientation < 5 else (16, 48))
    assert upright.getpixel(spots[red_end])[0] > 200
    assert upright.getpixel((upright.width // 2, upright.height // 2))[2] > 200


def test_exif_behind_the_pixels_of_a_png_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(40, 20))
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = data[:-12] + late + data[-12:]  # IEND has 12 bytes
    assert decode_image(data, POLICY).size == image_size(data, POLICY) == (20, 40)


def test_a_png_size_needs_no_decoding(monkeypatch):
    data = encoded(noise(512, 256))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(data, POLICY) == (512, 256)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_does_not_spoil_the_image(fmt):
    data = encoded(picture(40, 20), fmt, exif=b"Exif\0\0garbage")
    assert decode_image(data, POLICY).size == image_size(data, POLICY) == (40, 20)


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    assert pixels(encoded(image)) == [WHITE, RED, (127, 127, 127)]


def test_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (10, 255)])
    assert pixels(encoded(image)) == [WHITE, (10, 10, 10)]


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, transparency=0)) == [WHITE, RED, BLUE]
    assert pixels(encoded(image)) == [(0, 0, 0), RED, BLUE]


def test_transparent_grey_and_colour_keys_are_white():
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 8])
    assert pixels(encoded(grey, transparency=7)) == [WHITE, (8, 8, 8)]
    colour = Image.new("RGB", (2, 1))
    colour.putdata([RED, BLUE])
    assert pixels(encoded(colour, transparency=RED)) == [WHITE, BLUE]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(fmt):
    samples = np.array([[0, 257, 32768, 65535]], np.uint16)
    levels = [r for r, _, _ in pixels(encoded(Image.fromarray(samples), fmt))]
    assert levels == [0, 1, 127, 255]  # 32768 / 257 = 127.5


def test_grey_becomes_rgb():
    assert pixels(encoded(Image.new("L", (1, 1), 77))) == [(77, 77, 77)]


def test_cmyk_jpeg_becomes_rgb():
    (pixel,) = pixels(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG", quality=100))
    assert pixel == pytest.approx(RED, abs=6)


def test_animation_gives_its_first_frame():
    frames = [picture(colour=c) for c in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert set(pixels(data)) == {RED}


def test_images_in_hand_are_converted_too():
    assert pixels(Image.new("RGBA", (1, 1), (0, 0, 0, 0))) == [WHITE]
    assert image_size(picture(), POLICY) == (40, 20)


# ---- refusals ----


def eps():
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    return text.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(noise(), "JPEG")[:1500], "cannot be decoded, truncated or damaged"),
        (encoded(noise())[:1500], "cannot be decoded, truncated or damaged"),
        (b"this is no picture", "not an image of a known format .JPEG, PNG, WEBP, BMP, GIF, TIFF"),
        (eps(), "not an image of a known format"),
        (b"P6 1 1 255\n\0\0\0", "not an image of a known format"),
        (png_header(50_000, 50_000), "too many pixels"),
        (png_header(10_000, 10_000), "10000 x 10000 = 100,000,000 pixels .* limit of 80,000,000"),
        (png_header(100, 100), "cannot be decoded, truncated or damaged"),
        (Image.new("RGB", (0, 5)), "0 x 5: the image has no pixels"),
    ],
    ids=["jpeg", "png", "text", "eps", "ppm", "bomb", "large", "short", "nothing"],
)
def test_bad_images_are_image_errors_that_say_why(data, message):
    with pytest.raises(ImageError, match=message):
        decode_image(data, POLICY)


def test_no_other_program_is_started_for_eps(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    Image.init()  # registers all of Pillow's formats, as other code may
    with pytest.raises(ImageError):
        decode_image(eps(), POLICY)


@pytest.mark.parametrize("read", [decode_image, image_size])
def test_the_pixel_limit_is_the_policys(read):
    data = encoded(picture(40, 20))
    with pytest.raises(ImageError, match=r"40 x 20 = 800 pixels .* of 799; raise max_image_pixels"):
        read(data, ImagePolicy(max_image_pixels=799))
    read(data, ImagePolicy(max_image_pixels=800))


def test_the_pixel_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="max_image_pixels"):
        decode_image(encoded(picture()), ImagePolicy(max_image_pixels=10))


@pytest.mark.parametrize("as_file", [True, False])
def test_the_byte_limit_is_the_policys(as_file, tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(2000))
    image = tmp_path / "a.png" if as_file else bytes(2000)
    with pytest.raises(ImageError, match=r"2,000 bytes .* limit of 1,999; raise max_image_bytes"):
        read_bytes(image, ImagePolicy(max_image_bytes=1999))
    assert read_bytes(image, ImagePolicy(max_image_bytes=2000)) == bytes(2000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.png", "cannot read the file: No such file"),
        (".", "not a regular file"),
        ("nul\0.png", "cannot read the file: embedded null byte"),
    ],
)
def test_unreadable_files_are_image_errors(name, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        read_bytes(f"{tmp_path}/{name}", POLICY)


def test_a_missing_file_is_named_and_a_url_is_none():
    with pytest.raises(ImageError, match=r"No such file or directory: .photos/a\.png"):
        read_bytes("photos/a.png", POLICY)
    with pytest.raises(ImageError, match=r"https://x\.org/a\.png is a URL, which is not read"):
        read_bytes("https://x.org/a.png", POLICY)


def test_a_photo_of_an_iphone_under_another_name_is_recognised():
    with pytest.raises(ImageError, match="HEIC is not supported: export the photo as JPEG"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), POLICY)


def test_empty_bytes_and_files_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    for image in (b"", tmp_path / "a.png"):
        with pytest.raises(ImageError, match="the file is empty"):
            read_bytes(image, POLICY)


def test_images_in_hand_pass_through():
    image = picture()
    assert read_bytes(image, POLICY) is image


def test_three_good_images_among_four_bad_ones(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp"):
        noise().save(tmp_path / name)
    jpeg = encoded(noise(), "JPEG")
    (tmp_path / "d_truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "e_text.png").write_text("this is no picture")
    (tmp_path / "f_bomb.png").write_bytes(png_header(50_000, 50_000))
    (tmp_path / "g_empty.jpg").write_bytes(b"")
    workload = load_workload(tmp_path)
    decoded, errors = [], {}
    for item in workload.items:
        try:
            decoded.append(decode_image(read_bytes(item.image, POLICY), POLICY).size)
        except ImageError as e:
            errors[item.id] = str(e)
    assert len(workload) == 7
    assert decoded == [(64, 64)] * 3
    assert list(errors) == ["d_truncated.jpg", "e_text.png", "f_bomb.png", "g_empty.jpg"]
    for why, error in zip(
        ("truncated", "not an image of a known format", "too many pixels", "empty"),
        errors.values(),
        strict=True,
    ):
        assert why in error
