"""Bladder, prostate with seminal vesicles, rectum, uterus: the soft organs the embedded default is about."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.bowel import paint_gas, paint_stool
from ctseg.anatomy.implicit import SIDES, Points, Scene, Shape, ellipsoid_distance
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.shape_tables import read_table

SHAPES = read_table(__file__)
BLADDER_NECK = (0.0, -12.0, -20.0)
SACRAL_TURN_MM = 62.0  # height (lower S3) at which the bowel leaves the sacrum: rectum below, sigmoid above


@dataclasses.dataclass(frozen=True)
class Organs:
    """The organs as shapes, empty where the patient has none."""

    bladder: Shape
    prostate: Shape
    seminal: Shape
    uterus: Shape
    ovaries: list[Shape]
    vagina: Shape
    rectum: Shape
    rectum_line: Points  # (n, 4): x, y, z, radius from the top down
    solid: list[Shape]  # what the bowel gives way to


def build_organs(scene: Scene, patient: Patient) -> Organs:
    """All organs, dented and bulged by the coarse random field."""
    prostate = seminal = uterus = vagina = scene.nothing
    ovaries: list[Shape] = []
    if patient.sex == "male":
        prostate, seminal = build_prostate(scene, patient)
    else:
        uterus = build_uterus(scene, patient)
        sides = [scene.tube(SHAPES["vagina side"], side=side) for side in SIDES]
        vagina = scene.join([scene.tube(SHAPES["vagina"]), *sides], 0.0)
        ovaries = [scene.ellipsoid((40, 8, 42), (13, 10, 16), side=side) for side in SIDES]
    line = rectum_line(patient)
    rectum = scene.tube(line, blend_mm=2, with_axis=True).inset(0, lumps=1.2)
    bladder = build_bladder(scene, patient).cut(prostate, 0.0)
    for organ in (seminal, uterus, vagina):
        bladder, rectum = bladder.cut(organ, 2.0), rectum.cut(organ, 2.2)
    rectum = rectum.cut(prostate, 2.2)
    bladder = bladder.cut(rectum, 5.0)
    solid = [*ovaries, bladder, rectum, prostate, seminal, uterus]
    return Organs(bladder, prostate, seminal, uterus, ovaries, vagina, rectum, line, solid)


def paint_organs(scene: Scene, organs: Organs, patient: Patient) -> None:
    """Draw the organs, those that yield first."""
    end = organs.rectum_line[-1, :3]
    anal_canal = [end + (0, 1, 4), end + (0, 10, -9), end + (0, 20, -26)]
    scene.tube(anal_canal, [11.5, 12, 13], blend_mm=2).paint("muscle", plus=-4)
    organs.vagina.paint("bladder_wall", blotch=4)
    organs.uterus.paint("uterus", "uterus", blotch=4)
    for ovary in organs.ovaries:
        ovary.paint(30.0, blotch=8)
    # The veins around the prostate, in front and at the sides: a soft rim with fat in between.
    prostate, middle = organs.prostate, prostate_center(patient)
    back = np.float32(middle[1] + 0.22 * patient.prostate_mm[1])
    rim = Shape(scene, prostate.box, np.abs(prostate.f - 5.2) - 2.6).inset(0, blotch=-0.9)
    rim.within(prostate.at()[1] - back).paint("prostate", plus=-22)
    paint_rectum(organs, patient.rectum_content)
    organs.seminal.paint("seminal", "prostate", grain=3)
    paint_bladder(organs.bladder, patient)
    if patient.sex == "female":
        scene.tube(SHAPES["female urethra"]).paint("bladder_wall")
        return
    # Central gland a little darker than the rim, a few specks of calcium, the urethra leaving below.
    prostate.paint("prostate", "prostate", plus=2.0, blotch=3)
    prostate.inset(7.0).paint("prostate", plus=-4.0, blotch=4)
    prostate.inset(8.0).within(prostate.uneven(2.9, grain=-1) * 4).paint(260.0)
    height = patient.prostate_mm[2]
    apex = middle - (0, np.sin(patient.prostate_pitch) * 0.4 * height, 0.44 * height)
    urethra = scene.tube([apex + (0, 0, -1), apex + (0, -2, -14), apex + (0, -12, -24)], [5.0, 5.5, 9.0])
    urethra.cut(prostate, 1.0).paint("muscle", plus=-4)


def build_bladder(scene: Scene, patient: Patient) -> Shape:
    """A sac on the prostate or pelvic floor that grows up and forwards; dish-shaped when nearly empty."""
    fullness = patient.bladder_fullness
    ratio = np.array([1.16, 0.98 + 0.05 * fullness, 0.56 + 0.5 * fullness])
    unit = float((patient.bladder_ml * 1000 * 0.2387 * 1.06 / ratio.prod()) ** (1 / 3))
    a, b, c = (ratio * unit).tolist()
    if a > 47:  # the side walls of the pelvis do not give way
        spare = np.sqrt(a / 47)
        a, b, c = 47.0, b * spare, c * spare
    bottom = BLADDER_NECK[2] - (2.0 if patient.sex == "male" else 5.0)
    shift_x, shift_y = patient.bladder_shift_mm
    center = (shift_x, np.clip(-6 - 0.36 * b + shift_y, -34, -8), bottom + 0.93 * c)
    box, (x, y, z) = scene.around(center, max(a, b, c) + 14, pitch=patient.bladder_pitch)
    below = np.clip(-z / c, 0, 1)
    funnel = 1 - 0.22 * below * below
    flat = 1 + 0.18 * np.clip(z / c, 0, 1) ** 2 * (1 - fullness)  # the empty dome sinks in
    sag = 8.0 * below * below  # the neck points down and back, to the prostate
    f = ellipsoid_distance(x / funnel, (y - sag) / funnel, z * flat, (a, b, c))
    sac = Shape(scene, box, f).inset(0, lumps=2.2 + 0.05 * unit)
    return sac.within(bottom - 2 - scene.z[box])


def paint_bladder(bladder: Shape, patient: Patient) -> None:
    """Wall, urine, and contrast medium that sinks to the back in a late scan."""
    bladder.paint("bladder_wall", "bladder")
    lumen = bladder.inset(float(np.interp(patient.bladder_ml, [60, 150, 300, 500], [4.6, 3.6, 2.8, 2.2])))
    urine = np.full(lumen.f.shape, patient.hu["urine"], dtype=np.float32)
    _, y, _ = lumen.at()
    if patient.contrast == "excreted" and (lumen.f < 0).any():
        sunk = np.clip((y - np.quantile(y[lumen.f < 0], 0.45)) / 9 + 0.5, 0, 1)
        urine += sunk * np.float32(patient.hu["excreted"])
    lumen.paint(urine)


def build_prostate(scene: Scene, patient: Patient) -> tuple[Shape, Shape]:
    """A chestnut below the bladder: broad base, narrow apex towards the front, a groove along the back; and
    the seminal vesicles: a bow tie behind the bladder, on top of its base."""
    width, depth, height = patient.prostate_mm
    a, b, c = 0.5 * width, 0.5 * depth, 0.5 * height
    center = prostate_center(patient)
    box, (x, y, z) = scene.around(center, max(a, b, c) + 10, pitch=patient.prostate_pitch)
    t = np.clip(z / c, -1, 1)
    taper = 1 - 0.24 * (0.5 - 0.5 * t) ** 1.4 - 0.05 * np.clip(t, 0, 1)
    off = x / a
    f = ellipsoid_distance(x / taper, (y - 0.30 * b * (off * off - 0.25)) / taper, z, (a, b, c))
    _, at_y, at_z = center + (0, 0.30 * depth, 0.40 * height)
    line = [(1, at_y, at_z), (0.55 * a, at_y + 4, at_z + 7), (a + 7, at_y + 9, at_z + 13)]
    vesicles = [scene.tube(line, [6.5, 6.2, 5.0], side=side, blend_mm=2) for side in SIDES]
    return Shape(scene, box, f).inset(0, lumps=0.7), scene.join(vesicles, 0.0)


def prostate_center(patient: Patient) -> Points:
    """Middle of the gland: its base touches the bladder neck, its back the rectum's front."""
    _, depth, height = patient.prostate_mm
    return np.array([0.0, 21.0 - 0.5 * depth, BLADDER_NECK[2] + 4.0 - 0.46 * height])


def build_uterus(scene: Scene, patient: Patient) -> Shape:
    """Womb tipped forward over the bladder, which lifts it as it fills."""
    cervix = np.array([0.0, 16.0, 0.0])
    a, b, c = patient.uterus_mm
    c *= 0.9
    lift = min(1.0, patient.bladder_ml / 450)
    lean = patient.uterus_pitch * (1 - 0.55 * lift)
    rise = np.cos(lean) * c * 0.8 + 8 + 12 * lift
    center = cervix + (patient.bladder_shift_mm[0], -np.sin(lean) * c * 0.8 + 8, rise)
    body = scene.ellipsoid(center, (a, b, c), pitch=lean).inset(0, lumps=1.6)
    neck = scene.tube([cervix + (0, 0, -6), cervix + (0, 2, 8), center], [11, 11, 13], blend_mm=3)
    return scene.join([body, neck], 0.0)


def rectum_line(patient: Patient) -> Points:
    """Centre line and radius (n, 4) from the turn at the sacrum down to the anorectal angle.

    It follows the hollow of the sacrum, is widest in the ampulla, and ends where the pelvic floor holds it.
    """
    top, ampulla, low = patient.rectum_radius_mm
    upper_bend, lower_bend = patient.rectum_bend_mm
    back = 22.0 + 1.8  # front of the rectum behind the prostate
    nodes = [
        (2.0, 60.0 - top, SACRAL_TURN_MM, top),
        (0.7 * upper_bend, 73.0 - top, 44.0, top + 1),
        (upper_bend, 79.0 - 0.9 * ampulla, 26.0, 0.5 * (top + ampulla) + 1),
        (0.2 * upper_bend + 0.6 * lower_bend, 76.0 - ampulla, 6.0, ampulla),
        (lower_bend, max(back + ampulla, 68.0 - ampulla), -14.0, ampulla),
        (0.3 * lower_bend, back + 0.9 * low + 3, -32.0, 0.55 * low + 0.45 * ampulla),
        (0.0, back + low, -46.0, low - 1.5),
    ]
    return np.asarray(CubicSpline(np.arange(len(nodes)), nodes)(np.linspace(0, len(nodes) - 1, 25)))


def paint_rectum(organs: Organs, content: str) -> None:
    """Wall, then what it holds: gas in front of stool, mottled stool, or folded mucosa."""
    rectum = organs.rectum
    rectum.paint("rectum_wall", "rectum", grain=3)
    if content == "collapsed":
        rectum.inset(organs.rectum_line[:, 3].mean() * 0.82, blotch=2.0).paint(-300.0)
        return
    lumen = rectum.inset(3.4, blotch=0.6)
    if content == "gel":
        lumen.paint("gel", blotch=10)
    else:
        paint_stool(lumen, lumen.uneven(0, grain=1))
    paint_gas(lumen, {"gas": 0.68, "gel": 0.25, "stool": 0.2}[content])
