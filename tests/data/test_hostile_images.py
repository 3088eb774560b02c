"""Files that other tools write, as images and as masks: read as viewers show them, or refused in words."""

import re
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import hypothesis.extra.numpy
import numpy as np
import pytest
from conftest import write_category
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from kdbench.data.check import check
from kdbench.data.decoding import decode
from kdbench.data.found import find_data
from kdbench.datasets.folder import Folder
from kdbench.errors import DataError, RequestError
from kdbench.picture import MAX_PIXELS, open_image, read_mask

Write = Callable[[Path], object]

SHAPE = (8, 12)
COLOURS = np.random.default_rng(3).integers(0, 256, (*SHAPE, 3), np.uint8)
GREY = COLOURS[..., 0]
SPOT = np.zeros(SHAPE, bool)  # looks different whichever way it is turned
SPOT[1:3, 2:9] = SPOT[3:6, 2] = True
WHITE = SPOT * np.uint8(255)
HALF = np.where(SPOT, 255, 51).astype(np.uint8)  # an alpha of 1 and of 0.2


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def save(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> Write:
    """A writer of these pixels; `kind` is what the file is, whatever its name says."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path, kind, **options)


def palette(indices: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def pages(*images: np.ndarray, kind: str = "TIFF", **options: object) -> Write:
    first, *rest = map(Image.fromarray, images)
    return save(first, kind, save_all=True, append_images=rest, **options)


def turned(pixels: np.ndarray, orientation: int, kind: str, **options: object) -> Write:
    """The file that a camera writes that was held in another way: upright pixels are `pixels`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return save(Image.fromarray(pixels).transpose(back[orientation]), kind, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour_type: int, values: np.ndarray, *chunks: bytes, width: int = SHAPE[1]) -> Write:
    """A PNG of a kind that Pillow does not write; `values` are packed and big-endian already."""
    height = len(values)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body)


def tiff(values: np.ndarray, **tags: int | tuple[int, ...]) -> Write:
    """An uncompressed little-endian TIFF of one strip, of kinds that Pillow does not write."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    body = values.tobytes()
    known = {
        **{"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offsets": 273},
        **{"channels": 277, "rows": 278, "lengths": 279, "extra": 338, "sample_format": 339},
    }
    given: dict[str, int | tuple[int, ...]] = {
        **{"width": width, "height": height, "bits": (8 * values.itemsize,) * channels, "compression": 1},
        **{"photometric": 1, "channels": channels, "rows": height, "lengths": len(body), "offsets": 0},
        **tags,
    }
    start = 8 + 2 + 12 * len(given) + 4
    long = {name: value for name, value in given.items() if isinstance(value, tuple) and len(value) > 2}
    where, tail = {}, b""
    for name, several in long.items():
        where[name] = start + len(tail)
        tail += struct.pack(f"<{len(several)}H", *several)
    given["offsets"] = start + len(tail)
    entries = b""
    for name, value in sorted(given.items(), key=lambda item: known[item[0]]):
        several = value if isinstance(value, tuple) else (value,)
        if name in where:
            entries += struct.pack("<HHII", known[name], 3, len(several), where[name])
        elif len(several) == 2:
            entries += struct.pack("<HHIHH", known[name], 3, 2, *several)
        else:
            entries += struct.pack("<HHII", known[name], 4, 1, several[0])
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(given))
    return lambda path: path.write_bytes(head + entries + b"\0\0\0\0" + tail + body)


def long_tiff(num_pages: int) -> Write:
    """A TIFF of black pages of one strip that all of them share."""
    height, width = SHAPE
    body, tags = bytes(height * width), {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHII", 278, 4, 1, height), struct.pack("<HHII", 279, 4, 1, len(body))]
    page = struct.pack("<H", len(entries)) + b"".join(entries)
    starts = [8 + len(body) + number * (len(page) + 4) for number in range(num_pages)]
    chain = b"".join(page + struct.pack("<I", following) for following in (*starts[1:], 0))
    return lambda path: path.write_bytes(b"II*\0" + struct.pack("<I", starts[0]) + body + chain)


def content(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def cut(write: Write, share: float = 0.6) -> Write:
    """The first part of the file that `write` makes."""

    def write_part(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write_part


def without_adobe(path: Path) -> None:
    """A CMYK JPEG whose Adobe marker is gone."""
    save(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")(path)
    data = path.read_bytes()
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    path.write_bytes(data[:start] + data[start + 2 + length :])


def phone(path: Path) -> None:
    """An MPO: the photograph, and a small preview of something else behind it."""
    photo, preview = Image.new("RGB", (32, 16), (200, 30, 60)), Image.new("RGB", (8, 8), (0, 255, 0))
    photo.save(path, "MPO", save_all=True, append_images=[preview], quality=100, subsampling=0)


def webp(*images: np.ndarray, **options: object) -> Write:
    return pages(*images, kind="WEBP", lossless=True, **options)


RGBA = np.dstack([COLOURS, HALF])
OVER_BLACK = (COLOURS * (HALF[..., None] / 255)).round().astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 257
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LFS_SAID = "it is a pointer of Git LFS, not the file itself. Get the file with `git lfs pull`"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
NOISE = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)

# name: how it is written, and the pixels [H,W,3] that it is read as
IMAGES: dict[str, tuple[Write, np.ndarray]] = {
    "rgb": (save(COLOURS), COLOURS),
    "grey": (save(GREY), rgb(GREY)),
    "one bit": (save(SPOT), rgb(WHITE)),
    "bmp": (save(COLOURS, "BMP"), COLOURS),
    "tiff": (save(COLOURS, "TIFF", compression="tiff_lzw"), COLOURS),
    "palette whose index 0 is white": (
        save(palette(SPOT, [(255,) * 3, (9, 8, 7)])),
        np.where(SPOT[..., None], (9, 8, 7), 255),
    ),
    "palette with transparency": (
        save(palette(SPOT, [(10, 20, 30), (9, 8, 7)]), transparency=0),
        np.where(SPOT[..., None], (9, 8, 7), 0),
    ),
    "opaque rgba": (save(np.dstack([COLOURS, np.full(SHAPE, 255, np.uint8)])), COLOURS),
    "rgba over black": (save(RGBA), OVER_BLACK),
    "grey and alpha over black": (save(RGBA[..., [0, 3]]), rgb(OVER_BLACK[..., 0])),
    "one grey value is transparent": (save(WHITE, transparency=255), rgb(0 * GREY)),
    "16 bit": (save(DEEP), rgb(GREY)),
    "16 bit, one value is transparent": (
        png(16, 0, np.where(SPOT, 65535, 25700).astype(">u2"), chunk(b"tRNS", b"\xff\xff")),
        rgb(np.where(SPOT, 0, 100).astype(np.uint8)),
    ),
    "16 bit of colour": (png(16, 2, (COLOURS.astype(np.uint16) * 257).astype(">u2")), COLOURS),
    "2 bit": (
        png(2, 0, np.full((3, 1), 0b00011011, np.uint8), width=4),
        rgb(np.array([[0, 85, 170, 255]] * 3, np.uint8)),
    ),
    "tiff whose lowest value is white": (tiff(GREY, photometric=0), rgb(255 - GREY)),
    "tiff of 16 bit, big-endian": (save(Image.fromarray(DEEP), "TIFF"), rgb(GREY)),
    "cmyk tiff": (
        save(Image.new("CMYK", (12, 8), (255, 0, 51, 0)), "TIFF"),
        np.full((*SHAPE, 3), (0, 255, 204)),
    ),
    "icc profile is not applied": (save(COLOURS, icc_profile=ICC), COLOURS),
    "jpeg2000 named png": (save(COLOURS, "JPEG2000", irreversible=False), COLOURS),
    "webp named png": (webp(COLOURS), COLOURS),
    "tiff of ycbcr": (
        save(Image.fromarray(rgb(WHITE)).convert("YCbCr"), "TIFF", compression="tiff_lzw"),
        rgb(WHITE),
    ),
    "ppm named png": (save(COLOURS, "PPM"), COLOURS),
    **{f"png turned by {n}": (turned(COLOURS, n, "PNG"), COLOURS) for n in range(2, 9)},
    **{f"tiff turned by {n}": (turned(COLOURS, n, "TIFF"), COLOURS) for n in range(2, 9)},
    **{f"grey tiff turned by {n}": (turned(GREY, n, "TIFF"), rgb(GREY)) for n in range(2, 9)},
}  # fmt: skip

UNKNOWN = "it is of no kind of image that is known here; it begins with "
# name: how it is written, and why it is refused as an image
REFUSED_IMAGES: dict[str, tuple[Write, str]] = {
    "two pages": (
        pages(COLOURS, 255 - COLOURS),
        "it has 2 pages (TIFF), 12x8, 12x8. Save the page that is the image as a file of its own",
    ),
    "a thumbnail before the image": (
        pages(COLOURS[::2, ::2], COLOURS),
        "it has 2 pages (TIFF), 6x4, 12x8. Save the page that is the image as a file of its own",
    ),
    "five pages": (
        pages(*[COLOURS] * 5),
        "it has 5 pages (TIFF), 12x8, 12x8, 12x8, 12x8, .... "
        "Save the page that is the image as a file of its own",
    ),
    "more pages than are counted": (
        long_tiff(1001),
        "it has more than 1000 pages (TIFF), 12x8, 12x8, 12x8, 12x8, .... "
        "Save the page that is the image as a file of its own",
    ),
    "animated png": (
        pages(COLOURS, 255 - COLOURS, kind="PNG"),
        "it has 2 pages (PNG), 12x8, 12x8. Save the page that is the image as a file of its own",
    ),
    "animated gif": (
        pages(GREY, 255 - GREY, kind="GIF"),
        "it has 2 pages (GIF), 12x8, 12x8. Save the page that is the image as a file of its own",
    ),
    "animated webp": (
        webp(COLOURS, 255 - COLOURS),
        "it has 2 pages (WEBP), 12x8, 12x8. Save the page that is the image as a file of its own",
    ),
    "floating point": (
        save(GREY.astype(np.float32), "TIFF"),
        "it has floating-point values, whose white nothing says: save it with 8 or 16 bit",
    ),
    "12 bit in 16": (save(np.uint16(GREY) * 16), "it has no value above {} of 65535: scale it to all 16 bit"),
    "12 bit of colour in 16": (
        png(16, 2, (COLOURS.astype(np.uint16) * 16).astype(">u2")),
        "it has no value above 4095 of 65535: scale it to all 16 bit",
    ),
    "32 bit": (
        save(np.int32(GREY) * 70_000, "TIFF"),
        "it has values from {} to {}; 16 bit is 0 to 65535",
    ),
    "below zero": (save(np.int32(GREY) - 9, "TIFF"), "it has values from {} to {}; 16 bit is 0 to 65535"),
    "16 bit whose lowest value is white": (
        tiff(DEEP, photometric=0),
        "its lowest value is white (PhotometricInterpretation 0): save it with black as 0",
    ),
    "signed 8 bit": (
        tiff(GREY, sample_format=2),
        "it has values from -128 to 127: save it with values from 0 to 255",
    ),
    "a fourth channel": (
        tiff(np.dstack([COLOURS, GREY]), photometric=2, extra=0),
        "it has one more channel than colours, of unknown meaning: save it as RGB",
    ),
    "cielab": (
        save(Image.new("LAB", (12, 8), (50, 20, 30)), "TIFF"),
        "it has the colours of CIE L*a*b*: save it as RGB",
    ),
    "cmyk jpeg without a marker": (
        without_adobe,
        "it is a CMYK JPEG that does not say whether its inks are inverted: save it as RGB",
    ),
    "all transparent": (
        save(np.dstack([COLOURS, 0 * GREY])),
        "all of it is transparent: save it without transparency",
    ),
    "12 bit of grey and alpha in 16": (
        png(16, 4, np.dstack([np.uint16(GREY) * 16, np.full(SHAPE, 65535)]).astype(">u2")),
        "it has no value above 4095 of 65535: scale it to all 16 bit",
    ),
    "truncated png": (cut(save(NOISE)), "image file is truncated{}"),
    "truncated jpeg": (cut(save(NOISE, "JPEG")), "image file is truncated{}"),
    "truncated bmp": (cut(save(NOISE, "BMP")), "image file is truncated{}"),
    "truncated gif": (cut(save(NOISE[..., 0], "GIF")), "image file is truncated{}"),
    "truncated tiff": (cut(tiff(NOISE, photometric=2)), "image file is truncated{}"),
    "bomb": (
        png(8, 0, np.zeros((1, 1), np.uint8), width=MAX_PIXELS + 1),
        f"it claims {MAX_PIXELS + 1}x1 pixels, more than {MAX_PIXELS:,} are refused",
    ),
    "nothing in it": (content(b""), "it is empty"),
    "git lfs pointer": (content(LFS), LFS_SAID),
    "web page": (content(b"<!DOCTYPE html><html>404</html>"), "it is a web page or XML"),
    "postscript": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "it is PostScript"),
    "pdf": (content(b"%PDF-1.7\n"), "it is a PDF"),
    "zip": (content(b"PK\3\4aaaaaaaaaaaaaaaaaa"), "it is a zip archive"),
    "numpy": (content(b"\x93NUMPY\1\0v\0"), "it is a NumPy array"),
    "heic": (
        content(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        "it is HEIC or a video, which is not read: save it as PNG",
    ),
    "text": (content(b"hello"), f"{UNKNOWN}b'hello'"),
}

ALPHA = np.dstack([255 * np.ones((*SHAPE, 3), np.uint8), WHITE])
REST = SPOT.copy()  # one part of SPOT on the first page, the other on the second
REST[3:] = False
VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (192, 128, 128)]
CLASSES = np.where(SPOT, 1 + np.indices(SHAPE).sum(0) % 3, 0)
CLASSES_AS_AREAS = np.indices(SHAPE)[0] // 4 * 4 + np.indices(SHAPE)[1] // 3  # 0 to 7, 4x3 pixels each
SOFT = np.asarray(Image.fromarray(np.kron(WHITE, np.ones((8, 8), np.uint8))).resize((48, 32), 2))
EDGES = np.asarray(Image.fromarray(WHITE).resize((24, 16)).resize((12, 8), 2))
EVERY = np.ones(SHAPE, bool)

# name: how it is written, and what it marks, bool [H,W]
MASKS: dict[str, tuple[Write, np.ndarray]] = {
    "black and white": (save(WHITE), SPOT),
    "0 and 1": (save(SPOT.astype(np.uint8)), SPOT),
    "one bit": (save(SPOT), SPOT),
    "16 bit of 0 and 1": (save(SPOT.astype(np.uint16)), SPOT),
    "16 bit of 0 and 65535": (save(WHITE.astype(np.uint16) * 257), SPOT),
    "32 bit of 0 and 70000": (save(SPOT * np.int32(70_000), "TIFF"), SPOT),
    "floating point of 0 and 0.5": (save(SPOT * np.float32(0.5), "TIFF"), SPOT),
    "class ids": (save(CLASSES.astype(np.uint8)), SPOT),
    "classes as greys": (save((CLASSES_AS_AREAS * 30).astype(np.uint8)), CLASSES_AS_AREAS > 0),
    "palette, black first": (save(palette(SPOT, [(0,) * 3, (255,) * 3])), SPOT),
    "palette, white first": (save(palette(~SPOT, [(255,) * 3, (0,) * 3])), SPOT),
    "quantized": (lambda path: Image.fromarray(rgb(WHITE)).quantize(2).save(path), SPOT),
    "adaptive palette": (
        lambda path: Image.fromarray(rgb(WHITE)).convert("P", palette=Image.Palette.ADAPTIVE).save(path),
        SPOT,
    ),
    "palette of several classes": (save(palette(CLASSES, VOC)), SPOT),
    "palette, a white background": (save(palette(SPOT, [(255,) * 3, (200, 0, 0)])), EVERY),
    "palette gif": (save(WHITE, "GIF"), SPOT),
    "palette bmp": (save(palette(~SPOT, [(255, 0, 0), (0,) * 3]), "BMP"), SPOT),
    "red": (save(rgb(WHITE) * np.array([1, 0, 0], np.uint8)), SPOT),
    "dark blue": (save(rgb(SPOT.astype(np.uint8)) * np.array([0, 0, 9], np.uint8)), SPOT),
    "opaque rgba": (save(np.dstack([rgb(WHITE), EVERY * np.uint8(255)])), SPOT),
    "opaque grey and alpha": (save(np.dstack([WHITE, EVERY * np.uint8(255)])), SPOT),
    "white, alpha marks": (save(ALPHA), SPOT),
    "black, alpha marks": (save(ALPHA * np.array([0, 0, 0, 1], np.uint8)), SPOT),
    "grey and alpha, alpha marks": (save(ALPHA[..., 2:]), SPOT),
    "colour and alpha mark the same": (save(np.dstack([rgb(WHITE), WHITE])), SPOT),
    "red over hidden white": (
        save(np.dstack([np.where(SPOT[..., None], (255, 0, 0), 255), WHITE]).astype(np.uint8)),
        SPOT,
    ),
    "palette, the background is transparent": (
        save(palette(SPOT, [(255,) * 3, (255,) * 3]), transparency=0),
        SPOT,
    ),
    "16 bit, black is transparent": (
        png(16, 0, (WHITE.astype(np.uint16) * 257).astype(">u2"), chunk(b"tRNS", b"\0\0")),
        SPOT,
    ),
    "half transparent everywhere": (save(np.dstack([rgb(WHITE), EVERY * np.uint8(99)])), SPOT),
    "a defect per page": (pages(255 * REST.astype(np.uint8), 255 * (SPOT & ~REST).astype(np.uint8)), SPOT),
    "a defect per page of one bit": (pages(REST, SPOT & ~REST, compression="group4"), SPOT),
    "a defect per frame of a png": (
        pages(255 * REST.astype(np.uint8), 255 * (SPOT & ~REST).astype(np.uint8), kind="PNG"),
        SPOT,
    ),
    "a defect per frame of a gif": (
        pages(255 * REST.astype(np.uint8), 255 * (SPOT & ~REST).astype(np.uint8), kind="GIF"),
        SPOT,
    ),
    "a defect per frame of a webp": (
        webp(rgb(REST * np.uint8(255)), rgb((SPOT & ~REST) * np.uint8(255))),
        SPOT,
    ),
    "inverted": (save(255 - WHITE), ~SPOT),
    "tiff whose lowest value is white": (tiff(255 - WHITE, photometric=0), SPOT),
    "cmyk": (save(Image.fromarray(rgb(WHITE)).convert("CMYK"), "TIFF"), SPOT),
    "webp": (webp(rgb(WHITE)), SPOT),
    **{f"png turned by {n}": (turned(WHITE, n, "PNG"), SPOT) for n in range(2, 9)},
    **{f"tiff turned by {n}": (turned(WHITE, n, "TIFF"), SPOT) for n in range(2, 9)},
}

JPEG = "JPEG blurs what is marked; save masks as PNG"
SOFT_SAID = (
    "it has {} grey values from 0 to {}: it is soft or was compressed, and all that is not black would "
    "count as defect. Save it with black and white only"
)
UNCLEAR = (
    "it has black and coloured parts, and transparent ones: nothing says whether colour or transparency "
    "marks the defect. Save it in black and white, without transparency"
)
# name: how it is written, and why it is refused as a mask
REFUSED_MASKS: dict[str, tuple[Write, str]] = {
    "jpeg": (save(WHITE, "JPEG"), JPEG),
    "jpeg of a phone": (phone, JPEG),
    "jpeg in a tiff": (
        save(rgb(WHITE), "TIFF", compression="jpeg"),
        "TIFF (jpeg) blurs what is marked; save masks as PNG",
    ),
    "webp with losses": (save(rgb(WHITE), "WEBP"), "WebP (lossy) blurs what is marked; save masks as PNG"),
    "jpeg2000": (save(WHITE, "JPEG2000"), "JPEG2000 blurs what is marked; save masks as PNG"),
    "ringing of a jpeg, saved as png": (
        save(np.where(SPOT, 254, np.where(np.roll(SPOT, 1, 1), 3, 0)).astype(np.uint8)),
        "it has 3 grey values from 0 to 254: it is soft or was compressed, and all that is not black would "
        "count as defect. Save it with black and white only",
    ),
    "soft": (save(SOFT), SOFT_SAID),
    "edges that were resized": (save(EDGES), SOFT_SAID),
    "soft alpha": (
        save(np.dstack([np.full((*SOFT.shape, 3), 255, np.uint8), SOFT])),
        SOFT_SAID,
    ),
    "pages of different sizes": (
        pages(WHITE, WHITE[::2, ::2]),
        "its pages have different sizes, 12x8, 6x4: nothing says which one is meant",
    ),
    "more pages than are counted": (
        long_tiff(1001),
        "it has more than 1000 pages, as no mask needs: unite them in one",
    ),
    "colour or alpha": (save(np.dstack([rgb(WHITE), np.roll(WHITE, 2, 1)])), UNCLEAR),
    "black strokes over hidden white": (save(np.dstack([rgb(255 - WHITE), WHITE])), UNCLEAR),
    "all transparent": (
        save(np.dstack([rgb(WHITE), 0 * WHITE])),
        "all of it is transparent: save it in black and white",
    ),
    "16 bit of colour": (
        png(16, 2, np.repeat(SPOT[..., None], 3, -1).astype(">u2")),
        "it has colours of 16 bit, of which only 8 could be read: save it with 8 bit",
    ),
    "ppm of 16 bit": (
        content(b"P6 12 8 65535 " + np.repeat(SPOT[..., None], 3, -1).astype(">u2").tobytes()),
        "it has colours of 16 bit, of which only 8 could be read: save it with 8 bit",
    ),
    "below zero": (
        save(-SPOT.astype(np.int32), "TIFF"),
        "it has values from -1 to 0: save it with 0 and 255",
    ),
    "not a number": (
        save(np.where(SPOT, np.float32("nan"), np.float32(0)), "TIFF"),
        "it has values from nan to nan: save it with 0 and 255",
    ),
    "16 bit whose lowest value is white": REFUSED_IMAGES["16 bit whose lowest value is white"],
    "a fourth channel": REFUSED_IMAGES["a fourth channel"],
    "cielab": REFUSED_IMAGES["cielab"],
    "truncated": REFUSED_IMAGES["truncated png"],
    "git lfs pointer": (content(LFS), LFS_SAID),
    "nothing in it": (content(b""), "it is empty"),
}


def said_exactly(error: Exception | str, expected: str) -> None:
    """{} stands for a number that depends on the pixels here, or on how many bytes Pillow reads at once."""
    pattern = re.escape(expected).replace(r"\{\}", r"(-?\d+| \(\d+ bytes not processed\)|)")
    assert re.fullmatch(pattern, str(error)), f"{error} is not {expected}"


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_read_as_viewers_show_it(tmp_path, name):
    write, expected = IMAGES[name]
    write(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png").image), expected)


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_an_image_that_could_be_read_in_two_ways_is_refused_with_what_to_do(tmp_path, name):
    write, expected = REFUSED_IMAGES[name]
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(DataError) as raised:
        open_image(path)
    said_exactly(raised.value, f"{path} cannot be read as an image: {expected}")


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_marks_what_viewers_show(tmp_path, name):
    write, expected = MASKS[name]
    write(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", 0, 32), expected)


@pytest.mark.parametrize("name", REFUSED_MASKS)
def test_a_mask_that_could_be_read_in_two_ways_is_refused_with_what_to_do(tmp_path, name):
    write, expected = REFUSED_MASKS[name]
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(DataError) as raised:
        read_mask(path, 0, 32)
    said_exactly(raised.value, f"{path} cannot be read as a mask: {expected}")


def test_a_mask_of_many_pages_is_read_in_time(tmp_path):
    """Pillow counts the pages of a TIFF by comparing each with all before it."""
    long_tiff(500)(tmp_path / "a.tif")
    started = time.process_time()
    assert not read_mask(tmp_path / "a.tif").any()
    with pytest.raises(DataError, match="it has 500 pages"):
        open_image(tmp_path / "a.tif")
    long_tiff(20_000)(tmp_path / "a.tif")
    with pytest.raises(DataError, match="it has more than 1000 pages"):
        open_image(tmp_path / "a.tif")
    assert time.process_time() - started < 3


def as_mode(mask: np.ndarray, mode: str) -> Image.Image:
    """The mask, bool [H,W], as an image of this mode; ":alpha" says the defect in transparency alone."""
    white = mask * np.uint8(255)
    opaque = np.full_like(white, 255)
    kinds: dict[str, Callable[[], Image.Image]] = {
        "L 0 and 1": lambda: Image.fromarray(mask.astype(np.uint8)),
        "P": lambda: palette(mask, [(0, 0, 0), (9, 0, 255)]),
        "P, white first": lambda: palette(~mask, [(255, 255, 255), (0, 0, 0)]),
        "LA:alpha": lambda: Image.fromarray(np.dstack([opaque, white])),
        "RGBA:alpha": lambda: Image.fromarray(np.dstack([opaque, opaque, opaque, white])),
        "I;16": lambda: Image.fromarray(mask.astype(np.uint16)),
        "I": lambda: Image.fromarray(mask * np.int32(300)),
        "F": lambda: Image.fromarray(mask * np.float32(0.25)),
    }
    made = kinds.get(mode, lambda: Image.fromarray(rgb(white)).convert(mode, dither=Image.Dither.NONE))
    return made()


GREYS = ("1", "L", "L 0 and 1")
PALETTES = ("P", "P, white first")
ALPHAS = ("LA", "RGBA", "LA:alpha", "RGBA:alpha")
# format: the modes that Pillow writes in it without loss
LOSSLESS: dict[str, tuple[str, ...]] = {
    "PNG": (*GREYS, *PALETTES, "RGB", *ALPHAS, "I;16"),
    "TIFF": (*GREYS, *PALETTES, "RGB", *ALPHAS, "I;16", "I", "F", "CMYK", "YCbCr"),
    "BMP": (*GREYS, *PALETTES, "RGB", "RGBA"),  # its fourth byte is not alpha
    "DIB": (*GREYS, *PALETTES, "RGB"),
    "GIF": (*GREYS, *PALETTES),
    "WEBP": ("RGB", "RGBA", "RGBA:alpha"),
    "PPM": (*GREYS, "RGB", "I"),
    "TGA": (*GREYS, *PALETTES, "RGB", *ALPHAS),
    "PCX": (*GREYS, *PALETTES, "RGB"),
    "SGI": ("L", "L 0 and 1", "RGB", "RGBA", "RGBA:alpha"),
    "QOI": ("RGB", "RGBA", "RGBA:alpha"),
    "MSP": ("1",),
    "XBM": ("1",),
}
OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "TIFF": tuple({"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
    "WEBP": ({"lossless": True, "exact": True},),
}
WRITTEN = [(kind, mode) for kind, modes in LOSSLESS.items() for mode in modes]
masks = hypothesis.extra.numpy.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)))


@given(mask=masks, written=st.sampled_from(WRITTEN), data=st.data())
@settings(max_examples=200)
def test_a_mask_reads_back_as_it_was_written_in_every_lossless_format(tmp_path_factory, mask, written, data):
    kind, mode = written
    options = data.draw(st.sampled_from(OPTIONS.get(kind, ({},))))
    if ":alpha" in mode and not mask.any():  # all transparent is an error
        mask[0, 0] = True
    path = tmp_path_factory.getbasetemp() / "mask.png"
    as_mode(mask, mode).save(path, kind, **options)
    np.testing.assert_array_equal(read_mask(path, 0, 32), mask)


def test_a_truncated_image_is_an_error_whatever_another_package_set(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut(save(NOISE))(tmp_path / "a.png")
    with pytest.raises(DataError, match="image file is truncated"):
        open_image(tmp_path / "a.png")


def complaints(root: Path) -> str:
    """What a run says before its first cell."""
    try:
        data = find_data(Folder(), root, ())
    except RequestError as error:
        return str(error)
    return "\n".join(decode([("folder", "part", 8, "exact")], {"folder": data}, lambda done, total: None))


@pytest.mark.parametrize("name", [*REFUSED_IMAGES, *(f"mask: {name}" for name in REFUSED_MASKS)])
def test_a_deep_check_finds_every_bad_file_in_the_words_of_a_run(tmp_path, name):
    part = write_category(tmp_path, "part", train=1, good=1, bad=1)
    of_mask = name.startswith("mask: ")
    path = part / ("ground_truth/broken/000_mask.png" if of_mask else "train/good/000.png")
    write, expected = REFUSED_MASKS[name.removeprefix("mask: ")] if of_mask else REFUSED_IMAGES[name]
    write(path)
    (found,) = check(Folder(), tmp_path, deep=True)
    assert len(found.problems) == 1
    said_exactly(
        found.problems[0], f"{path} cannot be read as {'a mask' if of_mask else 'an image'}: {expected}"
    )
    assert complaints(tmp_path) == found.problems[0]


@pytest.mark.parametrize("name", MASKS)
def test_a_deep_check_takes_every_good_mask(tmp_path, name):
    part = write_category(tmp_path, "part", train=2, good=1, bad=1)
    write, expected = MASKS[name]
    Image.fromarray(COLOURS).save(part / "test/broken/000.png")
    write(part / "ground_truth/broken/000_mask.png")
    (found,) = check(Folder(), tmp_path, deep=True)
    assert found.problems == ()
    assert len(found.remarks) == (expected.mean() > 0.5)
