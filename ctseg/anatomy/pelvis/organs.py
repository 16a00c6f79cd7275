"""Bladder, prostate with seminal vesicles, rectum, uterus: the soft organs the embedded default is about."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.implicit import Scene, Shape, ellipsoid_distance, turned
from ctseg.anatomy.labels import IDS, SIDES
from ctseg.anatomy.patients import Body, Patient

BLADDER_NECK = (0.0, -12.0, -20.0)
SACRAL_TURN_MM = 62.0  # height (lower S3) at which the bowel leaves the sacrum: rectum below, sigmoid above


@dataclasses.dataclass(frozen=True)
class Organs:
    """The organs as shapes; None where the patient has none."""

    bladder: Shape
    bladder_wall_mm: float
    prostate: Shape | None
    seminal: Shape | None
    uterus: Shape | None
    ovaries: list[Shape]
    vagina: Shape | None
    rectum: Shape
    rectum_line: np.ndarray  # (n, 4): x, y, z, radius from the top down
    anal_canal: Shape


def build_organs(scene: Scene, patient: Patient, lumps: np.ndarray) -> Organs:
    """All organs. lumps: smooth random field of the whole grid that dents and bulges them."""
    prostate = _prostate(scene, patient, lumps) if patient.sex == "male" else None
    seminal = _seminal(scene, patient) if patient.sex == "male" else None
    uterus = vagina = None
    ovaries: list[Shape] = []
    if patient.sex == "female":
        uterus, vagina = _uterus(scene, patient, lumps)
        ovaries = [scene.ellipsoid((40, 8, 42), (13, 10, 16), side=side) for side in SIDES]
    line = rectum_line(patient)
    rectum = scene.tube(line[:, :3], line[:, 3], blend_mm=2, with_axis=True)
    rectum.f += 1.2 * lumps[rectum.box]
    bladder = _bladder(scene, patient, lumps)
    for organ in (prostate, seminal, uterus, vagina):
        if organ is not None:
            bladder = bladder.cut(scene.spread(organ), 0.0 if organ is prostate else 2.0)
            rectum = rectum.cut(scene.spread(organ), 2.2)
    bladder = bladder.cut(scene.spread(rectum), 5.0)
    end = line[-1]
    anal = scene.tube(
        [end[:3] + (0, 1, 4), end[:3] + (0, 10, -9), end[:3] + (0, 20, -26)], [11.5, 12, 13], blend_mm=2
    )
    volume = patient.bladder_ml
    wall = float(np.interp(volume, [60, 150, 300, 500], [4.6, 3.6, 2.8, 2.2]))
    return Organs(bladder, wall, prostate, seminal, uterus, ovaries, vagina, rectum, line, anal)


def paint_organs(
    scene: Scene, organs: Organs, patient: Patient, grain: np.ndarray, blotch: np.ndarray
) -> None:
    """Draw the organs, those that yield first."""
    hu = patient.hu
    scene.paint(organs.anal_canal, hu["muscle"] - 4)
    for organ, shade, name in ((organs.vagina, "bladder_wall", None), (organs.uterus, "uterus", "uterus")):
        if organ is not None:
            scene.paint(organ, hu[shade] + 4 * blotch[organ.box], IDS[name] if name else None)
    for ovary in organs.ovaries:
        scene.paint(ovary, 30.0 + 8 * blotch[ovary.box])
    if organs.prostate is not None:
        _paint_plexus(scene, organs.prostate, patient, blotch)
    _paint_rectum(scene, organs, patient, grain, blotch)
    if organs.seminal is not None:
        scene.paint(organs.seminal, hu["seminal"] + 3 * grain[organs.seminal.box], IDS["prostate"])
    _paint_bladder(scene, organs, patient)
    if organs.prostate is not None:
        _paint_prostate(scene, organs.prostate, patient, grain, blotch)
    else:
        scene.paint(scene.tube([BLADDER_NECK, (0, -14, -50)], [6, 5.5]), hu["bladder_wall"])


def _bladder(scene: Scene, patient: Patient, lumps: np.ndarray) -> Shape:
    """A sac on the prostate or pelvic floor that grows upwards and forwards; dish-shaped when nearly empty."""
    fullness = float(np.clip((patient.bladder_ml - 60) / 420, 0, 1))
    ratio = np.array([1.16, 0.98 + 0.05 * fullness, 0.56 + 0.5 * fullness])
    unit = (patient.bladder_ml * 1000 * 0.2387 * 1.06 / ratio.prod()) ** (1 / 3)
    a, b, c = (float(v) for v in ratio * unit)
    if a > 47:  # the side walls of the pelvis do not give way
        spare = np.sqrt(a / 47)
        a, b, c = 47.0, b * spare, c * spare
    bottom = BLADDER_NECK[2] - (2.0 if patient.sex == "male" else 5.0)
    shift_x, shift_y = patient.bladder_shift_mm
    center = np.array([shift_x, np.clip(-6 - 0.36 * b + shift_y, -34, -8), bottom + 0.93 * c])
    reach = np.array([a, b, c]).max() + 14
    box = scene.box(center - reach, center + reach)
    x, y, z = turned(*scene.at(box), center, patient.bladder_pitch)
    below = np.clip(-z / c, 0, 1)
    funnel = 1 - 0.22 * below * below
    flat = 1 + 0.18 * np.clip(z / c, 0, 1) ** 2 * (1 - fullness)  # the empty dome sinks in
    sag = np.float32(8.0) * below * below  # the neck points down and back, to the prostate
    f = ellipsoid_distance(x / funnel, (y - sag) / funnel, z * flat, (a, b, c))
    f += np.float32(2.2 + 0.05 * unit) * lumps[box]
    return Shape(box, np.maximum(f, scene.z[box] * -1 + np.float32(bottom - 2)).astype(np.float32))


def _paint_bladder(scene: Scene, organs: Organs, patient: Patient) -> None:
    """Wall, urine, and contrast medium that sinks to the back in a late scan."""
    bladder = organs.bladder
    if not bladder.f.size:
        return
    scene.paint(bladder, patient.hu["bladder_wall"], IDS["bladder"])
    urine = np.full(bladder.f.shape, patient.hu["urine"], dtype=np.float32)
    if patient.contrast == "excreted":
        inside = scene.y[bladder.box][bladder.f < -organs.bladder_wall_mm]
        if inside.size:
            level = np.quantile(inside, 0.45)
            sunk = np.clip((scene.y[bladder.box] - level) / 9 + 0.5, 0, 1)
            urine += sunk * np.float32(patient.hu["excreted"])
    scene.paint(Shape(bladder.box, bladder.f + np.float32(organs.bladder_wall_mm)), urine)


def _prostate(scene: Scene, patient: Patient, lumps: np.ndarray) -> Shape:
    """A chestnut below the bladder: broad base, narrow apex towards the front, a groove along the back."""
    a, b, c = (0.5 * v for v in patient.prostate_mm)
    center = prostate_center(patient)
    reach = np.full(3, max(a, b, c) + 10)
    box = scene.box(center - reach, center + reach)
    x, y, z = turned(*scene.at(box), center, patient.prostate_pitch)
    t = np.clip(z / c, -1, 1)
    taper = 1 - 0.24 * (0.5 - 0.5 * t) ** 1.4 - 0.05 * np.clip(t, 0, 1)
    side = x / a
    f = ellipsoid_distance(x / taper, (y - 0.30 * b * (side * side - 0.25)) / taper, z, (a, b, c))
    return Shape(box, (f + 0.7 * lumps[box]).astype(np.float32))


def prostate_center(patient: Patient) -> np.ndarray:
    """Middle of the gland: its base touches the bladder neck, its back the rectum's front."""
    _, depth, height = patient.prostate_mm
    return np.array([0.0, 21.0 - 0.5 * depth, BLADDER_NECK[2] + 4.0 - 0.46 * height])


def _paint_prostate(
    scene: Scene, prostate: Shape, patient: Patient, grain: np.ndarray, blotch: np.ndarray
) -> None:
    """Central gland a little darker than the rim, a few specks of calcium, the urethra leaving below."""
    if not prostate.f.size:
        return
    hu = patient.hu["prostate"]
    scene.paint(prostate, hu + 2.0 + 3 * blotch[prostate.box], IDS["prostate"])
    scene.paint(prostate, hu - 4.0 + 4 * blotch[prostate.box], inset_mm=7.0)
    specks = np.maximum(prostate.f + 8.0, (2.9 - grain[prostate.box]) * 4)
    scene.paint(Shape(prostate.box, specks.astype(np.float32)), 260.0)
    apex = prostate_center(patient) - (0, 0, 0.44 * patient.prostate_mm[2])
    apex = apex + (0, -np.sin(patient.prostate_pitch) * 0.4 * patient.prostate_mm[2], 0)
    urethra = scene.tube([apex + (0, 0, -1), apex + (0, -2, -14), apex + (0, -12, -24)], [5.0, 5.5, 9.0])
    fresh = urethra.cut(scene.spread(prostate), 1.0)
    scene.paint(fresh, patient.hu["muscle"] - 4)


def _paint_plexus(scene: Scene, prostate: Shape, patient: Patient, blotch: np.ndarray) -> None:
    """The veins around the gland, in front and at the sides: a soft rim with fat in between."""
    if not prostate.f.size:
        return
    center = prostate_center(patient)
    behind = scene.y[prostate.box] - np.float32(center[1] + 0.22 * patient.prostate_mm[1])
    rim = np.maximum(np.abs(prostate.f - 5.2) - 2.6 - 0.9 * blotch[prostate.box], behind)
    scene.paint(Shape(prostate.box, rim.astype(np.float32)), patient.hu["prostate"] - 22)


def _seminal(scene: Scene, patient: Patient) -> Shape:
    """The seminal vesicles: a bow tie behind the bladder, on top of the prostate's base."""
    center = prostate_center(patient)
    top = center[2] + 0.40 * patient.prostate_mm[2]
    back = center[1] + 0.30 * patient.prostate_mm[1]
    half = 0.5 * patient.prostate_mm[0]
    parts = [
        scene.tube(
            [(1, back, top), (0.55 * half, back + 4, top + 7), (half + 7, back + 9, top + 13)],
            [6.5, 6.2, 5.0],
            side=side,
            blend_mm=2,
        )
        for side in SIDES
    ]
    return scene.join(parts, 0.0)


def _uterus(scene: Scene, patient: Patient, lumps: np.ndarray) -> tuple[Shape, Shape]:
    """Womb tipped forward over the bladder, and the flat vagina between bladder neck and rectum."""
    cervix = np.array([0.0, 16.0, 0.0])
    a, b, c = patient.uterus_mm
    c *= 0.9
    lean = patient.uterus_pitch
    lift = min(1.0, patient.bladder_ml / 450)
    center = cervix + (
        patient.bladder_shift_mm[0],
        -np.sin(lean * (1 - 0.55 * lift)) * c * 0.8 + 8,
        np.cos(lean * (1 - 0.55 * lift)) * c * 0.8 + 8 + 12 * lift,
    )
    body = scene.ellipsoid(center, (a, b, c), pitch=lean * (1 - 0.55 * lift))
    body.f += 1.6 * lumps[body.box]
    neck = scene.tube([cervix + (0, 0, -6), cervix + (0, 2, 8), center], [11, 11, 13], blend_mm=3)
    vagina = [scene.tube([(0, 14, -6), (0, 8, -30), (0, 0, -56)], [4.5, 4.5, 5])]
    vagina += [scene.tube([(9, 14, -8), (8, 9, -30), (5, 0, -54)], [4, 4, 3.5], side=side) for side in SIDES]
    return scene.join([body, neck], 0.0), scene.join(vagina, 0.0)


def rectum_line(patient: Patient) -> np.ndarray:
    """Centre line and radius (n, 4) from the turn at the sacrum down to the anorectal angle.

    It follows the hollow of the sacrum, is widest in the ampulla, and ends where the pelvic floor holds it.
    """
    top, ampulla, low = patient.rectum_radius_mm
    upper_bend, lower_bend = patient.rectum_bend_mm
    back = 22.0 + 1.8  # front of the rectum behind the prostate
    nodes = np.array(
        [
            (2.0, 60.0 - top, SACRAL_TURN_MM, top),
            (0.7 * upper_bend, 73.0 - top, 44.0, top + 1),
            (upper_bend, 79.0 - 0.9 * ampulla, 26.0, 0.5 * (top + ampulla) + 1),
            (0.2 * upper_bend + 0.6 * lower_bend, 76.0 - ampulla, 6.0, ampulla),
            (lower_bend, max(back + ampulla, 68.0 - ampulla), -14.0, ampulla),
            (0.3 * lower_bend, back + 0.9 * low + 3, -32.0, 0.55 * low + 0.45 * ampulla),
            (0.0, back + low, -46.0, low - 1.5),
        ]
    )
    return np.asarray(CubicSpline(np.arange(len(nodes)), nodes)(np.linspace(0, len(nodes) - 1, 25)))


def _paint_rectum(
    scene: Scene, organs: Organs, patient: Patient, grain: np.ndarray, blotch: np.ndarray
) -> None:
    """Wall, then what it holds: gas in front of stool, mottled stool, or folded mucosa."""
    rectum = organs.rectum
    if not rectum.f.size:
        return
    scene.paint(rectum, patient.hu["rectum_wall"] + 3 * grain[rectum.box], IDS["rectum"])
    if patient.rectum_content == "collapsed":
        slit = rectum.f + organs.rectum_line[:, 3].mean() * 0.82 + 2.0 * blotch[rectum.box]
        scene.paint(Shape(rectum.box, slit.astype(np.float32)), -300.0)
        return
    lumen = rectum.inset(3.4 + 0.6 * blotch[rectum.box])
    if patient.rectum_content == "gel":
        scene.paint(lumen, patient.hu["gel"] + 10 * blotch[rectum.box])
    else:
        scene.paint(lumen, stool(patient, grain[rectum.box], blotch[rectum.box]))
    share = {"gas": 0.68, "gel": 0.25, "stool": 0.2}[patient.rectum_content]
    paint_gas(scene, lumen, share)


def stool(patient: Body, grain: np.ndarray, blotch: np.ndarray) -> np.ndarray:
    """Attenuation of stool: uneven, with fat-dark patches and gas bubbles."""
    hu = patient.hu["stool"] + 12 * grain + 26 * blotch
    bubbles = np.clip(grain + 0.5 * blotch + 0.1, 0, 2.6)
    return (hu - 150 * bubbles * bubbles).astype(np.float32)


def paint_gas(scene: Scene, lumen: Shape, share: float) -> None:
    """Gas in the front of a bowel's lumen, with a flat level; share 0..1 is how deep it reaches."""
    if not lumen.f.size:
        return
    inside = lumen.f < -1.0
    if not inside.any():
        return
    if lumen.axis_y is None:
        raise ValueError("gas needs a tube drawn with_axis")
    depth = float(-lumen.f[inside].min())
    level = lumen.axis_y + np.float32((2 * share - 1) * depth)
    f = np.maximum(lumen.f + 0.4, scene.y[lumen.box] - level)
    scene.paint(Shape(lumen.box, f.astype(np.float32)), -960.0)
