"""Seeded images and sounds as the bytes of files: every size, mode and rate a data set holds, and the broken ones.

The same arguments give the same pixels and samples on every machine: numpy's Generator alone decides.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

SIZES = ((32, 32), (48, 32), (33, 57), (90, 20), (1, 1), (64, 64))  # (width, height)
MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "I;16", "CMYK")  # CMYK is no PNG: it becomes JPEG
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def pixels(seed: int = 0, width: int = 32, height: int = 32) -> np.ndarray:
    """(height, width, 3) uint8: a coloured gradient, a bright rectangle and a little noise; seeds look unlike."""
    rng = np.random.default_rng(seed)
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    plane = across * rng.uniform(-120, 120, 3) + down * rng.uniform(-120, 120, 3) + rng.uniform(60, 200, 3)
    left, top = (int(rng.integers(0, max(1, side // 2))) for side in (width, height))
    plane[top : top + height // 3 + 1, left : left + width // 3 + 1] = rng.uniform(0, 255, 3)
    return np.clip(plane + rng.normal(0, 6, plane.shape), 0, 255).astype(np.uint8)


def picture(seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB"):
    """A PIL image of `size` (width, height) in one of MODES."""
    from PIL import Image

    image = Image.fromarray(pixels(seed, *size))
    if mode == "I;16":  # what microscopes and depth cameras write
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels(seed + 1, *size)[:, :, 0]))
    return image.convert(mode)


def png(seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    """`picture` as PNG, without loss; CMYK, which PNG lacks, as JPEG."""
    return _encoded(picture(seed, size, mode), "JPEG" if mode == "CMYK" else "PNG")


def jpeg(seed: int = 0, size: tuple[int, int] = (32, 32), orientation: int = 1) -> bytes:
    """`picture` as JPEG; an EXIF `orientation` other than 1 is what a telephone held upright writes (6: turned)."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(picture(seed, size), "JPEG", exif=exif, quality=90)


def gif(seed: int = 0, frames: int = 3) -> bytes:
    """A moving picture: a reader that takes the first frame sees `picture(seed)` in 256 colours."""
    first, *rest = [picture(seed + i) for i in range(frames)]
    return _encoded(first, "GIF", save_all=True, append_images=rest, duration=100)


def pictures(count: int = len(SIZES)) -> list[bytes]:
    """`count` images, no two alike: every size in turn, every mode in turn, the last of each five a JPEG."""
    return [
        jpeg(i, SIZES[i % len(SIZES)]) if i % 5 == 4 else png(i, SIZES[i % len(SIZES)], MODES[i % len(MODES)])
        for i in range(count)
    ]


def broken_pictures() -> dict[str, bytes]:
    """Bytes that no decoder may turn into an image, by what is wrong with them."""
    whole = png(3, (64, 64))
    return {
        "empty": b"",
        "text": b"<html><body>404 Not Found</body></html>",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:20],
        "flipped bit": whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:],
        "bomb": bomb(),
        "sound": wav(),
    }


def bomb(side: int = 30_000) -> bytes:
    """A PNG of 2 kB that says it is `side` x `side` (0.9 GB): Pillow refuses past 179 Mpixel, warns past 89."""
    packer = zlib.compressobj(9)
    row = bytes(side + 1)
    packed = b"".join([*(packer.compress(row) for _ in range(64)), packer.flush()])  # its first rows are enough
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*c) for c in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _encoded(image, kind: str, **options) -> bytes:
    into = io.BytesIO()
    image.save(into, kind, **options)
    return into.getvalue()


def samples(seed: int = 0, seconds: float = 0.5, rate: int = 16_000) -> np.ndarray:
    """(round(seconds * rate),) float32 in [-1, 1]: three sliding tones that swell and fade, and a little noise."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    wave = rng.normal(0, 0.02, at.size)
    for _ in range(3):
        pitch, slide, beat = rng.uniform(100, 1500), rng.uniform(-200, 200), rng.uniform(1, 6)
        wave += 0.25 * np.sin(2 * np.pi * (pitch * at + slide * at**2)) * np.sin(2 * np.pi * beat * at) ** 2
    return np.clip(wave, -1, 1).astype(np.float32)


def wav(seed: int = 0, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> bytes:
    """`samples` as 16-bit WAV; further channels are other seeds."""
    return _sound(seed, seconds, rate, channels, "WAV")


def flac(seed: int = 0, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> bytes:
    """`samples` as FLAC: the same 16-bit values as `wav`, packed."""
    return _sound(seed, seconds, rate, channels, "FLAC")


def sounds(count: int = len(RATES)) -> list[bytes]:
    """`count` sounds, no two alike: every rate in turn, of 0.2 to 1.1 s, WAV and FLAC, mono and stereo."""
    return [(wav, flac)[i % 2](i, 0.2 + 0.1 * (i % 10), RATES[i % len(RATES)], 1 + (i % 3 == 2)) for i in range(count)]


def broken_sounds() -> dict[str, bytes]:
    """Bytes that hold no whole sound; libsndfile reads "truncated" as what is left, "no samples" as an empty array."""
    whole = wav(3)
    return {
        "empty": b"",
        "text": b"this is not a sound",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:20],
        "no samples": wav(seconds=0),
        "truncated flac": flac(3)[:200],
        "picture": png(),
    }


def _sound(seed: int, seconds: float, rate: int, channels: int, kind: str) -> bytes:
    import soundfile

    into = io.BytesIO()
    wave = np.stack([samples(seed + 1000 * c, seconds, rate) for c in range(channels)], axis=1)
    soundfile.write(into, np.round(wave * 32_767).astype(np.int16), rate, format=kind)
    return into.getvalue()
