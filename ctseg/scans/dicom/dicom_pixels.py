"""Stored pixel values of DICOM files, and which package may decode which compression.

One decoder per transfer syntax, never whichever pydicom finds first, and none that is GPL. All but pydicom's
own are libraries in C or C++, some of which end their process on a damaged stream: they see a file in a child
process only.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import (
    JPEG2000,
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ctseg.errors import CaseError
from ctseg.scans.dicom.dicom_files import guard
from ctseg.scans.formats.regular_files import refuse

CHILD_SECONDS = 60.0  # for one file
_PREFERRED = {
    RLELossless: "pydicom",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGExtended12Bit: "gdcm",
}
_PACKAGES = {"pyjpegls": "pyjpegls", "pylibjpeg": "pylibjpeg-openjpeg", "gdcm": "python-gdcm"}
_AGAIN = "copy or export the file again"


class Decoder:
    """Decodes files one after the other; a context manager, because it may hold a child process."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def frames(self, path: Path) -> Iterator[np.ndarray]:
        """Stored values (H, W) of each frame of a file, in the order of the file.

        Raises CaseError CODEC_MISSING, DICOM_CORRUPT, DICOM_TRUNCATED or PIXELS_CORRUPT.
        """
        with guard(path):
            content = pydicom.dcmread(path)
            shape = (int(content.Rows), int(content.Columns))
            plugin = _plugin(content)
        if plugin not in ("", "pydicom"):
            source = self._in_child(path, plugin, shape)
        elif not plugin and content.BitsAllocated == 1:
            source = _single_bits(content, shape)
        else:
            source = iter_pixels(content, raw=True, decoding_plugin=plugin)
        try:
            for frame in source:
                if frame.shape != shape:
                    cause = f"pixels of shape {frame.shape} instead of {shape}"
                    raise refuse("PIXELS_CORRUPT", cause, _AGAIN, path)
                yield frame
        except CaseError:
            raise
        except Exception as error:  # damaged pixel data raises many types
            cause = f"the pixels cannot be decoded ({type(error).__name__})"
            raise refuse("PIXELS_CORRUPT", cause, _AGAIN, path) from None

    def _in_child(self, path: Path, plugin: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """The frames as the child process decodes them; ValueError when it fails, dies or takes too long."""
        if self._child is None:
            program = [sys.executable, "-I", str(Path(__file__).with_name("dicom_decoder.py"))]
            self._child = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise ValueError("no pipes")
        alarm = threading.Timer(CHILD_SECONDS, child.kill)
        alarm.start()
        try:
            child.stdin.write(json.dumps([str(path.absolute()), plugin]).encode() + b"\n")
            child.stdin.flush()
            while not {"end", "error"} & (answer := json.loads(child.stdout.readline() or b"{}")).keys():
                dtype = np.dtype(answer.get("dtype", "V"))
                if tuple(answer.get("shape", ())) != shape or dtype.kind not in "iu":
                    raise ValueError("no frame")
                yield np.frombuffer(
                    child.stdout.read(shape[0] * shape[1] * dtype.itemsize), dtype=dtype
                ).reshape(shape)
        except BaseException:
            self._stop()
            raise
        finally:
            alarm.cancel()
        if "error" in answer:  # told by the child, which goes on
            raise ValueError("not decoded")

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()  # waits for it and closes the pipes
            self._child = None


def _single_bits(content: Any, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """The frames (H, W) of uncompressed single bits, where a frame may begin within a byte."""
    pixels, size = np.frombuffer(content.PixelData, np.uint8), shape[0] * shape[1]
    for start in range(0, size * int(content.get("NumberOfFrames") or 1), size):
        bits = np.unpackbits(pixels[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield bits[start % 8 :][:size].reshape(shape)


def _plugin(content: Any) -> str:
    """Which of pydicom's decoders reads a file; "" for uncompressed pixels, whose length is checked here."""
    syntax = UID(str(content.file_meta.TransferSyntaxUID))
    pixels = content.get("PixelData")
    if pixels is None:
        raise refuse("DICOM_TRUNCATED", "the file ends before its pixels", _AGAIN)
    if syntax.type != "Transfer Syntax":  # a vendor's own
        shown = syntax if syntax.is_valid else "no UID"
        cause = f"stored in a transfer syntax that is not of the standard ({shown})"
        raise refuse("CODEC_MISSING", cause, "export the series uncompressed")
    bits, high = int(content.get("BitsStored") or 0), int(content.get("HighBit") or 0)
    if not syntax.is_compressed or syntax.is_deflated:
        frames = int(content.get("NumberOfFrames") or 1)
        need = (int(content.Rows) * int(content.Columns) * frames * int(content.BitsAllocated) + 7) // 8
        if len(pixels) < need:
            raise refuse("DICOM_TRUNCATED", f"{len(pixels)} of {need} bytes of pixels", _AGAIN)
        if content.BitsAllocated > 1 and 0 < bits <= high:
            cause = (
                f"its values stand in the upper bits of a word ({bits} bits stored, the highest is {high})"
            )
            raise refuse("PIXELS_UNSUPPORTED", cause, f"export the series with the high bit {bits - 1}")
        return ""
    if syntax == JPEGExtended12Bit and bits > 8:
        plugin = "gdcm-file" if "gdcm" in installed(syntax) else None  # of pydicom's decoders none takes it
    else:
        plugin = decoder_for(syntax)
    if plugin is not None:
        return plugin
    cause, fix = f"compressed as {syntax.name}", "export the series uncompressed"
    if syntax not in (*_PREFERRED, JPEGBaseline8Bit):
        raise refuse("CODEC_MISSING", f"{cause}, which nothing here decodes", fix)
    package = _PACKAGES.get(_PREFERRED.get(syntax, ""), "")
    needed = f" (it needs {package})" if package else ""
    fix = f"run `pip install -r requirements-dicom.txt`{needed}, or export uncompressed"
    raise refuse("CODEC_MISSING", cause, fix)


def decoder_for(syntax: UID) -> str | None:
    """The decoder for a compressed transfer syntax among those installed, None without one."""
    there = installed(syntax)
    preferred = _PREFERRED.get(syntax)
    if preferred in there:
        return preferred
    return min((name for name in there if name != "gdcm"), default="gdcm" if "gdcm" in there else None)


def installed(syntax: UID) -> tuple[str, ...]:
    """The decoders that pydicom has for a transfer syntax, as far as their packages are installed."""
    try:
        return tuple(get_decoder(syntax).available_plugins)
    except NotImplementedError:
        return ()
