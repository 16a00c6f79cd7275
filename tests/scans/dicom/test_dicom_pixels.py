"""Compressed DICOM: every decoder gives the uncompressed values, a missing one is named with its package, C
libraries stay in a child process.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders import small_phantom
from pydicom import uid

from ctseg.errors import CaseError
from ctseg.scans.dicom import dicom_pixels, dicom_series
from ctseg.scans.dicom.dicom_pixels import Decoder

PHANTOM = small_phantom(shape=(10, 40, 48))  # JPEG 2000 halves it five times
ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {"pyjpegls": "jpeg_ls", "pylibjpeg-openjpeg": "openjpeg", "python-gdcm": "gdcm"}
NEEDS = {  # transfer syntax -> (decoder, package that the message names)
    uid.RLELossless: ("pydicom", None),
    uid.JPEGLSLossless: ("pyjpegls", "pyjpegls"),
    uid.JPEG2000Lossless: ("pylibjpeg", "pylibjpeg-openjpeg"),
    uid.JPEGLosslessSV1: ("gdcm", "python-gdcm"),
    uid.JPEGLossless: ("gdcm", "python-gdcm"),
}


def needs(package: str | None) -> None:
    if package is not None and importlib.util.find_spec(PACKAGES[package]) is None:
        pytest.skip(f"{package} is not installed (requirements-dicom.txt)")


def stored(path: Path) -> np.ndarray:
    with Decoder() as decoder:
        (frame,) = list(decoder.frames(path))
    return frame


def compress(path: Path, syntax: uid.UID) -> None:
    """Encode one file losslessly, with a package that does not decode it afterwards where there is one."""
    if syntax in (uid.JPEGLosslessSV1, uid.JPEGLossless):
        gdcm = pytest.importorskip("gdcm")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        kind = (
            gdcm.TransferSyntax.JPEGLosslessProcess14_1
            if syntax == uid.JPEGLosslessSV1
            else gdcm.TransferSyntax.JPEGLosslessProcess14
        )
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    else:
        content = pydicom.dcmread(path)
        content.compress(syntax, generate_instance_uid=False)
        content.save_as(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax


@pytest.fixture
def series(tmp_path: Path) -> Path:
    dicom_series.write_series(tmp_path / "ct", PHANTOM.image, patient_id="synthetic", series_number=1, seed=0)
    return tmp_path / "ct"


@pytest.mark.parametrize("syntax", list(NEEDS), ids=[syntax.name for syntax in NEEDS])
def test_a_compressed_series_equals_the_uncompressed_one(series, syntax):
    plugin, package = NEEDS[syntax]
    needs(package)
    for path in series.iterdir():
        compress(path, syntax)
    assert dicom_pixels.decoder_for(syntax) == plugin
    volume, findings = dicom_series.read_series(series)
    assert np.array_equal(volume.array, PHANTOM.image.array) and not findings


@pytest.mark.parametrize(
    "syntax",
    [syntax for syntax in NEEDS if NEEDS[syntax][1]],
    ids=[syntax.name for syntax in NEEDS if NEEDS[syntax][1]],
)
def test_a_missing_decoder_is_named(series, syntax, monkeypatch):
    path = series / "slice_0004.dcm"
    content = pydicom.dcmread(path)
    content.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"x" * 100])
    content["PixelData"].is_undefined_length = True
    content.file_meta.TransferSyntaxUID = syntax
    content.save_as(path)
    monkeypatch.setattr(dicom_pixels, "installed", lambda _: ())
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert caught.value.code == "CODEC_MISSING" and syntax.name in caught.value.cause
    assert (
        "pip install -r requirements-dicom.txt" in caught.value.fix and NEEDS[syntax][1] in caught.value.fix
    )
    listed = [
        line.split(">=")[0]
        for line in (ROOT / "requirements-dicom.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert NEEDS[syntax][1] in listed and "pylibjpeg-libjpeg" not in listed


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_extended_of_12_bits_is_decoded(name):
    """pydicom's own test files, which none of its decoders here takes; the two values are those that libjpeg
    gives.
    """
    needs("python-gdcm")
    from pydicom.data import get_testdata_file

    path = Path(get_testdata_file(name, download=False) or pytest.skip("pydicom came without its test files"))
    values = stored(path)
    assert (
        values.shape == (1024, 256)
        and values.dtype == np.uint16
        and (values[420, 140], values[230, 120]) == (244, 95)
    )


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        ("1.2.840.10008.1.2.4.53", "Spectral Selection"),
        ("1.2.840.10008.1.2.4.55", "Full Progression"),
        ("1.2.840.113619.5.2", "113619"),
    ],
)
def test_what_nothing_decodes_gets_no_remedy_that_cannot_help(series, syntax, text):
    path = series / "slice_0004.dcm"
    content = pydicom.dcmread(path)
    content.file_meta.TransferSyntaxUID = uid.UID(syntax)
    content.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"x" * 100])
    content.save_as(path)
    with pytest.raises(CaseError) as caught, Decoder() as decoder:
        list(decoder.frames(path))
    assert (
        caught.value.code == "CODEC_MISSING"
        and text in caught.value.cause
        and "pip install" not in caught.value.fix
    )


def test_which_decoder_is_chosen(monkeypatch):
    def with_installed(*names: str) -> str | None:
        monkeypatch.setattr(dicom_pixels, "installed", lambda _: names)
        return dicom_pixels.decoder_for(uid.JPEG2000Lossless)

    assert [
        with_installed("gdcm", "pillow", "pylibjpeg"),
        with_installed("gdcm", "pillow"),
        with_installed("gdcm"),
        with_installed(),
    ] == ["pylibjpeg", "pillow", "gdcm", None]
    monkeypatch.undo()
    assert dicom_pixels.installed(uid.UID("1.2.840.10008.1.2.4.100")) == ()  # MPEG-2


@pytest.mark.parametrize("where", ["stream", "child"])
def test_a_damaged_stream_or_a_dead_child_is_a_refusal(series, where, monkeypatch, tmp_path):
    needs("python-gdcm")
    path = series / "slice_0004.dcm"
    compress(path, uid.JPEGLosslessSV1)
    if where == "stream":
        content = pydicom.dcmread(path)
        (frame,) = pydicom.encaps.generate_frames(content.PixelData, number_of_frames=1)
        content.PixelData = pydicom.encaps.encapsulate([frame[:20] + b"\0" * (len(frame) - 20)])
        content.save_as(path)
    else:
        program = tmp_path / "dicom_decoder.py"
        program.write_text("import os; os.abort()")
        monkeypatch.setattr(dicom_pixels, "__file__", str(tmp_path / "dicom_pixels.py"))
    with pytest.raises(CaseError) as caught:
        dicom_series.read_series(series)
    assert caught.value.code == "PIXELS_CORRUPT" and caught.value.file == str(path)


def test_a_child_that_hangs_is_ended(series, monkeypatch, tmp_path):
    needs("python-gdcm")
    compress(series / "slice_0004.dcm", uid.JPEGLosslessSV1)
    (tmp_path / "dicom_decoder.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(dicom_pixels, "__file__", str(tmp_path / "dicom_pixels.py"))
    monkeypatch.setattr(dicom_pixels, "CHILD_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(CaseError, match="PIXELS_CORRUPT"):
        dicom_series.read_series(series)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEGLosslessSV1], ids=["pyjpegls", "gdcm"])
def test_decoders_in_c_run_in_the_child_only(series, syntax, monkeypatch):
    """The decoder of this process is broken on purpose; the child's is not, and one child serves the whole
    series.
    """
    plugin, package = NEEDS[syntax]
    needs(package)
    import importlib
    import subprocess

    for path in series.iterdir():
        compress(path, syntax)
    monkeypatch.setattr(
        importlib.import_module(f"pydicom.pixels.decoders.{plugin}"), "_decode_frame", lambda *_: os.abort()
    )
    started: list[list[str]] = []
    original = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda program, **pipes: started.append(program) or original(program, **pipes)
    )
    assert np.array_equal(dicom_series.read_series(series)[0].array, PHANTOM.image.array)
    assert len(started) == 1 and started[0][0] == sys.executable


@pytest.mark.parametrize(
    "syntax",
    [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1],
    ids=["pyjpegls", "openjpeg", "gdcm"],
)
def test_mutated_streams_end_in_pixels_or_a_refusal(series, syntax):
    needs(NEEDS[syntax][1])
    path = series / "slice_0004.dcm"
    compress(path, syntax)
    content, whole = pydicom.dcmread(path), path.read_bytes()
    (good,) = pydicom.encaps.generate_frames(content.PixelData, number_of_frames=1)
    rng = np.random.default_rng(11)
    refused = 0
    with Decoder() as decoder:
        for _ in range(30):
            mutant = bytearray(good)
            for position in rng.integers(0, len(good), 3):
                mutant[position] = rng.integers(0, 256)
            content.PixelData = pydicom.encaps.encapsulate([bytes(mutant)])
            content.save_as(path)
            try:
                (frame,) = list(decoder.frames(path))
                assert frame.shape == PHANTOM.image.array.shape[1:]
            except CaseError as error:
                assert error.code == "PIXELS_CORRUPT"
                refused += 1
        path.write_bytes(whole)
        (frame,) = list(decoder.frames(path))  # and the next good file is read
    assert refused and np.array_equal(frame, PHANTOM.image.array[3] + 1024)


@pytest.mark.real
def test_real_transfer_syntaxes_equal_their_uncompressed_twins(real_data, monkeypatch):
    folder, other = real_data / "cornerstone_wado/testImages", real_data / "pydicom_data/data_store/data"
    pairs = [(path, folder / "CTImage.dcm") for path in sorted(folder.glob("CTImage.dcm_*"))] + [
        (other / "693_J2KR.dcm", other / "693_UNCR.dcm")
    ]
    syntaxes = set()
    for path, twin in pairs:
        syntax = pydicom.dcmread(path).file_meta.TransferSyntaxUID
        syntaxes.add(syntax)
        values = stored(path)
        assert np.array_equal(values, stored(twin)) and values.std() > 100, path.name
        with monkeypatch.context() as patch:
            patch.setattr(dicom_pixels, "installed", lambda _: ())
            if syntax.is_encapsulated:
                with pytest.raises(CaseError, match=r"CODEC_MISSING.*pip install -r requirements-dicom\.txt"):
                    stored(path)
            else:
                assert np.array_equal(stored(path), stored(twin))
    assert {
        uid.ExplicitVRBigEndian,
        uid.ImplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
    } <= syntaxes
