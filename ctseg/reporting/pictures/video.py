"""Pictures to a film: MP4 (H.264, plays in browsers and slides) where an encoder is found, else an animated
GIF.

The encoder is the ffmpeg program, from the package imageio-ffmpeg or the system; it is run, never imported.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ctseg.artifacts import atomic_write, writing
from ctseg.errors import ResourceError, UsageError

GIF_COLOURS = 128
INSTALL = "pip install imageio-ffmpeg"


def encoder() -> str | None:
    """Path of an ffmpeg program, None when there is none."""
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        with contextlib.suppress(RuntimeError):  # the package without its program
            return str(imageio_ffmpeg.get_ffmpeg_exe())
    return shutil.which("ffmpeg")


def film_path(path: Path) -> tuple[Path, bool]:
    """(where the film goes, whether that differs from what was asked): .mp4 becomes .gif without an encoder.

    UsageError for other suffixes.
    """
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise UsageError(
            "BAD_OPTION", f"'{path.name}' after --output is no film", "end it in .mp4 or .gif", file=path.name
        )
    if path.suffix.lower() == ".mp4" and encoder() is None:
        return path.with_suffix(".gif"), True
    return path, False


def write_film(path: Path, frames: Iterable[np.ndarray], *, fps: int) -> None:
    """Write pictures, each (H, W, 3) uint8 with even H and W, atomically as .mp4 or .gif.

    Raises ResourceError when the encoder fails.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gif":
        atomic_write(path, functools.partial(_gif, frames, fps))
    else:
        _mp4(path, iter(frames), fps)


def _gif(frames: Iterable[np.ndarray], fps: int, stream: BinaryIO) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    palette = pictures[0].quantize(GIF_COLOURS)  # one palette: colours do not flicker
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    first.save(
        stream,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        optimize=True,
    )


def _mp4(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    program = encoder()
    assert program is not None, "film_path chose this format"
    first = next(frames)
    height, width = first.shape[:2]
    temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(4).hex()}")
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -"
    h264 = "-an -c:v libx264 -pix_fmt yuv420p -crf 20 -preset medium -movflags +faststart -f mp4"
    command = [program, *f"-y -loglevel error {raw} {h264}".split(), str(temporary)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stderr is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # its message says why it ended
            process.stdin.write(first.tobytes())
            for frame in frames:
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
        if process.wait() != 0 or not temporary.is_file():
            if said and os.strerror(errno.ENOSPC) in said[-1]:
                raise ResourceError.from_os(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)
            raise ResourceError(
                "ENCODER_FAILED",
                f"the video encoder ended with an error ({said[-1] if said else 'no message'})",
                "write a .gif instead, or " + INSTALL,
                file=path.name,
            )
        temporary.replace(path)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        temporary.unlink(missing_ok=True)
