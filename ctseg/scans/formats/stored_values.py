"""What every volume file has in common: bytes read within bounds, and stored numbers made into HU or label
ids.

A reader (nifti, nrrd, metaimage) parses its own header, takes the voxels through `Content`, and hands a
`Stored` to `image_of` or `integers_of`; so all formats refuse the same things with the same codes.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable

import numpy as np

from ctseg.errors import Finding, Findings
from ctseg.geometry.volume import Volume
from ctseg.scans.formats import checks
from ctseg.scans.formats.regular_files import AGAIN, EXPORT, implausible, refuse

TRAILING_LIMIT = 1 << 20  # bytes behind the declared end that are tolerated
INTEGER_TOLERANCE = 1e-3  # labels may be so far from an integer
PROBABILITY_TOLERANCE = (
    1e-3  # probabilities may be so far below 0 or above 1: interpolation overshoots a little
)
_GZIP_OR_ZLIB = 47  # zlib's own number: either kind of stream, told by its first bytes


@dataclasses.dataclass
class Stored:
    """What stands in a file: array (D, H, W) in the stored type, the scaling still to be applied, the
    affine."""

    array: np.ndarray
    affine: np.ndarray
    findings: Findings
    slope: float = 1.0
    intercept: float = 0.0


class Fields(dict[str, str]):
    """Field -> text of a header of lines; empty where there is no such field."""

    def __missing__(self, name: str) -> str:
        return ""

    def numbers(
        self, name: str, count: int | None = None, kind: Callable[[str], float] = float
    ) -> list[float]:
        """The numbers of a field, `count` of them where it is given."""
        try:
            numbers = [kind(word) for word in self[name].split()]
        except ValueError:
            raise implausible(f"'{name}' holds something else than numbers") from None
        if count not in (None, len(numbers)):
            raise implausible(f"'{name}' does not hold {count} numbers")
        return numbers


class Content:
    """The bytes of a file, decompressed where it is compressed, handed out in order and never more than asked
    for."""

    def __init__(self, data: bytes | memoryview, *, zipped: bool, truncated: str):
        """truncated: the code of an error for a file that ends too early."""
        self.pending, self.zipped, self.truncated = data, zipped, truncated
        self.decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end of the file."""
        if not self.zipped:
            result = bytes(self.pending[self.position : self.position + count])
        else:
            try:
                result = self._expand(count)
            except zlib.error:
                cause = f"the compressed data is damaged after byte {self.position}"
                raise refuse("GZIP_CORRUPT", cause, AGAIN) from None
        self.position += len(result)
        return result

    def _expand(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count > 0:
            if self.decoder.eof:  # files of several gzip members are legal
                rest = self.decoder.unused_data
                if not rest.startswith(b"\x1f\x8b"):
                    break
                self.decoder, self.pending = zlib.decompressobj(_GZIP_OR_ZLIB), rest
            part = self.decoder.decompress(self.pending, count)
            self.pending = self.decoder.unconsumed_tail
            if not part and not self.pending and not self.decoder.eof:
                break  # the file ends inside the compressed data
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def voxels(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, Findings]:
        """(the array that begins here and ends the file, a finding about bytes behind it).

        Goes on to the end, which verifies the checksum. Refuses a file that ends too early or expands to far
        more.
        """
        end = self.position + math.prod(shape) * dtype.itemsize
        data = self.take(end - self.position)
        if self.position < end:
            raise refuse(self.truncated, f"ended at byte {self.position} of {end}", AGAIN)
        rest = len(self.take(TRAILING_LIMIT)) if self.zipped else len(self.pending) - self.position
        if self.zipped and rest == TRAILING_LIMIT:
            raise refuse("TOO_LARGE", f"expands beyond the {end} bytes that its header declares", EXPORT)
        if self.zipped and not self.decoder.eof:
            raise refuse(self.truncated, "the file ends before its checksum", AGAIN)
        cause = f"{rest} bytes behind the voxels that the header declares were not read"
        told = Finding("WARN", "TRAILING_BYTES", cause, EXPORT)
        return np.frombuffer(data, dtype).reshape(shape), [told] if rest else []


def image_of(stored: Stored, *, check_hu: bool) -> tuple[Volume, Findings]:
    """float32 HU, not below -1024, and what was noticed. check_hu=False: no plausibility of intensities and
    size."""
    findings = stored.findings
    checks.check_finite(stored.array)
    ends = np.array([stored.array.min(), stored.array.max()], dtype=np.float64)
    ends = ends * stored.slope + stored.intercept
    if not np.abs(ends).max() < np.finfo(np.float32).max:
        cause = f"range {ends.min():g} to {ends.max():g} after scaling"
        raise refuse("NOT_HU", cause, "convert to Hounsfield units")
    array = stored.array.astype(np.float32)
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        array *= np.float32(stored.slope)
        array += np.float32(stored.intercept)
    volume = Volume(array, stored.affine)
    if check_hu:
        checks.check_size(volume.grid)
        checks.check_hu(array, stored_bits=8 * stored.array.dtype.itemsize)
        findings += checks.clip_padding(array)
    return volume, findings


def integers_of(stored: Stored, *, or_probabilities: bool = False) -> tuple[Volume, Findings]:
    """int32 label ids. Checked before any cast, so nothing wraps or truncates.

    or_probabilities: values may also lie between integers; then they are probabilities, float32 from 0 to 1.
    Raises CaseError PROBABILITY_RANGE for values that are neither.
    """
    array, findings = stored.array, stored.findings
    checks.check_finite(array)
    if (stored.slope, stored.intercept) != (1.0, 0.0):
        array = array * np.float64(stored.slope) + np.float64(stored.intercept)
    low, high = float(array.min()), float(array.max())
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    distance = 0.0 if rounded is array else float(np.abs(array - rounded).max())
    if or_probabilities and distance > INTEGER_TOLERANCE:
        if low < -PROBABILITY_TOLERANCE or high > 1 + PROBABILITY_TOLERANCE:
            cause = (
                f"values from {low:.4g} to {high:.4g} are neither labels (integers) "
                "nor probabilities (0 to 1)"
            )
            fix = "give probabilities, not logits or percent, or a label map of integers"
            raise refuse("PROBABILITY_RANGE", cause, fix)
        return Volume(np.clip(array, 0, 1).astype(np.float32), stored.affine), findings
    if not -(2**31) <= low <= high < 2**31:
        cause = f"values from {low:g} to {high:g} are no label ids"
        raise refuse("LABEL_VALUES", cause, "give a map of small integers")
    if distance > INTEGER_TOLERANCE:
        fix = "save the label map with nearest-neighbour resampling, as integers"
        raise refuse("LABEL_NOT_INTEGER", f"values are up to {distance:.3g} away from an integer", fix)
    if distance > 0:
        cause = f"values up to {distance:.1g} away from an integer were rounded"
        findings.append(Finding("WARN", "LABEL_NOT_INTEGER", cause, "save the labels as integers"))
    return Volume(rounded.astype(np.int32), stored.affine), findings
