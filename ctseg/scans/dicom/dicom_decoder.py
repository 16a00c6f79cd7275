"""Child program that decodes JPEG in DICOM: a stream that breaks a decoder written in C ends this process
only.

Started by `dicom_pixels`, never imported. Reads one JSON list, [path of a DICOM file, decoder], per line;
answers each with one line {"dtype", "shape"} and the raw pixels per frame, then {"end": true}; or {"error":
type of the exception} instead. The decoder is one of pydicom's, or "gdcm-file": GDCM by itself, which decodes
JPEG of 12 bits that pydicom does not ask it for.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def gdcm_frames(path: str) -> Iterator[Any]:
    """The frames (H, W) of a file in 16 bits, as GDCM reads it. ValueError when it does not."""
    import gdcm
    import numpy as np

    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    if not reader.Read():
        raise ValueError("not read")
    image = reader.GetImage()
    kind = {"UINT16": "<u2", "INT16": "<i2"}[image.GetPixelFormat().GetScalarTypeAsString()]
    yield from np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), kind).reshape(
        -1, image.GetDimension(1), image.GetDimension(0)
    )


def main() -> None:
    """Serve requests until the input ends."""
    import numpy as np
    from pydicom.pixels import iter_pixels

    warnings.simplefilter("ignore")
    answers = sys.stdout.buffer
    for line in sys.stdin:
        try:
            path, plugin = json.loads(line)
            for frame in (
                gdcm_frames(path)
                if plugin == "gdcm-file"
                else iter_pixels(path, raw=True, decoding_plugin=plugin)
            ):
                stored = np.ascontiguousarray(frame)
                stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
                answers.write(
                    json.dumps({"dtype": stored.dtype.str, "shape": stored.shape}).encode()
                    + b"\n"
                    + stored.tobytes()
                )
            answer: dict[str, object] = {"end": True}
        except Exception as error:  # the text may quote the header: only the type leaves this process
            answer = {"error": type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
