"""Guide organs: where they come from, what is refused, their file, and the channels of a patch.

All scans are synthetic.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ctseg.artifacts import safe_name, write_json
from ctseg.datasets.masks import organ_files
from ctseg.errors import CaseError, IntegrityError, PreconditionError, UsageError
from ctseg.geometry.distance_maps import GUIDE_RANGE_MM, coarse_maps, organ_masks
from ctseg.geometry.volume import Grid, Volume, match_grid
from ctseg.prediction.guide_input import TAUS_MM, Guide, guide_channels, guide_patch, make_guide
from ctseg.prediction.mirroring import mirror_permutation
from ctseg.preparation import guide_organs
from ctseg.preparation.guide_organs import (
    CaseGuide,
    GuideSource,
    check_source,
    load_guide,
    read_guide,
    write_guide,
)
from ctseg.scans.formats import nifti, volume_files

SHAPE, SPACING_MM = (20, 24, 28), (3.0, 2.0, 1.0)
STRUCTURES = ("prostate", "bladder", "hip_left", "hip_right")
ORGANS = ("bladder", "hip_left", "hip_right")


def scan_and_label() -> tuple[Volume, Volume]:
    """A synthetic scan (values do not matter) and its reference labels."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING_MM
    affine[:, 3] = (-10.0, 4.0, 7.0, 1.0)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[4:12, 8:18, 10:20] = 1
    label[13:17, 8:16, 10:18] = 2
    label[5:10, 5:9, 22:26] = 3
    label[5:9, 5:9, 2:6] = 4
    image = np.random.default_rng(1).normal(0, 100, SHAPE).round().astype(np.float32)
    return Volume(image, affine), Volume(label, affine)


def write_masks(folder: Path, label: Volume, names: dict[int, str]) -> None:
    for number, name in names.items():
        nifti.write_label(
            folder / f"{name}.nii.gz", Volume((label.array == number).astype(np.uint8), label.affine)
        )


# ---- sources -----------------------------------------------------------------------------------------------


def test_other_structures_of_the_same_labels():
    scan, label = scan_and_label()
    guide, findings = load_guide(
        GuideSource("labels", ORGANS), "case_1", scan, label, STRUCTURES, ["prostate"]
    )
    assert guide.organs == ORGANS and guide.source == "ground_truth" and there(guide).all() and not findings
    for mask, number in zip(guide.masks, (2, 3, 4)):
        back = np.zeros(SHAPE, dtype=np.uint8)
        first = np.rint(np.linalg.inv(label.affine) @ mask.affine[:, 3]).astype(int)
        back[tuple(slice(f, f + n) for f, n in zip(first, mask.array.shape))] = mask.array
        assert np.array_equal(back > 0, label.array == number)


def there(guide: CaseGuide) -> np.ndarray:
    """(K,) bool: which organs the scan shows."""
    return np.array([mask is not None for mask in guide.masks])


def test_a_target_is_no_guide():
    with pytest.raises(UsageError) as caught:
        check_source(GuideSource("labels", ("bladder", "prostate")), STRUCTURES, ["prostate"])
    assert caught.value.code == "GUIDE_LEAK" and "prostate" in caught.value.cause


@pytest.mark.parametrize(
    "source",
    [
        GuideSource("labels", ("rectum",)),
        GuideSource("labels", ()),
        GuideSource("labels", ("bladder", "bladder")),
        GuideSource("folder", ("../bladder",), Path("masks")),
    ],
)
def test_settings_that_cannot_work(source):
    with pytest.raises(UsageError, match="BAD_VALUE"):
        check_source(source, STRUCTURES, ["prostate"])


def test_labels_as_guide_without_labels():
    scan, _ = scan_and_label()
    with pytest.raises(CaseError, match="GUIDE_MISSING"):
        load_guide(GuideSource("labels", ("bladder",)), "case_1", scan, None, STRUCTURES, ["prostate"])


@pytest.mark.parametrize("below", ["case_1", "case_1/segmentations"])
def test_a_folder_of_masks(tmp_path, below):
    scan, label = scan_and_label()
    write_masks(tmp_path / below, label, {2: "bladder", 4: "hip_right", 99: "colon"})
    source = GuideSource("folder", ("colon", "bladder", "hip_left", "hip_right"), tmp_path)
    guide, findings = load_guide(source, "case_1", scan, label, STRUCTURES, ["prostate"])
    assert guide.source == "predicted" and there(guide).tolist() == [False, True, False, True]
    assert [(f.severity, f.code, f.case) for f in findings] == [
        ("WARN", "GUIDE_MISSING", "case_1"),
        ("NOTE", "GUIDE_ABSENT", "case_1"),
    ]
    assert (
        "hip_left" in findings[0].cause and "colon" not in findings[0].cause and "colon" in findings[1].cause
    )
    assert guide.masks[1].array.sum() == (label.array == 2).sum()


def test_masks_with_other_axes_are_reordered(tmp_path):
    scan, label = scan_and_label()
    flipped = scan.affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (SHAPE[0] - 1)
    flipped[:3, 0] *= -1
    write_masks(tmp_path / "case_1", Volume(label.array[::-1], flipped), {2: "bladder"})
    guide, _ = load_guide(
        GuideSource("folder", ("bladder",), tmp_path), "case_1", scan, None, STRUCTURES, ["prostate"]
    )
    straight, _ = load_guide(
        GuideSource("labels", ("bladder",)), "case_1", scan, label, STRUCTURES, ["prostate"]
    )
    assert guide.masks[0].grid.matches(straight.masks[0].grid) and np.array_equal(
        guide.masks[0].array, straight.masks[0].array
    )


def test_one_map_with_names(tmp_path):
    scan, label = scan_and_label()
    nifti.write_label(tmp_path / "case_1.nii.gz", label)
    source = GuideSource("folder", ORGANS, tmp_path)
    with pytest.raises(PreconditionError, match="LABEL_NAMES_MISSING"):
        load_guide(source, "case_1", scan, label, STRUCTURES, [])
    write_json(
        tmp_path / "labels.json",
        {"labels": {"background": 0, **{name: number for number, name in enumerate(STRUCTURES, 1)}}},
    )
    guide, findings = load_guide(source, "case_1", scan, label, STRUCTURES, [])
    assert [int(mask.array.sum()) for mask in guide.masks] == [
        int((label.array == number).sum()) for number in (2, 3, 4)
    ] and not findings
    with pytest.raises(PreconditionError, match="GUIDE_MISSING"):
        load_guide(GuideSource("folder", ("liver",), tmp_path), "case_1", scan, label, STRUCTURES, [])
    write_json(tmp_path / "labels.json", {"bladder": 2, "hip_left": 3, "hip_right": 4})
    with pytest.raises(CaseError, match="LABEL_VALUES"):
        load_guide(source, "case_1", scan, label, STRUCTURES, [])


def test_a_case_without_masks(tmp_path):
    scan, label = scan_and_label()
    write_masks(tmp_path / "case_2", label, {2: "bladder"})
    for case_id, organ in (("case_1", "bladder"), ("case_2", "liver"), ("../case_2", "bladder")):
        with pytest.raises(CaseError) as caught:
            load_guide(
                GuideSource("folder", (organ,), tmp_path), case_id, scan, label, STRUCTURES, ["prostate"]
            )
        assert caught.value.code == "GUIDE_MISSING" and caught.value.case == case_id


def test_an_empty_folder_of_segmentations_hides_no_masks(tmp_path):
    (tmp_path / "segmentations").mkdir()
    (tmp_path / "liver.nii.gz").touch()
    assert list(organ_files(tmp_path)) == ["liver"]
    (tmp_path / "segmentations" / "spleen.nii.gz").touch()
    assert list(organ_files(tmp_path)) == ["spleen"]


def test_a_case_whose_name_is_no_file_name(tmp_path):
    scan, label = scan_and_label()
    write_masks(tmp_path / safe_name("a/b"), label, {2: "bladder"})
    guide, _ = load_guide(
        GuideSource("folder", ("bladder",), tmp_path), "a/b", scan, label, STRUCTURES, ["prostate"]
    )
    assert there(guide).all()


def test_masks_of_another_grid_or_with_other_values(tmp_path):
    scan, label = scan_and_label()
    moved = label.affine.copy()
    moved[0, 3] += 0.5
    write_masks(tmp_path / "case_1", Volume(label.array, moved), {2: "bladder"})
    nifti.write_label(tmp_path / "case_2" / "bladder.nii.gz", label)
    for case_id, code in (("case_1", "GRID_MISMATCH"), ("case_2", "LABEL_VALUES")):
        with pytest.raises(CaseError) as caught:
            load_guide(
                GuideSource("folder", ("bladder",), tmp_path), case_id, scan, label, STRUCTURES, ["prostate"]
            )
        assert (caught.value.code, caught.value.case) == (code, case_id)


def test_the_answer_as_guide_is_refused(tmp_path):
    scan, label = scan_and_label()
    voxels = np.argwhere(label.array == 1)
    edited = {}
    for case_id, removed in (("same", 0), ("almost", 4), ("predicted", 80)):
        array = label.array.copy()
        array[tuple(voxels[:removed].T)] = 0
        edited[case_id] = 2 * (len(voxels) - removed) / (2 * len(voxels) - removed)
        write_masks(tmp_path / case_id, Volume(array, label.affine), {1: "pelvic_organ", 2: "bladder"})
    source = GuideSource("folder", ("bladder", "pelvic_organ"), tmp_path)
    assert edited["almost"] > 0.995 > edited["predicted"]
    for case_id in ("same", "almost"):
        with pytest.raises(PreconditionError) as caught:
            load_guide(source, case_id, scan, label, STRUCTURES, ["prostate"])
        assert (
            caught.value.code == "GUIDE_LEAK"
            and caught.value.case == case_id
            and "pelvic_organ" in caught.value.cause
            and "prostate" in caught.value.cause
        )
    guide, _ = load_guide(source, "predicted", scan, label, STRUCTURES, ["prostate"])
    assert there(guide).all()
    # its reference, but nothing to be learned
    guide, _ = load_guide(source, "same", scan, label, STRUCTURES, [])
    assert there(guide).all()


def test_the_digest_follows_the_masks_of_the_case(tmp_path):
    _, label = scan_and_label()
    source = GuideSource("folder", ("bladder",), tmp_path)
    seen = [source.digest("case[1]")]
    write_masks(tmp_path / safe_name("case[1]"), label, {2: "bladder"})
    seen.append(source.digest("case[1]"))
    write_masks(tmp_path / safe_name("case[1]"), label, {3: "bladder"})
    seen.append(source.digest("case[1]"))
    write_masks(tmp_path / "case[12]", label, {2: "bladder"})
    assert len(set(seen)) == 3 and source.digest("case[1]") == seen[-1]
    nifti.write_label(tmp_path / "case_2.nii.gz", label)
    before = source.digest("case_2")
    write_json(tmp_path / "labels.json", {"bladder": 2})
    assert source.digest("case_2") != before


# ---- TotalSegmentator --------------------------------------------------------------------------------------

FAKE = """#!{python}
import os, shutil, sys
arguments = sys.argv[1:]
out = arguments[arguments.index("-o") + 1]
organs = arguments[arguments.index("--roi_subset") + 1:]
with open(os.environ["FAKE_CALLS"], "a") as calls:
    print(" ".join(a for a in arguments if a.startswith("--") or a in organs), file=calls)
if not os.path.getsize(arguments[arguments.index("-i") + 1]):
    sys.exit(3)
for organ in organs:
    if not os.path.exists(os.path.join(os.environ["FAKE_MASKS"], organ + ".nii.gz")):
        print("no class", organ)
        sys.exit(2)
    shutil.copy(os.path.join(os.environ["FAKE_MASKS"], organ + ".nii.gz"), out)
"""


@pytest.fixture
def fake_program(tmp_path, monkeypatch) -> Path:
    """A program of that name on PATH that copies ready masks and notes how it was called."""
    program = tmp_path / "bin" / "TotalSegmentator"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    _, label = scan_and_label()
    write_masks(tmp_path / "ready", label, {2: "bladder", 3: "hip_left", 4: "hip_right"})
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("FAKE_MASKS", str(tmp_path / "ready"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_the_program_is_called_once_per_scan(tmp_path, fake_program):
    scan, label = scan_and_label()
    source = GuideSource("totalsegmentator", ORGANS, tmp_path / "cache")
    first, _ = load_guide(source, "case_1", scan, label, STRUCTURES, ["prostate"])
    again, _ = load_guide(source, "case_1", scan, label, STRUCTURES, ["prostate"])
    assert fake_program.read_text().splitlines() == [
        "--device --fast --roi_subset bladder hip_left hip_right"
    ]
    assert first.source == "predicted" and there(first).all()
    assert (
        [int(m.array.sum()) for m in first.masks]
        == [int(m.array.sum()) for m in again.masks]
        == [int((label.array == n).sum()) for n in (2, 3, 4)]
    )
    load_guide(source, "case_1", Volume(scan.array + 1, scan.affine), label, STRUCTURES, ["prostate"])
    assert len(fake_program.read_text().splitlines()) == 2  # another scan of the same name
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_failing_program_leaves_no_masks(tmp_path, fake_program):
    scan, label = scan_and_label()
    with pytest.raises(CaseError) as caught:
        load_guide(
            GuideSource("totalsegmentator", ("bladder", "unicorn"), tmp_path / "cache"),
            "case_1",
            scan,
            label,
            STRUCTURES,
            ["prostate"],
        )
    assert caught.value.code == "GUIDE_FAILED" and "code 2" in caught.value.cause
    kept = list((tmp_path / "cache").iterdir())
    assert [path.suffix for path in kept] == [".log"] and kept[0].read_text() == "no class unicorn\n"


def test_a_missing_program_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(guide_organs.importlib.util, "find_spec", lambda name: None)
    scan, label = scan_and_label()
    with pytest.raises(PreconditionError) as caught:
        load_guide(
            GuideSource("totalsegmentator", ("bladder",), tmp_path / "cache"),
            "case_1",
            scan,
            label,
            STRUCTURES,
            ["prostate"],
        )
    assert caught.value.code == "GUIDE_TOOL_MISSING" and "pip install TotalSegmentator" in caught.value.fix


# ---- the file ----------------------------------------------------------------------------------------------


def test_a_guide_file_and_its_damage(tmp_path):
    distance = np.random.default_rng(0).normal(0, 50, (3, 4, 5, 6)).astype(np.float16)
    presence = np.array([True, False, True])
    first = write_guide(tmp_path / "a.npz", distance, presence, (2, 1, 3))
    assert first == write_guide(tmp_path / "b.npz", distance, presence, (2, 1, 3))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back, seen, stride = read_guide(tmp_path / "a.npz", sha256=first)
    assert np.array_equal(back, distance) and np.array_equal(seen, presence) and stride == (2, 1, 3)
    assert back.dtype == np.float16 and seen.dtype == bool
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[400] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    for arguments in ({"sha256": first}, {}):
        with pytest.raises(IntegrityError, match="ARTIFACT_CORRUPT"):
            read_guide(tmp_path / "b.npz", **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"distance_mm": np.zeros((3, 4, 5, 6), np.float32)},
        {"presence": np.ones(2, bool)},
        {"stride": (0, 1, 1)},
        {"distance_mm": np.full((3, 4, 5, 6), np.inf, np.float16)},
    ],
)
def test_what_is_no_guide_is_not_written(tmp_path, change):
    content = {
        "distance_mm": np.zeros((3, 4, 5, 6), np.float16),
        "presence": np.ones(3, bool),
        "stride": (1, 1, 1),
    } | change
    with pytest.raises(ValueError):
        write_guide(tmp_path / "a.npz", **content)
    assert not (tmp_path / "a.npz").exists()


# ---- channels of a patch -----------------------------------------------------------------------------------


def ramp_guide(
    canvas_shape: tuple[int, int, int], stride: tuple[int, int, int]
) -> tuple[Guide, torch.Tensor]:
    """A guide whose two maps grow linearly over the canvas, and the value (2, D, H, W) each canvas voxel
    should have.
    """
    slopes = torch.tensor([[0.5, -0.25, 0.125], [-0.125, 0.5, 0.25]])

    def values(axes: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(
            [
                s[0] * axes[0][:, None, None] + s[1] * axes[1][None, :, None] + s[2] * axes[2][None, None, :]
                for s in slopes
            ]
        )

    centres = [torch.arange(-(-n // s)) * s + (s - 1) / 2 for n, s in zip(canvas_shape, stride)]
    coarse = values(centres).numpy().astype(np.float16)
    return make_guide(coarse, np.array([True, True]), stride, ["bladder", "rectum"]), values(
        [torch.arange(n).float() for n in canvas_shape]
    )


def distances(channels: torch.Tensor, n_organs: int) -> torch.Tensor:
    """The distances that the first length scale's channels stand for."""
    return torch.atanh(channels[:n_organs]) * TAUS_MM[0]


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 3), (3, 4, 2)])
def test_trilinear_between_the_centres_of_blocks(stride):
    """11, 13 and 17 are multiples of nothing here: the last blocks are incomplete."""
    guide, truth = ramp_guide((11, 13, 17), stride)
    whole = guide_patch(guide, (0, 0, 0), (11, 13, 17))
    assert whole.shape == (6, 11, 13, 17) and whole.dtype == torch.float32
    # before the first and behind the last centre the edge goes on
    inner = tuple(slice((s - 1) // 2 + 1, -s) for s in stride)
    assert torch.allclose(distances(whole, 2)[(slice(None), *inner)], truth[(slice(None), *inner)], atol=0.02)
    assert (whole[4:] == 1).all()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 3)])
def test_a_patch_is_the_crop_of_the_whole(stride):
    rng = np.random.default_rng(5)
    shape = (20, 22, 25)
    coarse = rng.normal(0, 30, (3, *(-(-n // s) for n, s in zip(shape, stride)))).astype(np.float16)
    guide = make_guide(coarse, np.array([True, True, False]), stride, ["a", "b", "c"])
    whole = guide_patch(guide, (0, 0, 0), shape)
    for start, size in (((3, 5, 7), (8, 9, 10)), ((12, 0, 19), (8, 22, 6)), ((19, 21, 24), (1, 1, 1))):
        part = guide_patch(guide, start, size)
        box = tuple(slice(s, s + n) for s, n in zip(start, size))
        assert torch.equal(part, whole[(slice(None), *box)])
        at = torch.stack(
            torch.meshgrid(*[torch.arange(s, s + n).float() for s, n in zip(start, size)], indexing="ij")
        )
        assert torch.allclose(guide_patch(guide, (0, 0, 0), size, positions=at), part, atol=2e-4)
    beyond = guide_patch(guide, (-4, 18, 20), (8, 8, 8))
    assert torch.equal(beyond[:, 4:, :4, :5], whole[:, :4, 18:, 20:]) and torch.equal(
        beyond[:, 0], beyond[:, 4]
    )


def test_turned_positions_read_the_map_there():
    guide, _ = ramp_guide((30, 30, 30), (2, 2, 2))
    angle = np.radians(20)
    turn = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.1]],
        dtype=torch.float32,
    )
    offsets = torch.stack(torch.meshgrid(*[torch.arange(9.0) - 4] * 3, indexing="ij"))
    positions = torch.einsum("ij,jdhw->idhw", turn, offsets) + 14.7
    before = positions.clone()
    found = distances(guide_patch(guide, (0, 0, 0), (9, 9, 9), positions=positions), 2)
    expected = torch.einsum(
        "ki,idhw->kdhw", torch.tensor([[0.5, -0.25, 0.125], [-0.125, 0.5, 0.25]]), positions
    )
    assert torch.allclose(found, expected, atol=0.02) and torch.equal(positions, before)


def test_zoom_scales_the_distances():
    guide, _ = ramp_guide((12, 12, 12), (1, 1, 1))
    plain, larger = (
        distances(guide_patch(guide, (0, 0, 0), (12, 12, 12), scale=scale), 2) for scale in (1.0, 1.25)
    )
    assert torch.allclose(larger, 1.25 * plain, atol=1e-3)


def test_channels_for_every_length_scale_and_absent_organs():
    distance = torch.tensor([-5.0, 40.0, 12.0, GUIDE_RANGE_MM]).view(4, 1, 1, 1).expand(4, 2, 3, 4)
    channels = guide_channels(distance, torch.tensor([True, True, False, True]))
    assert channels.shape == (12, 2, 3, 4)
    for row, tau in enumerate(TAUS_MM):
        assert torch.allclose(
            channels[row * 4 : row * 4 + 4, 0, 0, 0],
            torch.tensor(
                [np.tanh(-5 / tau), np.tanh(40 / tau), 1.0, np.tanh(300 / tau)], dtype=torch.float32
            ),
            atol=1e-6,
        )
    assert channels[8:, 1, 2, 3].tolist() == [1, 1, 0, 1]


def test_dropped_organs_look_absent():
    scan, label = scan_and_label()
    maps = coarse_maps([*organ_masks(label, [2, 3]), None], scan.grid)
    guide = make_guide(maps.distance_mm, maps.presence, maps.stride, ["bladder", "hip_left", "colon"])
    one = guide_patch(guide, (0, 0, 0), (10, 12, 14), dropped=torch.tensor([True, False, False]))
    plain = guide_patch(guide, (0, 0, 0), (10, 12, 14))
    assert (one[[0, 3]] == 1).all() and (one[6] == 0).all() and torch.equal(one[[1, 4, 7]], plain[[1, 4, 7]])
    assert (plain[[2, 5]] == 1).all() and (plain[8] == 0).all() and (plain[6:8] == 1).all()
    none = guide_patch(guide, (0, 0, 0), (10, 12, 14), dropped=torch.ones(3, dtype=torch.bool), mirrored=True)
    assert (none[:6] == 1).all() and (none[6:] == 0).all()
    assert plain.abs().max() <= 1 and guide.presence.tolist() == [True, True, False]


def test_a_mirror_image_is_the_mirrored_patient():
    """Guides of the label mirrored with its sides renamed are the mirrored guides."""
    _, label = scan_and_label()
    affine = label.affine.copy()
    # isotropic: no two nearest voxels with different half voxels
    affine[:3, :3] *= 2.0 / np.array(SPACING_MM)
    renamed = np.array([0, 1, 2, 4, 3], dtype=np.uint8)[label.array[:, :, ::-1]]
    both = []
    for array in (label.array, np.ascontiguousarray(renamed)):
        maps = coarse_maps(organ_masks(Volume(array, affine), [2, 3, 4]), Grid(SHAPE, affine))
        both.append(make_guide(maps.distance_mm, maps.presence, maps.stride, ORGANS))
    plain, other = (guide_patch(guide, (0, 0, 0), SHAPE) for guide in both)
    assert torch.allclose(guide_patch(both[0], (0, 0, 0), SHAPE, mirrored=True), other, atol=1e-6)
    # an involution
    assert torch.allclose(guide_patch(both[1], (0, 0, 0), SHAPE, mirrored=True), plain, atol=1e-6)
    assert (plain.flip(3) - other).abs().max() > 0.3  # without the swap the sides are wrong


def test_presence_changes_sides_too():
    guide = make_guide(
        np.zeros((3, 4, 4, 4), np.float16),
        np.array([True, False, True]),
        (1, 1, 1),
        ["kidney_left", "kidney_right", "liver"],
    )
    mirrored = guide_patch(guide, (0, 0, 0), (4, 4, 4), mirrored=True)
    assert (
        mirrored[6:, 0, 0, 0].tolist() == [0, 1, 1] and (mirrored[0] == 1).all() and (mirrored[1] == 0).all()
    )


def test_swaps_are_an_involution_and_leave_the_heart_alone():
    organs = ["kidney_left", "liver", "kidney_right", "heart_atrium_left", "heart_atrium_right", "lung_left"]
    swaps = mirror_permutation(organs)
    assert swaps.tolist() == [2, 1, 0, 3, 4, 5] and swaps[swaps].tolist() == list(range(6))


# ---- real masks --------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_totalsegmentator_masks(real_data, tmp_path):
    folder = real_data / "totalseg" / "tests" / "reference_files"
    scan, _ = volume_files.read_image(folder / "example_ct_sm.nii.gz")
    (tmp_path / "example").symlink_to(folder / "example_seg_fast", target_is_directory=True)
    organs = tuple(
        sorted(path.name.removesuffix(".nii.gz") for path in (folder / "example_seg_fast").glob("*.nii.gz"))
    )[:40]
    guide, findings = load_guide(GuideSource("folder", organs, tmp_path), "example", scan, None, (), ())
    reference, _ = volume_files.read_integers(folder / "example_seg_fast.nii.gz")
    multilabel = match_grid(reference, scan.grid, 1e-2)
    assert multilabel is not None
    assert 0 < there(guide).sum() < len(organs) and [f.code for f in findings] == ["GUIDE_ABSENT"]
    sizes = np.bincount(multilabel.array.ravel())
    # the same masks in one map
    assert all(int(mask.array.sum()) in sizes for mask in guide.masks if mask is not None)
    maps = coarse_maps(guide.masks, scan.grid)
    assert np.array_equal(maps.presence, there(guide)) and np.isfinite(maps.distance_mm).all()
    present = maps.distance_mm[maps.presence]
    assert (present.min(axis=(1, 2, 3)) < 0).all() and (
        maps.distance_mm[~maps.presence] == GUIDE_RANGE_MM
    ).all()
