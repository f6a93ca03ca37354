"""Files that are damaged where no pixel is at stake: what is left out so that the image is read all the same."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

#: A text or profile of a PNG may be this long once it is inflated, and all texts together.
MAX_PNG_TEXT, MAX_PNG_TEXTS = 64 << 20, 256 << 20

#: Deflate packs at most this many bytes into one.
_MOST_INFLATED = 1032

_PNG_START, _JPEG_START, _JPEG_END = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xd9"

#: Chunks beside the pixels whose length is fixed (PNG third edition, 11.3).
_LENGTHS = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"tIME": 7, b"cICP": 4}

_NO_END = "the file lacks its end marker, but no pixels"

#: Ancillary by their name, but without them the pixels are others.
_FOR_PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})


def repaired(file: BinaryIO, for_pixels: bool) -> tuple[BinaryIO, tuple[str, ...]]:
    """Leave out what is damaged beside the pixels of a PNG, and give a JPEG the end marker that it lacks.

    A JPEG gets one only where every block of every scan is there.

    Args:
        file: the whole of it, seekable.
        for_pixels: whether the pixels will be decoded; a JPEG is not looked at otherwise.
    Returns:
        The file itself, or a copy in memory without what is damaged; and notes on what that is.
    Raises:
        OSError: the checksum of a PNG's pixels is wrong.
    """
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    if start == _PNG_START:
        return _repaired_png(file, for_pixels)
    if for_pixels and start.startswith(_JPEG_START):
        data = file.read()
        file.seek(0)
        if _lacks_only_its_end(data):
            return io.BytesIO(data.removesuffix(b"\xff") + _JPEG_END), (_NO_END,)
    return file, ()


def _repaired_png(file: BinaryIO, for_pixels: bool) -> tuple[BinaryIO, tuple[str, ...]]:
    kept: list[tuple[int, int]] = [(0, 8)]
    dropped: Counter[str] = Counter()
    texts, position, kind = 0, 8, b""
    end = file.seek(0, io.SEEK_END)
    while position + 8 <= end and kind != b"IEND":
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        behind = position + 12 + length
        # Lower case is ancillary. What reaches beyond the file's end is left to the decoder.
        if behind <= end and kind[0] & 0x20 and kind not in _FOR_PIXELS:
            content, checksum = file.read(length), struct.unpack(">I", file.read(4))[0]
            inflated = _inflated_bytes(kind, content)
            is_text = kind in (b"tEXt", b"zTXt", b"iTXt")
            texts += inflated if is_text and inflated is not None else 0
            if (
                checksum != zlib.crc32(content, zlib.crc32(kind))
                or inflated is None
                or length != _LENGTHS.get(kind, length)
                or (is_text and texts > MAX_PNG_TEXTS)
            ):
                dropped["ICC profile" if kind == b"iCCP" else f"{kind.decode('latin-1')} chunk"] += 1
                position = behind
                continue
        elif behind <= end and for_pixels and kind == b"IDAT":
            # Pillow does not compare them: a bit that flipped would become other pixels.
            content, checksum = file.read(length), struct.unpack(">I", file.read(4))[0]
            if checksum != zlib.crc32(content, zlib.crc32(kind)):
                raise OSError("broken data stream: wrong checksum")
        kept.append((position, min(behind, end)))
        position = behind
    notes = tuple(
        f"{count} {what}s were left out: damaged or too long"
        if count > 1
        else f"the {what} was left out: it is damaged or too long"
        for what, count in dropped.items()
    )
    if kind != b"IEND":
        notes += (_NO_END,)
    file.seek(0)
    if not dropped:
        return file, notes
    parts = []
    for first, last in kept:
        file.seek(first)
        parts.append(file.read(last - first))
    return io.BytesIO(b"".join(parts)), notes


def _inflated_bytes(kind: bytes, content: bytes) -> int | None:
    """The length of a text or profile once it is inflated; None where it is damaged, or longer than `MAX_PNG_TEXT`."""
    packed: bytes | None = None
    if kind in (b"zTXt", b"iCCP"):
        _, mark, rest = content.partition(b"\0")
        packed = rest[1:] if mark else b""
    elif kind == b"iTXt":
        _, _, rest = content.partition(b"\0")
        if rest[:1] == b"\1":
            packed = [*rest[2:].split(b"\0", 2), b"", b""][2]
    if packed is None:
        return len(content) if len(content) <= MAX_PNG_TEXT else None
    try:
        unpacker = zlib.decompressobj()
        length = len(unpacker.decompress(packed, MAX_PNG_TEXT))
    except zlib.error:
        return None
    return length if unpacker.eof else None


class _Table(NamedTuple):
    """A Huffman table by the next 16 bits: how long the code is, 0 where there is none, and what it stands for."""

    lengths: list[int]
    symbols: list[int]


class _DamagedError(Exception):
    """The blocks are not all there, or in no order that is known."""


@dataclass
class _Component:
    """One colour of a JPEG: its sampling, and what is known of its blocks so far."""

    across: int
    down: int
    precision: list[int] = field(default_factory=lambda: [99] * 64)
    """Of each coefficient, the lowest bit that is known; 0 where it is whole."""
    nonzero: dict[int, int] = field(default_factory=dict)
    """Of each block, the coefficients that are not zero, as bits."""


class _Scan(NamedTuple):
    """A scan's header: of which components it has which coefficients, and to which bit."""

    components: Sequence[tuple[_Component, Any, Any]]
    first: int
    last: int
    high: int
    low: int


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG without an end marker holds every block of its scans, to their last bit."""
    try:
        return _Blocks(data).are_whole()
    except (_DamagedError, struct.error, IndexError, KeyError, ZeroDivisionError):
        return False


class _Blocks:
    """Goes over a JPEG's blocks without computing them (ITU T.81, annexes F and G); arithmetic codes are unknown."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._components: dict[int, _Component] = {}
        self._tables: dict[int, _Table] = {}
        self._size = self._most = (0, 0)
        self._interval = 0
        self._is_progressive = False

    def are_whole(self) -> bool:
        """Whether they are, and no end marker follows them."""
        position, scans = 2, 0
        data = self._data
        while position + 4 <= len(data):
            if data[position] != 0xFF:
                raise _DamagedError
            marker = data[position + 1]
            if marker == 0xFF:
                position += 1
                continue
            if marker == 0xD9:
                return False
            length = struct.unpack_from(">H", data, position + 2)[0]
            segment = data[position + 4 : position + 2 + length]
            position += 2 + length
            if marker in (0xC0, 0xC1, 0xC2):
                self._read_frame(segment, marker == 0xC2)
            elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return False
            elif marker == 0xC4:
                self._read_tables(segment)
            elif marker == 0xDD:
                self._interval = struct.unpack(">H", segment)[0]
            elif marker == 0xDA:
                # Of most files this is all that is looked at.
                if not scans and data.find(_JPEG_END, position) >= 0:
                    return False
                end = self._end_of_scan(position)
                self._go_over(self._scan(segment), position, end)
                position, scans = end, scans + 1
        known = [bit for component in self._components.values() for bit in component.precision]
        return scans > 0 and not any(known)

    def _read_frame(self, segment: bytes, is_progressive: bool) -> None:
        height, width, count = struct.unpack_from(">HHB", segment, 1)
        if not height or not width:
            raise _DamagedError
        self._size, self._is_progressive = (height, width), is_progressive
        for index in range(count):
            name, sampling = segment[6 + 3 * index : 8 + 3 * index]
            self._components[name] = _Component(sampling >> 4, sampling & 15)
        parts = self._components.values()
        self._most = max(part.down for part in parts), max(part.across for part in parts)

    def _read_tables(self, segment: bytes) -> None:
        position = 0
        while position < len(segment):
            name, counts = segment[position], segment[position + 1 : position + 17]
            position += 17
            lengths, symbols, code = [0] * 65536, [0] * 65536, 0
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    step = 1 << (16 - length)
                    lengths[code : code + step] = [length] * step
                    symbols[code : code + step] = [segment[position]] * step
                    code, position = code + step, position + 1
            self._tables[name] = _Table(lengths[:65536], symbols[:65536])

    def _scan(self, segment: bytes) -> _Scan:
        count = segment[0]
        first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
        components = []
        for index in range(count):
            name, tables = segment[1 + 2 * index : 3 + 2 * index]
            part = self._components[name]
            components.append((part, self._tables.get(tables >> 4), self._tables.get(16 + (tables & 15))))
            low = bits & 15 if self._is_progressive else 0
            for coefficient in range(first, (last if self._is_progressive else 63) + 1):
                part.precision[coefficient] = low
        return _Scan(components, first, last, bits >> 4, bits & 15)

    def _end_of_scan(self, position: int) -> int:
        """Where the next marker is that does not belong to the scan, or the file's end."""
        data = self._data
        while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
            if data[position + 1] and not 0xD0 <= data[position + 1] <= 0xD7 and data[position + 1] != 0xFF:
                return position
            position += 1 if data[position + 1] == 0xFF else 2
        return len(data)

    def _go_over(self, scan: _Scan, start: int, end: int) -> None:
        """Go over a scan, restart interval by restart interval; raises `_DamagedError` where bits are missing."""
        height, width = self._size
        down, across = self._most
        if len(scan.components) == 1:
            part = scan.components[0][0]
            units = -(-height * part.down // (8 * down)) * -(-width * part.across // (8 * across))
            blocks = list(scan.components)
        else:
            units = -(-height // (8 * down)) * -(-width // (8 * across))
            blocks = [item for item in scan.components for _ in range(item[0].down * item[0].across)]
        interval = self._interval or units
        intervals = list(self._intervals(start, end))
        if len(intervals) < -(-units // interval):
            raise _DamagedError
        for first, packed in zip(range(0, units, interval), intervals, strict=False):
            count = min(interval, units - first)
            bits, padded = 8 * len(packed), packed + bytes(8)
            if not self._is_progressive:
                _go_over_sequential(padded, bits, blocks, count)
            elif scan.first > 0:
                _go_over_coefficients(padded, bits, scan, range(first, first + count))
            elif scan.high == 0:
                _go_over_averages(padded, bits, blocks, count)
            elif count * len(blocks) > bits:
                raise _DamagedError

    def _intervals(self, start: int, end: int) -> Iterator[bytes]:
        """The scan's bytes between its restart markers, without stuffing."""
        begin = position = start
        data = self._data
        while (position := data.find(b"\xff", position, end)) >= 0 and position + 1 < end:
            if 0xD0 <= data[position + 1] <= 0xD7:
                yield data[begin:position].replace(b"\xff\0", b"\xff")
                begin = position + 2
            position += 2
        # A lone 0xFF is the first half of the end marker.
        yield data[begin:end].removesuffix(b"\xff").replace(b"\xff\0", b"\xff")


def _go_over_sequential(data: bytes, bits: int, blocks: Sequence[tuple[_Component, Any, Any]], count: int) -> None:
    """F.2.2: of each block one average and up to 63 coefficients, ended by a code where the rest is zero."""
    position = 0
    for _ in range(count):
        for _, averages, others in blocks:
            lengths, symbols = averages
            ahead = _ahead(data, position)
            if not lengths[ahead]:
                raise _DamagedError
            position += lengths[ahead] + symbols[ahead]
            lengths, symbols = others
            coefficient = 1
            while coefficient < 64:
                byte = position >> 3
                ahead = (int.from_bytes(data[byte : byte + 3]) >> (8 - (position & 7))) & 0xFFFF
                if not (length := lengths[ahead]):
                    raise _DamagedError
                symbol = symbols[ahead]
                position += length + (symbol & 15)
                if symbol & 15:
                    coefficient += (symbol >> 4) + 1
                elif symbol == 0xF0:
                    coefficient += 16
                else:
                    break
        if position > bits:
            raise _DamagedError


def _go_over_averages(data: bytes, bits: int, blocks: Sequence[tuple[_Component, Any, Any]], count: int) -> None:
    """G.1.2.1, the first scan of the averages."""
    position = 0
    for _ in range(count):
        for _, (lengths, symbols), _ in blocks:
            ahead = _ahead(data, position)
            if not lengths[ahead]:
                raise _DamagedError
            position += lengths[ahead] + symbols[ahead]
        if position > bits:
            raise _DamagedError


def _go_over_coefficients(data: bytes, bits: int, scan: _Scan, blocks: range) -> None:
    """G.1.2.2 and G.1.2.3: some coefficients of one component, for the first time or one bit more of each."""
    [(part, _, table)] = scan.components
    if table is None:
        raise _DamagedError
    lengths, symbols = table
    position = ended = 0
    known = part.nonzero
    for block in blocks:
        nonzero, coefficient = known.get(block, 0), scan.first
        while not ended and coefficient <= scan.last:
            ahead = _ahead(data, position)
            if not lengths[ahead]:
                raise _DamagedError
            position += lengths[ahead]
            run, size = symbols[ahead] >> 4, symbols[ahead] & 15
            if size == 0 and run < 15:
                # This block and some after it have nothing more.
                ended = (1 << run) + (_ahead(data, position) >> (16 - run) if run else 0)
                position += run
                break
            position += size
            if scan.high:
                while coefficient <= scan.last:
                    if nonzero >> coefficient & 1:
                        position += 1
                    elif run == 0:
                        break
                    else:
                        run -= 1
                    coefficient += 1
            else:
                coefficient += run
            if size:
                nonzero |= 1 << coefficient
            coefficient += 1
        if ended:
            if scan.high:
                # What is known of them already gets its bit all the same.
                position += (nonzero >> coefficient & ((1 << (scan.last + 1 - coefficient)) - 1)).bit_count()
            ended -= 1
        if nonzero:
            known[block] = nonzero
        if position > bits:
            raise _DamagedError


def _ahead(data: bytes, position: int) -> int:
    """The next 16 bits."""
    byte = position >> 3
    return (int.from_bytes(data[byte : byte + 3]) >> (8 - (position & 7))) & 0xFFFF
