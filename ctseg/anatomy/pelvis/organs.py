"""Bladder, prostate with seminal vesicles, rectum, uterus: the soft organs the embedded default is about."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.interpolate import CubicSpline

from ctseg.anatomy.bowel import paint_gas, uneven_stool
from ctseg.anatomy.implicit import NOTHING, Scene, Shape, ellipsoid_distance
from ctseg.anatomy.labels import IDS, SIDES
from ctseg.anatomy.pelvis.people import Patient
from ctseg.anatomy.shape_tables import read_table
from ctseg.anatomy.texture import Texture

SHAPES = read_table(__file__)
BLADDER_NECK = (0.0, -12.0, -20.0)
SACRAL_TURN_MM = 62.0  # height (lower S3) at which the bowel leaves the sacrum: rectum below, sigmoid above


@dataclasses.dataclass(frozen=True)
class Organs:
    """The organs as shapes; NOTHING where the patient has none."""

    bladder: Shape
    prostate: Shape
    seminal: Shape
    uterus: Shape
    ovaries: list[Shape]
    vagina: Shape
    rectum: Shape
    rectum_line: np.ndarray  # (n, 4): x, y, z, radius from the top down

    def solid(self) -> list[Shape]:
        """What the bowel gives way to."""
        return [*self.ovaries, self.bladder, self.rectum, self.prostate, self.seminal, self.uterus]


def build_organs(scene: Scene, patient: Patient, texture: Texture) -> Organs:
    """All organs, dented and bulged by the coarse random field."""
    prostate = seminal = uterus = vagina = NOTHING
    ovaries: list[Shape] = []
    if patient.sex == "male":
        prostate, seminal = build_prostate(scene, patient, texture), build_seminal(scene, patient)
    else:
        uterus = build_uterus(scene, patient, texture)
        sides = [scene.tube(SHAPES["vagina side"], side=side) for side in SIDES]
        vagina = scene.join([scene.tube(SHAPES["vagina"]), *sides], 0.0)
        ovaries = [scene.ellipsoid((40, 8, 42), (13, 10, 16), side=side) for side in SIDES]
    line = rectum_line(patient)
    rectum = scene.tube(line, blend_mm=2, with_axis=True)
    rectum.f += 1.2 * texture.lumps[rectum.box]
    bladder = build_bladder(scene, patient, texture)
    for organ in (prostate, seminal, uterus, vagina):
        if organ is not NOTHING:
            bladder = bladder.cut(scene.spread(organ), 0.0 if organ is prostate else 2.0)
            rectum = rectum.cut(scene.spread(organ), 2.2)
    bladder = bladder.cut(scene.spread(rectum), 5.0)
    return Organs(bladder, prostate, seminal, uterus, ovaries, vagina, rectum, line)


def paint_organs(scene: Scene, organs: Organs, patient: Patient, texture: Texture) -> None:
    """Draw the organs, those that yield first."""
    hu, blotch = patient.hu, texture.blotch
    end = organs.rectum_line[-1, :3]
    anal_canal = [end + (0, 1, 4), end + (0, 10, -9), end + (0, 20, -26)]
    scene.paint(scene.tube(anal_canal, [11.5, 12, 13], blend_mm=2), hu["muscle"] - 4)
    scene.paint(organs.vagina, hu["bladder_wall"] + 4 * blotch[organs.vagina.box])
    scene.paint(organs.uterus, hu["uterus"] + 4 * blotch[organs.uterus.box], IDS["uterus"])
    for ovary in organs.ovaries:
        scene.paint(ovary, 30.0 + 8 * blotch[ovary.box])
    paint_plexus(scene, organs.prostate, patient, texture)
    paint_rectum(scene, organs, patient, texture)
    scene.paint(organs.seminal, hu["seminal"] + 3 * texture.grain[organs.seminal.box], IDS["prostate"])
    paint_bladder(scene, organs.bladder, patient)
    if patient.sex == "male":
        paint_prostate(scene, organs.prostate, patient, texture)
    else:  # the urethra
        scene.paint(scene.tube(SHAPES["female urethra"]), hu["bladder_wall"])


def build_bladder(scene: Scene, patient: Patient, texture: Texture) -> Shape:
    """A sac on the prostate or pelvic floor that grows up and forwards; dish-shaped when nearly empty."""
    fullness = patient.bladder_fullness
    ratio = np.array([1.16, 0.98 + 0.05 * fullness, 0.56 + 0.5 * fullness])
    unit = (patient.bladder_ml * 1000 * 0.2387 * 1.06 / ratio.prod()) ** (1 / 3)
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
    sag = np.float32(8.0) * below * below  # the neck points down and back, to the prostate
    f = ellipsoid_distance(x / funnel, (y - sag) / funnel, z * flat, (a, b, c))
    f += np.float32(2.2 + 0.05 * unit) * texture.lumps[box]
    return Shape(box, f).within(np.float32(bottom - 2) - scene.z[box])


def paint_bladder(scene: Scene, bladder: Shape, patient: Patient) -> None:
    """Wall, urine, and contrast medium that sinks to the back in a late scan."""
    scene.paint(bladder, patient.hu["bladder_wall"], IDS["bladder"])
    lumen = bladder.inset(float(np.interp(patient.bladder_ml, [60, 150, 300, 500], [4.6, 3.6, 2.8, 2.2])))
    urine = np.full(lumen.f.shape, patient.hu["urine"], dtype=np.float32)
    y = scene.y[lumen.box]
    if patient.contrast == "excreted" and (lumen.f < 0).any():
        sunk = np.clip((y - np.quantile(y[lumen.f < 0], 0.45)) / 9 + 0.5, 0, 1)
        urine += sunk * np.float32(patient.hu["excreted"])
    scene.paint(lumen, urine)


def build_prostate(scene: Scene, patient: Patient, texture: Texture) -> Shape:
    """A chestnut below the bladder: broad base, narrow apex towards the front, a groove along the back."""
    a, b, c = (0.5 * v for v in patient.prostate_mm)
    center = prostate_center(patient)
    box, (x, y, z) = scene.around(center, max(a, b, c) + 10, pitch=patient.prostate_pitch)
    t = np.clip(z / c, -1, 1)
    taper = 1 - 0.24 * (0.5 - 0.5 * t) ** 1.4 - 0.05 * np.clip(t, 0, 1)
    side = x / a
    f = ellipsoid_distance(x / taper, (y - 0.30 * b * (side * side - 0.25)) / taper, z, (a, b, c))
    return Shape(box, f + 0.7 * texture.lumps[box])


def prostate_center(patient: Patient) -> np.ndarray:
    """Middle of the gland: its base touches the bladder neck, its back the rectum's front."""
    _, depth, height = patient.prostate_mm
    return np.array([0.0, 21.0 - 0.5 * depth, BLADDER_NECK[2] + 4.0 - 0.46 * height])


def paint_prostate(scene: Scene, prostate: Shape, patient: Patient, texture: Texture) -> None:
    """Central gland a little darker than the rim, a few specks of calcium, the urethra leaving below."""
    hu, t = patient.hu["prostate"], texture.on(prostate)
    scene.paint(prostate, hu + 2.0 + 3 * t.blotch, IDS["prostate"])
    scene.paint(prostate.inset(7.0), hu - 4.0 + 4 * t.blotch)
    scene.paint(prostate.inset(8.0).within((2.9 - t.grain) * 4), 260.0)
    height = patient.prostate_mm[2]
    apex = prostate_center(patient) - (0, 0, 0.44 * height)
    apex = apex + (0, -np.sin(patient.prostate_pitch) * 0.4 * height, 0)
    urethra = scene.tube([apex + (0, 0, -1), apex + (0, -2, -14), apex + (0, -12, -24)], [5.0, 5.5, 9.0])
    scene.paint(urethra.cut(scene.spread(prostate), 1.0), patient.hu["muscle"] - 4)


def paint_plexus(scene: Scene, prostate: Shape, patient: Patient, texture: Texture) -> None:
    """The veins around the gland, in front and at the sides: a soft rim with fat in between."""
    back = prostate_center(patient)[1] + 0.22 * patient.prostate_mm[1]
    rim = np.abs(prostate.f - 5.2) - 2.6 - 0.9 * texture.blotch[prostate.box]
    behind = scene.y[prostate.box] - np.float32(back)
    scene.paint(Shape(prostate.box, rim).within(behind), patient.hu["prostate"] - 22)


def build_seminal(scene: Scene, patient: Patient) -> Shape:
    """The seminal vesicles: a bow tie behind the bladder, on top of the prostate's base."""
    width, depth, height = patient.prostate_mm
    _, y, z = prostate_center(patient) + (0, 0.30 * depth, 0.40 * height)
    line = [(1, y, z), (0.55 * (0.5 * width), y + 4, z + 7), (0.5 * width + 7, y + 9, z + 13)]
    return scene.join([scene.tube(line, [6.5, 6.2, 5.0], side=side, blend_mm=2) for side in SIDES], 0.0)


def build_uterus(scene: Scene, patient: Patient, texture: Texture) -> Shape:
    """Womb tipped forward over the bladder, which lifts it as it fills."""
    cervix = np.array([0.0, 16.0, 0.0])
    a, b, c = patient.uterus_mm
    c *= 0.9
    lift = min(1.0, patient.bladder_ml / 450)
    lean = patient.uterus_pitch * (1 - 0.55 * lift)
    rise = np.cos(lean) * c * 0.8 + 8 + 12 * lift
    center = cervix + (patient.bladder_shift_mm[0], -np.sin(lean) * c * 0.8 + 8, rise)
    body = scene.ellipsoid(center, (a, b, c), pitch=lean)
    body.f += 1.6 * texture.lumps[body.box]
    neck = scene.tube([cervix + (0, 0, -6), cervix + (0, 2, 8), center], [11, 11, 13], blend_mm=3)
    return scene.join([body, neck], 0.0)


def rectum_line(patient: Patient) -> np.ndarray:
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


def paint_rectum(scene: Scene, organs: Organs, patient: Patient, texture: Texture) -> None:
    """Wall, then what it holds: gas in front of stool, mottled stool, or folded mucosa."""
    rectum, t = organs.rectum, texture.on(organs.rectum)
    scene.paint(rectum, patient.hu["rectum_wall"] + 3 * t.grain, IDS["rectum"])
    if patient.rectum_content == "collapsed":
        scene.paint(rectum.inset(organs.rectum_line[:, 3].mean() * 0.82 + 2.0 * t.blotch), -300.0)
        return
    lumen = rectum.inset(3.4 + 0.6 * t.blotch)
    if patient.rectum_content == "gel":
        scene.paint(lumen, patient.hu["gel"] + 10 * t.blotch)
    else:
        scene.paint(lumen, uneven_stool(patient.hu["stool"], t.grain, t.blotch))
    paint_gas(scene, lumen, {"gas": 0.68, "gel": 0.25, "stool": 0.2}[patient.rectum_content])
