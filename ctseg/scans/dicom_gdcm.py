"""Child program that decodes JPEG in DICOM with GDCM: a damaged stream can then end this process only.

Started by `dicom_pixels`, never imported. Reads one JSON string, the path of a DICOM file, per line; answers each with
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
            for frame in iter_pixels(json.loads(line), raw=True, decoding_plugin="gdcm"):
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
