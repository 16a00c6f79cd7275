"""Child program that decodes JPEG in DICOM: a stream that breaks a decoder written in C ends this process only.

Started by `dicom_pixels`, never imported. Reads one JSON list, [path of a DICOM file, decoder], per line; answers each with
one line {"dtype", "shape"} and the raw pixels per frame, then {"end": true}; or {"error": type of the exception} instead.
"""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    """Serve requests until the input ends."""
    import numpy as np
    from pydicom.pixels import iter_pixels

    warnings.simplefilter("ignore")
    answers = sys.stdout.buffer
    for line in sys.stdin:
        try:
            path, plugin = json.loads(line)
            for frame in iter_pixels(path, raw=True, decoding_plugin=plugin):
                stored = np.ascontiguousarray(frame)
                stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
                answers.write(json.dumps({"dtype": stored.dtype.str, "shape": stored.shape}).encode() + b"\n" + stored.tobytes())
            answer: dict[str, object] = {"end": True}
        except Exception as error:  # the text may quote the header: only the type leaves this process
            answer = {"error": type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
