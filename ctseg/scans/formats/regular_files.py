"""Opening files: what is no regular file is never opened, and every refusal and finding names its file.

A reader raises and returns what it found without the file; `at_file` and `located` add it at the reader's
door.
"""

import contextlib
import dataclasses
import errno
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctseg.errors import CaseError, Finding, Findings

AGAIN, EXPORT = "copy or download the file again", "export the scan again"  # remedies
_LFS = "run `git lfs pull` or download the file itself"
_PAGE, _LOGIN = "it looks like an HTML page", "download the file again, logged in if the site needs it"
_LOCKED = ("PERMISSION", "its folder may not be entered", "change the permissions of the folder")
_LOOP = ("FILE_MISSING", "the link leads back to itself (link loop)", "replace the link by the file")
_UNREACHABLE = {errno.ELOOP: _LOOP, errno.EACCES: _LOCKED, errno.EPERM: _LOCKED}
MEMORY_LIMIT_BYTES = 4 << 30  # for one scan as stored plus as float32; 512 x 512 x 2700 in 16 bits


def refuse(code: str, cause: str, fix: str, path: Path | str = "-") -> CaseError:
    """The error of one unusable file; without a path it is that of `at_file`."""
    return CaseError(code, cause, fix, file=path)


def implausible(cause: str) -> CaseError:
    """The error of a header whose values contradict each other or its format."""
    return refuse("HEADER_IMPLAUSIBLE", cause, EXPORT)


def not_3d(cause: str) -> CaseError:
    """The error of an array that is not one volume."""
    return refuse("NOT_3D", cause, "give one 3D volume per file")


@contextlib.contextmanager
def at_file(path: Path | str) -> Iterator[None]:
    """Put the file into a CaseError that names none."""
    try:
        yield
    except CaseError as error:
        if error.file == "-":
            error.file = str(path)
        raise


def located(findings: Iterable[Finding], path: Path | str) -> Findings:
    """The findings, with the file in those that name none."""
    return [
        dataclasses.replace(finding, file=str(path)) if finding.file == "-" else finding
        for finding in findings
    ]


def require_regular(path: Path) -> int:
    """Size in bytes of a regular file; refuses everything whose opening or reading could hang or surprise."""
    try:
        status = path.stat()
    except OSError as error:
        missing = ("FILE_MISSING", "the file does not exist", "restore the file or remove the case")
        raise refuse(*_UNREACHABLE.get(error.errno or 0, missing), path) from None
    except ValueError:  # a NUL character in the name
        raise refuse("FILE_MISSING", "the name is not a file name", "rename the file", path) from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        cause = f"it is {kind}, not a regular file"
        raise refuse("NOT_REGULAR", cause, "put the data file itself there", path)
    if status.st_size == 0:
        raise refuse("FILE_EMPTY", "the file has 0 bytes", AGAIN, path)
    return status.st_size


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular(path: Path, count: int = -1) -> bytes:
    """The bytes of a regular file, bounded by the memory limit; or only its first `count`."""
    size = require_regular(path)
    if count < 0 and size > MEMORY_LIMIT_BYTES:
        raise too_large(f"the file has {size / 2**30:.1f} GiB", path)
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except PermissionError:
        fix = "change the permissions of the file"
        raise refuse("PERMISSION", "the file may not be read", fix, path) from None
    except OSError as error:
        cause = f"reading failed ({errno.errorcode.get(error.errno or 0, 'unknown error')})"
        raise refuse("READ_FAILED", cause, "check the disk and copy the file again", path) from None


def too_large(cause: str, path: Path | str = "-") -> CaseError:
    """The error of a scan that does not fit into the memory limit."""
    limit = f"limit {MEMORY_LIMIT_BYTES / 2**30:.0f} GiB"
    return refuse("TOO_LARGE", f"{cause}, {limit}", "crop or resample the scan first", path)


_OTHER_KINDS = (  # (first bytes in lower case, what they mean, code or None for that of the format, remedy)
    (b"version https://git-lfs", "it looks like a git-lfs pointer", None, _LFS),
    (b"<!doctype", _PAGE, None, _LOGIN),
    (b"<html", _PAGE, None, _LOGIN),
    (b"<?xml", _PAGE, None, _LOGIN),
    (b"\x1f\x8b", "it is compressed with gzip as a whole", None, "unpack it with gunzip"),
    (b"nrrd000", "it is an NRRD file", None, "rename it to .nrrd"),
    (b"objecttype", "it is a MetaImage file", None, "rename it to .mha"),
    (b"dicm", "it is a DICOM file", None, "give the folder of the series"),
    (b"pk\x03\x04", "it is a zip archive", "ARCHIVE_INPUT", "unpack it first"),
)


def wrong_kind(start: bytes, code: str, expected: str) -> CaseError:
    """The error of a file that begins with something else than `expected`; names what is often found
    instead."""
    text = start.lower()
    for magic, cause, own, fix in _OTHER_KINDS:
        # DICOM: behind 128 others
        if any(part.startswith(magic) for part in (text, text.lstrip(), text[128:])):
            return refuse(own or code, cause, fix)
    return refuse(code, f"the first bytes are not {expected}", "check what the file is")
