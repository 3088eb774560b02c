"""The one way to open a picture, for images and masks alike: upright, by its colours, no page left out.

docs/datasets.md says which files are read, and which are refused because a viewer and a parser could disagree
about them. The pixels of ordinary RGB and grey files are those that Pillow decodes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from kdbench.errors import DataError, first_line
from kdbench.files import IMAGE_SUFFIXES, LFS_POINTER, Content, is_lfs_pointer

MAX_PIXELS = 178_956_970  # a file that claims more may be a decompression bomb; Pillow's own limit
Image.MAX_IMAGE_PIXELS = None  # checked here instead, without Pillow's zone of warnings below the limit

# Pillow decodes these by itself, whatever the suffix; it would start another program for an EPS.
# MPO, several JPEGs in one file, comes with JPEG.
FORMATS = (
    *("PNG", "JPEG", "JPEG2000", "BMP", "DIB", "TIFF", "GIF", "WEBP", "AVIF", "PPM", "TGA", "PCX", "SGI"),
    *("MSP", "XBM", "QOI"),
)
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # formats that may change the pixels that were saved
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")  # compressions
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PLAIN = ("1", "L", "RGB", "I", "I;16", "I;16B")  # modes whose stored values are their colours

MOST_PAGES = 1000  # of a mask; each further page of a TIFF takes Pillow longer to count
FULL_RANGE = 4096  # a 16-bit image without a higher value was made by a camera of 8, 10 or 12 bit
# Tags of TIFF and their values.
PHOTOMETRIC, MIN_IS_WHITE, EXTRA_SAMPLES, UNSPECIFIED, SAMPLE_FORMAT, SIGNED = 262, 0, 338, 0, 339, 2

SUFFIXES = (*IMAGE_SUFFIXES, ".webp")  # of the images of a folder that holds other files, too

# How files begin that are often named like an image.
CONTENTS = {
    b"<": "it is a web page or XML",
    b"%!PS": "it is PostScript",
    b"%PDF": "it is a PDF",
    b"PK\3\4": "it is a zip archive",
    b"\x93NUMPY": "it is a NumPy array",
}
# All that Pillow's parsers raise for damaged files.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError),
    *(RuntimeError, ZeroDivisionError, AssertionError, MemoryError, Warning, Image.DecompressionBombError),
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An upright image in RGB, and facts about it.

    `transparent`: parts of it were transparent and are black now. `profile`: a hash of the colour profile,
    which is not applied; "" without one. `highest`: the highest value of a file of 16 bit, out of 65535; 0
    for a file of 8 bit.
    """

    image: Image.Image
    transparent: bool
    profile: str = ""
    highest: int = 0

    @property
    def flat(self) -> bool:
        """Whether all of it has one colour."""
        return len(self.image.getcolors(maxcolors=1) or ()) == 1

    def content(self) -> str:
        """A hash of size and pixels: the same for the same picture in another kind of file."""
        size = f"{self.image.width}x{self.image.height}"
        return hashlib.sha256(size.encode() + self.image.tobytes()).hexdigest()


@contextmanager
def opened(
    path: Path | Content, what: str, formats: tuple[str, ...] = FORMATS
) -> Iterator[ImageFile.ImageFile]:
    """The file, its content not yet decoded; whatever Pillow raises is one DataError with the path."""
    try:
        # If another package has set this, Pillow would read half of an image. Given a path, it maps pixels of
        # an uncompressed TIFF into memory, and scrambles a turned one.
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        with path.open("rb") as stream, Image.open(stream, formats=formats) as file:
            yield file
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read as {what}: {_reason(path, error)}") from error


def open_image(path: Path | Content) -> Picture:
    """Decode an image; DataError with the path if it cannot be read, or only by guessing its meaning."""
    with opened(path, "an image") as file:
        _refuse_image(file)
        upper_half = _colours_of_16_bit(file)  # a loaded file does not tell it any more
        image = ImageOps.exif_transpose(file)
        if file.mode.startswith("I"):
            return _from_16_bit(image)
        profile = file.info.get("icc_profile") or b""
        highest = 257 * int(np.asarray(image.convert("RGB")).max()) if upper_half else 0
        if upper_half and highest < FULL_RANGE:
            raise ValueError(f"it has no value above {FULL_RANGE - 1} of 65535: scale it to all 16 bit")
        digest = hashlib.sha256(profile).hexdigest() if profile else ""
        return replace(_over_black(image), profile=digest, highest=highest)


def resized(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as uint8 [S,S,3]: bilinear with anti-aliasing, aspect not kept."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def images_below(folder: Path, what: str = "") -> list[Path]:
    """All images below a folder, by their suffixes, sorted by path; a DataError begins with `what`."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{what}there is no image below {str(folder)!r}: {', '.join(SUFFIXES)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Header:
    """The facts in the header of a file: its size as viewers show it, and its EXIF orientation."""

    size: tuple[int, int]  # width, height
    orientation: int  # 1: stored upright


def read_header(path: Path, what: str = "an image") -> Header:
    """The header of an image or a mask; DataError with the path. Reads no pixels of most files."""
    with opened(path, what) as file:
        orientation = orientation_of(file)
        # Pillow has swapped the sides of a TIFF already.
        swapped = file.format != "TIFF" and orientation in SIDEWAYS
        return Header(size=(file.height, file.width) if swapped else file.size, orientation=orientation)


def orientation_of(file: ImageFile.ImageFile) -> int:
    """The EXIF orientation; 1, which is upright, if the file has none or one that does not exist."""
    value = file.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def read_mask(path: Path, above: int = 0, max_values: int | None = None) -> np.ndarray:
    """The marked pixels of a mask, bool [H,W], upright: a viewer shows them brighter than `above` (of 255).

    Pages of equal size are united. Transparency counts if the colours do not say the same. With `above` = 0
    every pixel that is not black is marked, so lossy formats are refused. With `max_values` as well, masks
    with more grey values are refused, and masks with greys only along edges. DataError with the path.
    """
    with opened(path, "a mask") as file:
        united: np.ndarray | None = None
        if (num_pages := _num_pages(file)) > MOST_PAGES:
            raise ValueError(f"it has more than {MOST_PAGES} pages, as no mask needs: unite them in one")
        for page in range(num_pages):
            file.seek(page)
            _refuse_mask(file, path, above)
            marked = _marked(ImageOps.exif_transpose(file), above, None if above else max_values)
            if united is not None and united.shape != marked.shape:
                sizes = _sizes(file)
                raise ValueError(f"its pages have different sizes, {sizes}: nothing says which one is meant")
            united = marked if united is None else united | marked
    assert united is not None
    return united


def image_by_rule(path: Path) -> bool:
    """Whether older versions of kdbench read other pixels from this image.

    They did if Pillow scrambles it (a turned grey TIFF), or if its 16 bits have a transparent value. Raises
    DataError for a file that is refused by its header.
    """
    with opened(path, "an image") as file:
        _refuse_image(file)
        mapped = file.format == "TIFF" and file.mode != "RGB"
        return (mapped and orientation_of(file) in SIDEWAYS) or (
            file.mode.startswith("I") and "transparency" in file.info
        )


def mask_by_rule(path: Path, above: int) -> bool:
    """Whether older versions of kdbench read other marks from this mask.

    They took the stored values of the first page, which differ for a palette, transparency, several pages, a
    turned picture, or other colours than RGB. Raises DataError for a file that is refused by its header.
    """
    with opened(path, "a mask") as file:
        _refuse_mask(file, path, above)
        if _num_pages(file) > 1 or file.mode not in (*PLAIN, "LA", "RGBA") or orientation_of(file) != 1:
            return True
        if not file.has_transparency_data:
            return False
        if file.mode not in ("LA", "RGBA"):
            return True
        lowest, highest = file.getchannel("A").getextrema()
        return lowest != highest or highest == 0


def _refuse_image(file: ImageFile.ImageFile) -> None:
    """ValueError for an image that is refused by its header."""
    _check_size(file)
    if (num_pages := _num_pages(file)) > 1:
        count = str(num_pages) if num_pages <= MOST_PAGES else f"more than {MOST_PAGES}"
        raise ValueError(
            f"it has {count} pages ({file.format}), {_sizes(file)}. "
            f"Save the page that is the image as a file of its own"
        )
    refuse_unclear(file)
    if file.mode == "F":
        raise ValueError("it has floating-point values, whose white nothing says: save it with 8 or 16 bit")


def _refuse_mask(file: ImageFile.ImageFile, path: Path, above: int) -> None:
    """ValueError for a page of a mask that is refused by its header."""
    _check_size(file)
    if above == 0:
        _refuse_lossy(file, path)
    refuse_unclear(file)
    if _colours_of_16_bit(file):
        raise ValueError("it has colours of 16 bit, of which only 8 could be read: save it with 8 bit")


def _num_pages(file: ImageFile.ImageFile) -> int:
    """Pages or frames, at most MOST_PAGES + 1; one for an MPO: the others are previews or other views."""
    if file.format != "TIFF":
        return 1 if file.format == "MPO" else min(int(getattr(file, "n_frames", 1)), MOST_PAGES + 1)
    page, count = file.tell(), 1
    with suppress(EOFError):
        while count <= MOST_PAGES:
            file.seek(count)
            count += 1
    file.seek(page)
    return count


def _sizes(file: ImageFile.ImageFile) -> str:
    """The sizes of the first pages, for a message."""
    sizes, num_pages = [], _num_pages(file)
    for page in range(min(num_pages, 4)):
        file.seek(page)
        sizes.append(f"{file.width}x{file.height}")
    return ", ".join(sizes) + (", ..." if num_pages > 4 else "")


def _check_size(file: ImageFile.ImageFile) -> None:
    if file.width * file.height > MAX_PIXELS:
        raise ValueError(f"it claims {file.width}x{file.height} pixels, more than {MAX_PIXELS:,} are refused")


def _layout(file: ImageFile.ImageFile) -> tuple[str, int]:
    """How values lie in the file, in Pillow's words ("" if it does not say), and a PPM's value of white."""
    arguments = file.tile[0].args if file.tile else ""
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    raw = next((part for part in parts[:1] if isinstance(part, str)), "")
    white = next((part for part in parts[1:2] if isinstance(part, int)), 0)
    return raw, white if file.format == "PPM" else 0


def _colours_of_16_bit(file: ImageFile.ImageFile) -> bool:
    """Whether Pillow gives only the upper 8 of 16 bits."""
    raw, white = _layout(file)
    return not file.mode.startswith("I") and (";16" in raw or white > 255)


def refuse_unclear(file: ImageFile.ImageFile) -> None:
    """ValueError for files that Pillow decodes against their meaning, or that have no certain meaning."""
    if file.mode == "LAB":
        raise ValueError("it has the colours of CIE L*a*b*: save it as RGB")
    if file.mode == "CMYK" and file.format == "JPEG" and "adobe" not in file.info:
        raise ValueError("it is a CMYK JPEG that does not say whether its inks are inverted: save it as RGB")
    if file.format != "TIFF":
        return
    tags = file.tag_v2  # type: ignore[attr-defined]
    if UNSPECIFIED in tags.get(EXTRA_SAMPLES, ()):
        raise ValueError("it has one more channel than colours, of unknown meaning: save it as RGB")
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE and (file.mode == "F" or file.mode.startswith("I")):
        raise ValueError("its lowest value is white (PhotometricInterpretation 0): save it with black as 0")
    if file.mode == "L" and SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("it has values from -128 to 127: save it with values from 0 to 255")


def _refuse_lossy(file: ImageFile.ImageFile, path: Path) -> None:
    name = str(file.format)
    compression = str(file.info.get("compression", "")) if name == "TIFF" else ""
    if name == "WEBP" and b"VP8 " in path.read_bytes():
        name, compression = "WebP", "lossy"
    if name in LOSSY or compression in (*LOSSY_TIFF, "lossy"):
        shown = "JPEG" if name == "MPO" else f"{name} ({compression})" if compression else name
        raise ValueError(f"{shown} blurs what is marked; save masks as PNG")


def _from_16_bit(image: Image.Image) -> Picture:
    """Grey values of more than 8 bit, scaled so that 65535 is white: Pillow's own conversion clips."""
    values = np.asarray(image, np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"it has values from {values.min():.0f} to {values.max():.0f}; 16 bit is 0 to 65535")
    if values.max() < FULL_RANGE:  # all of it would be black
        raise ValueError(f"it has no value above {values.max():.0f} of 65535: scale it to all 16 bit")
    hidden = values == image.info.get("transparency", -1)
    grey = np.where(hidden, 0, (values / 257).round()).astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    return Picture(image=image, transparent=bool(hidden.any()), highest=int(values.max()))


def _over_black(image: Image.Image) -> Picture:
    if not image.has_transparency_data:
        return Picture(image=image.convert("RGB"), transparent=False)
    image = _plain_alpha(image).convert("RGBA")
    lowest, highest = image.getchannel("A").getextrema()
    if highest == 0:  # of a frame grabber that leaves the fourth byte empty: it would be black
        raise ValueError("all of it is transparent: save it without transparency")
    over = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return Picture(image=over.convert("RGB"), transparent=lowest != 255)


def _plain_alpha(image: Image.Image) -> Image.Image:
    """The image with plain colours if they are multiplied by alpha: Pillow converts them to nothing else."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def _marked(image: Image.Image, above: int, max_values: int | None) -> np.ndarray:
    """The marked pixels of one upright page, by colour or transparency."""
    values, alpha = _brightness(image)
    marked = values > above
    if alpha is not None and alpha.max() == 0:
        raise ValueError("all of it is transparent: save it in black and white")
    if alpha is None or alpha.min() == alpha.max() or (alpha.min() > above and marked.any()):
        _refuse_soft(values, max_values)
        return marked
    visible = alpha > above
    if (marked & visible).sum() == visible.sum() or not marked.any():
        _refuse_soft(alpha, max_values)
        return visible
    raise ValueError(
        "it has black and coloured parts, and transparent ones: nothing says whether colour or "
        "transparency marks the defect. Save it in black and white, without transparency"
    )


def _brightness(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The largest colour of each pixel, and its alpha if the file has any; ValueError for values below 0."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(
                f"it has values from {values.min():g} to {values.max():g}: save it with 0 and 255"
            )
        key = image.info.get("transparency")
        return values, None if key is None else np.where(values == key, 0, 255)
    if image.has_transparency_data:
        colours = np.asarray(_plain_alpha(image).convert("RGBA"))
        return colours[..., :3].max(-1), colours[..., 3]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")), None
    return np.asarray(image.convert("RGB")).max(-1), None


def _refuse_soft(values: np.ndarray, max_values: int | None) -> None:
    """ValueError for the soft edges of brushes, resizing and JPEG: they would count as defect."""
    if max_values is None:
        return
    found = np.unique(values)
    near_black, near_white = (found > 0) & (found < 16), (found >= 240) & (found < 255)
    compressed = near_black.any() and near_white.any()
    blurred = len(found) >= 5 and found[-1] >= 64 and not _has_areas(values, found[1:-1])
    if len(found) > max_values or compressed or blurred:
        raise ValueError(
            f"it has {len(found)} grey values from {found[0]:g} to {found[-1]:g}: it is soft or was "
            f"compressed, and all that is not black would count as defect. Save it with black and white only"
        )


def _has_areas(values: np.ndarray, greys: np.ndarray) -> bool:
    """Whether a pixel of these greys has eight neighbours of its own grey; no pixel of an edge has."""
    height, width = values.shape
    same = np.isin(values, greys)[1:-1, 1:-1]
    for row, column in np.ndindex(3, 3):
        same &= values[1:-1, 1:-1] == values[row : height - 2 + row, column : width - 2 + column]
    return bool(same.any())


def _reason(path: Path | Content, error: Exception) -> str:
    """What is wrong with the file, as far as its content tells."""
    if isinstance(path, Path) and is_lfs_pointer(path):
        return LFS_POINTER
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or first_line(error)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp":
        return "it is HEIC or a video, which is not read: save it as PNG"
    known = (text for start, text in CONTENTS.items() if head.startswith(start))
    return next(known, f"it is of no kind of image that is known here; it begins with {head[:8]!r}")
