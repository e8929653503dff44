"""Decoding images that nobody vouches for: every size is bounded before anything is decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from qvl_lab.config import ImagePolicy
from qvl_lab.errors import ImageError, InputError
from qvl_lab.workloads.items import ImageLike, refuse_url

#: Decoders that may run on foreign bytes. Formats that start other programs are not among them.
DECODERS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
)
FORMATS = tuple(decoder.format for decoder in DECODERS)
#: Endings of photos that are not decoded, and what to do about them.
UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heif"), "HEIC is not supported: export the photo as JPEG"),
    **dict.fromkeys((".avif", ".jxl", ".jp2"), "this format is not supported: save it as PNG"),
    **dict.fromkeys((".dng", ".cr2", ".nef", ".arw"), "RAW is not supported: export a JPEG"),
    **dict.fromkeys((".svg", ".psd"), "this format is not supported: export it as PNG"),
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def read_bytes(image: ImageLike, policy: ImagePolicy) -> bytes | Image.Image:
    """An image's encoded bytes, read from disk if need be; PIL images pass through.

    Raises
    ------
    ImageError
        If the file cannot be read, is empty, or is over ``policy.max_image_bytes``.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        refuse_url(image)
    except InputError as e:
        raise ImageError(str(e)) from None
    try:
        if not isinstance(image, bytes) and Path(image).exists() and not Path(image).is_file():
            raise ImageError("not a regular file")
        size = len(image) if isinstance(image, bytes) else Path(image).stat().st_size
        if size == 0:
            raise ImageError("the file is empty")
        if size > policy.max_image_bytes:
            raise ImageError(
                f"{size:,} bytes is over the limit of {policy.max_image_bytes:,}; "
                "raise max_image_bytes if the file can be trusted"
            )
        return image if isinstance(image, bytes) else Path(image).read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        why = getattr(e, "strerror", None) or e
        raise ImageError(f"cannot read the file: {why}: {str(image)!r}") from e


def decode_image(image: bytes | Image.Image, policy: ImagePolicy) -> Image.Image:
    """Encoded bytes to an upright RGB image.

    The size in the header is checked before anything is decoded. EXIF rotation is applied,
    transparency is laid over white, 16-bit samples are scaled to 8, of an animation the first
    frame is used.

    Raises
    ------
    ImageError
        If the bytes are no image, are truncated, or are over ``policy.max_image_pixels``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = _open(image, policy)
            opened.load()
            return _to_rgb(_upright(opened))
    except ImageError:
        raise
    except (MemoryError, RecursionError) as e:
        raise ImageError(f"decoding ran out of memory ({type(e).__name__})") from e
    except Exception as e:  # decoders fail on foreign bytes in many ways
        raise ImageError(f"cannot be decoded, truncated or damaged: {e}") from e


def image_size(image: bytes | Image.Image, policy: ImagePolicy) -> tuple[int, int]:
    """Upright (width, height) in pixels from the header alone; raises as :func:`decode_image`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = _open(image, policy)
        turned = _turned(opened, image)
    return opened.size[::-1] if turned else opened.size


def _turned(opened: Image.Image, encoded: bytes | Image.Image) -> bool:
    """Whether EXIF swaps width and height, without decoding the pixels."""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        return False  # Pillow turns a TIFF itself and gives its upright size
    if isinstance(opened, PngImagePlugin.PngImageFile) and isinstance(encoded, bytes):
        # Pillow decodes a whole PNG to look for EXIF behind its pixels
        marks = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile")
        if not any(mark in encoded for mark in marks):
            return False
    try:
        return opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # a damaged EXIF block: the image itself may be fine
        return False


def _open(image: bytes | Image.Image, policy: ImagePolicy) -> Image.Image:
    if isinstance(image, Image.Image):
        opened = image
    else:
        try:
            opened = Image.open(io.BytesIO(image), formats=FORMATS)
        except Image.DecompressionBombError as e:
            raise ImageError(f"too many pixels: {e}") from e
        except UnidentifiedImageError as e:
            if image[4:8] == b"ftyp" and image[8:12] in _HEIF_BRANDS:
                raise ImageError(UNSUPPORTED[".heic"]) from e
            raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})") from e
        except Exception as e:
            raise ImageError(f"the header cannot be read: {e}") from e
    width, height = opened.size
    if not width * height:
        raise ImageError(f"{width} x {height}: the image has no pixels")
    if width * height > policy.max_image_pixels:
        raise ImageError(
            f"{width} x {height} = {width * height:,} pixels is over the limit of "
            f"{policy.max_image_pixels:,}; raise max_image_pixels if the file can be trusted"
        )
    return opened


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block: the pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("I").point(lambda v: v / 257).convert("L")  # 65535 is white
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
