"""Reading what picture files say about themselves, from headers alone and with every size capped. Imports no torch."""

import html
import json
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sdxl_core.errors import SdxlError

PARAMETERS_KEY = "parameters"
RECORD_KEY = "sdxl"
XMP_KEY = "XML:com.adobe.xmp"
AI_MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
USER_COMMENT, EXIF_IFD, SOFTWARE = 0x9286, 0x8769, 0x0131
UNICODE_COMMENT = b"UNICODE\0"

MAX_TEXT_BYTES = 2**20
_MAX_CHUNKS = 100_000
_MAX_TEXTS = 64
_MAX_FILE_BYTES = 2**28
_PAIR = re.compile(r'\s*([\w +/()-]{1,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_OWN = re.compile(r'sdxl:record="([^"]*)"')


class PictureError(SdxlError):
    """A file that is no picture, or a damaged one."""


@dataclass(slots=True)
class PictureFile:
    """What a picture says about itself.

    Args:
        format: png, jpg or webp.
        width: in pixels.
        height: in pixels.
        texts: the free text fields by name.
        record: our own record, as plain values; None where there is none.
        machine_made: whether the mark of a machine-made picture is there.
        problems: fields that could not be read, one sentence each.
    """

    format: str
    width: int = 0
    height: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    machine_made: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> str | None:
        """The text of AUTOMATIC1111's web UI and its readers."""
        return self.texts.get(PARAMETERS_KEY)


def picture_format(start: bytes) -> str | None:
    """png, jpg or webp by the first 12 bytes of a file, else None."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    return None


def read_record(path: str | Path) -> PictureFile:
    """Read the metadata of a PNG, JPEG or WebP file; pixels are not decoded.

    Raises:
        PictureError: no such file, not a picture of these formats, or cut off before its metadata.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise PictureError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        with path.open("rb") as file:
            format = picture_format(file.read(12))
            if format is None:
                raise PictureError(f"{path}: not a PNG, JPEG or WebP picture")
            picture = PictureFile(format)
            if format == "png":
                _read_png(file, size, picture)
            else:
                _read_with_pillow(path, size, picture)
    except (OSError, ValueError) as error:
        raise PictureError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    _interpret(picture)
    return picture


def parse_record(text: str) -> Mapping[str, Any]:
    """The JSON of a record as plain values that can be written as JSON again.

    Raises:
        ValueError: it is no JSON object, or holds what JSON has no word for.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    json.dumps(value, ensure_ascii=False).encode()  # lone surrogates cannot be written anywhere
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the pairs of the last line of a `parameters` text; lenient with any input.

    Args:
        text: at most a megabyte of it is looked at.
    """
    head, _, last = text[:1_000_000].strip().rpartition("\n")
    pairs = {key.strip(): _unquoted(value) for key, value in _PAIR.findall(last)}
    if len(pairs) < 3:
        head, pairs = text, {}
    prompt, _, negative = f"\n{head}".partition("\nNegative prompt:")
    return prompt.strip(), negative.strip(), pairs


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()


def _interpret(picture: PictureFile) -> None:
    xmp = picture.texts.pop(XMP_KEY, "")
    picture.machine_made = AI_MARK in xmp
    found = _OWN.search(xmp)
    text = picture.texts.pop(RECORD_KEY, None) or (html.unescape(found[1]) if found else None)
    if text is not None:
        try:
            picture.record = parse_record(text)
        except ValueError as error:
            picture.problems.append(f"the sdxl record cannot be read: {error}")


def _read_png(file: BinaryIO, size: int, picture: PictureFile) -> None:
    """Walk the chunks, seeking over all but IHDR and text."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or at + 12 + length > size:
            picture.problems.append("the file is cut off")
            return
        if kind == b"IHDR" and length == 13:
            header = file.read(8)
            picture.width, picture.height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _take_text(file, kind, length, picture)
        elif kind == b"IEND":
            return
        at += 12 + length
    picture.problems.append(f"the file has more than {_MAX_CHUNKS} chunks")


def _take_text(file: BinaryIO, kind: bytes, length: int, picture: PictureFile) -> None:
    if length > MAX_TEXT_BYTES or len(picture.texts) >= _MAX_TEXTS:
        picture.problems.append(f"a text field of {length} bytes was skipped")
        return
    data, check = file.read(length), file.read(4)
    if zlib.crc32(kind + data) != int.from_bytes(check, "big"):
        picture.problems.append("a text field is damaged (wrong checksum)")
        return
    keyword, _, rest = data.partition(b"\0")
    try:
        text = _decode_text(kind, rest)
    except (ValueError, zlib.error) as error:
        picture.problems.append(f"a text field cannot be read: {error}")
        return
    picture.texts.setdefault(keyword[:79].decode("latin-1"), text)


def _decode_text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(rest[1:]).decode("latin-1")
    flag, rest = rest[:1], rest[2:]
    _, _, rest = rest.partition(b"\0")
    _, _, rest = rest.partition(b"\0")
    return (_inflate(rest) if flag == b"\1" else rest).decode("utf-8")


def _inflate(data: bytes) -> bytes:
    text = zlib.decompressobj().decompress(data, MAX_TEXT_BYTES + 1)
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"it is longer than {MAX_TEXT_BYTES} bytes")
    return text


def _read_with_pillow(path: Path, size: int, picture: PictureFile) -> None:
    from PIL import Image

    if size > _MAX_FILE_BYTES:
        raise ValueError(f"larger than {_MAX_FILE_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=("JPEG", "WEBP")) as image:
                picture.width, picture.height = image.size
                xmp = image.info.get("xmp", b"")
                comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    except Exception as error:  # parsers of hostile bytes raise anything: struct.error, KeyError, SyntaxError, ...
        raise ValueError(f"its metadata cannot be read: {error}") from error
    if isinstance(xmp, bytes) and len(xmp) <= MAX_TEXT_BYTES:
        picture.texts[XMP_KEY] = xmp.decode("utf-8", "replace")
    if isinstance(comment, bytes) and comment.startswith(UNICODE_COMMENT) and len(comment) <= MAX_TEXT_BYTES:
        picture.texts[PARAMETERS_KEY] = _utf16(comment[len(UNICODE_COMMENT) :])


def _utf16(data: bytes) -> str:
    """Text without a byte order mark; some writers use one order, some the other, and Latin letters tell."""
    little = data[1::2].count(0) > data[0::2].count(0)
    return data.decode("utf-16-le" if little else "utf-16-be", "replace")
