"""Names and sides in any language, which structures are mirror images, and what is not mirrored."""

from __future__ import annotations

import pytest

from ctseg import laterality
from ctseg.errors import UsageError
from ctseg.laterality import Sides, find_sides, side_of, spelling
from ctseg.manifest import to_record

PAIRS = [
    ("kidney_left", "kidney_right"),
    ("LeftKidney", "RightKidney"),
    ("Kidney_L", "Kidney_R"),
    ("L_Kidney", "R_Kidney"),
    ("LKidney", "RKidney"),
    ("KidneyL", "KidneyR"),
    ("LKIDNEY", "RKIDNEY"),
    ("lkidney", "rkidney"),
    ("leftkidney", "rightkidney"),
    ("Kidney LT", "Kidney RT"),
    ("Kidney (L)", "Kidney (R)"),
    ("Kidney_L*", "Kidney_R*"),
    ("LPlexus", "RPlexus"),
    ("Lung_LUL", "Lung_RUL"),
    ("LK", "RK"),
    ("LAG", "RAG"),
    ("left", "right"),
    ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
    ("4L", "4R"),
    ("Niere_links", "Niere_rechts"),
    ("Linke Niere", "Rechte Niere"),
    ("Niere li", "Niere re"),
    ("Niere_li.", "Niere_re."),
    ("Niere lks", "Niere rts"),
    ("Rein gauche", "Rein droit"),
    ("Glande droite", "Glande gauche")[::-1],
    ("Rein_G", "Rein_D"),
    ("Poumon Gche", "Poumon Dte"),
    ("Riñón izquierdo", "Riñón derecho"),
    ("Rinon_izq", "Rinon_der"),
    ("Pulmon Izda", "Pulmon Dcha"),
    ("Rene sinistro", "Rene destro"),
    ("Rene sx", "Rene dx"),
    ("Rene_sin", "Rene_dx"),
    ("linkernier", "rechternier"),
    ("nier links", "nier rechts"),
    ("Rim esquerdo", "Rim direito"),
    ("Rim_esq", "Rim_dir"),
    ("ren sinister", "ren dexter"),
    ("ren sin", "ren dext"),
    ("左肾", "右肾"),
    ("左腎", "右腎"),
    ("肾_左", "肾_右"),
    ("左側腎臓", "右側腎臓"),
    ("왼쪽 신장", "오른쪽 신장"),
    ("левая почка", "правая почка"),
    ("αριστερός νεφρός", "δεξιός νεφρός"),
    ("ＬＥＦＴ＿Ｋｉｄｎｅｙ", "Kidney_R"),
    ("Kidney_links", "rechte Kidney"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_left_and_right_are_seen_in_the_languages_and_spellings_in_use(pair):
    assert find_sides(["liver", *pair[::-1]]).pairs == (pair,)
    assert find_sides(pair).lone == ()


@pytest.mark.parametrize(
    "name",
    [
        "kidney_left",
        "Kidney_R",
        "LKidney",
        "RLung",
        "LPlexus",
        "KidneyL",
        "Niere_links",
        "Niere_re",
        "Rein gauche",
        "Riñón derecho",
        "Rene sx",
        "左肾",
        "linkernier",
        "Lung_RML",
        "Kidney_L'",
    ],
)
def test_a_name_of_one_side_without_its_partner_is_told(name):
    assert find_sides(["liver", name]).lone == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "liver",
        "Lung",
        "Lungs",
        "Rectum",
        "Lens",
        "Retina",
        "Larynx",
        "Lips",
        "Rib_4",
        "L1",
        "L5",
        "vertebrae_L1",
        "Vertebra L 4",
        "VB_L3",
        "LWK 2",
        "Disc L4-L5",
        "Sinus",
        "sinus_frontal",
        "cleft",
        "bright_spot",
        "optical_chiasm",
        "heart_atrium_left",
        "left ventricle",
        "左心房",
        "linker Ventrikel",
        "LV",
        "LA",
        "LAD",
        "LCA",
        "PTV_504",
        "GTV_d",
        "CTV der Brust",
        "Gallbladder",
        "Kidneys_L_R",
        "Corps_vertebral",
        "urinary_bladder",
        "Recto",
        "Gaumen",
        "dexamethasone",
        "🫀",
        "***",
        "...",
    ],
)
def test_what_only_looks_like_a_side_is_none(name):
    assert find_sides(["aorta", name]) == Sides((), ())


def test_short_words_mean_sides_only_where_the_data_set_says_so():
    assert side_of("Rein_G") is None and find_sides(["Rein_G", "Poumon_G"]) == Sides((), ())
    assert find_sides(["Rein_G", "Rein_D", "Poumon_G"]) == Sides((("Rein_G", "Rein_D"),), ("Poumon_G",))
    assert find_sides(["PTV_G", "GTV_D", "LVOT", "RVOT", "LCA", "RCA", "L1", "R1"]) == Sides((), ())


def test_two_names_of_one_side_make_no_pair():
    assert find_sides(["Kidney_L", "LeftKidney", "Kidney_R"]) == Sides(
        (), ("Kidney_L", "LeftKidney", "Kidney_R")
    )


def test_declared_pairs_count_and_contradictions_are_refused():
    sides = find_sides(
        ["a", "b", "kidney_right", "kidney_left", "x_left"], [("a", "b"), ("kidney_right", "kidney_left")]
    )
    assert sides == Sides((("a", "b"), ("kidney_left", "kidney_right")), ("x_left",))
    assert Sides.of(to_record(sides), []) == sides
    assert sides.indices(["kidney_right", "b", "a"]) == [(2, 1)] and sides.one_sided(
        ["a", "kidney_right", "b", "x_left"]
    ) == ["kidney_right", "x_left"]
    for pairs in ([("a", "b"), ("b", "c")], [("a", "a")]):
        with pytest.raises(UsageError, match="twice"):
            find_sides(["a", "b", "c"], pairs)


def test_a_guide_organ_is_no_partner_and_needs_its_own():
    assert laterality.one_sided(None, ["liver"], ["kidney_left", "kidney_right"]) == []
    assert laterality.one_sided(None, ["kidney_left"], ["kidney_right"]) == ["kidney_left", "kidney_right"]
    assert laterality.one_sided(None, ["liver"], ["adrenal_left"]) == ["adrenal_left"]


_BOTH = [
    "adrenal_gland",
    "autochthon",
    "clavicula",
    "femur",
    "gluteus_maximus",
    "gluteus_medius",
    "gluteus_minimus",
    "hip",
    "humerus",
    "iliac_artery",
    "iliac_vena",
    "iliopsoas",
    "kidney",
    "lung_lower_lobe",
    "lung_upper_lobe",
    "scapula",
    "brachiocephalic_vein",
    "common_carotid_artery",
    "subclavian_artery",
]
_VERTEBRAE = [
    f"vertebrae_{name}"
    for name in (
        *(f"C{n}" for n in range(1, 8)),
        *(f"T{n}" for n in range(1, 13)),
        *(f"L{n}" for n in range(1, 6)),
        "S1",
    )
]
_SINGLE = [
    "aorta",
    "atrial_appendage_left",
    "brachiocephalic_trunk",
    "brain",
    "colon",
    "costal_cartilages",
    "duodenum",
    "esophagus",
    "gallbladder",
    "heart",
    "heart_atrium_left",
    "heart_atrium_right",
    "heart_myocardium",
    "heart_ventricle_left",
    "heart_ventricle_right",
    "inferior_vena_cava",
    "liver",
    "pancreas",
    "portal_vein_and_splenic_vein",
    "prostate",
    "pulmonary_artery",
    "pulmonary_vein",
    "sacrum",
    "skull",
    "small_bowel",
    "spinal_cord",
    "spleen",
    "sternum",
    "stomach",
    "superior_vena_cava",
    "thyroid_gland",
    "trachea",
    "urinary_bladder",
    "face",
]
TOTAL = [
    *(f"{name}_{side}" for name in _BOTH for side in ("left", "right")),
    *(f"rib_{side}_{n}" for n in range(1, 13) for side in ("left", "right")),
    *_VERTEBRAE,
    *_SINGLE,
]
TG263 = [
    f"{name}_{side}"
    for side in "LR"
    for name in (
        "A_Carotid",
        "Bag_Ostomy",
        "BrachialPlex",
        "Breast",
        "Cochlea",
        "Ear_Internal",
        "Eye",
        "Femur",
        "Femur_Head",
        "Glnd_Adrenal",
        "Glnd_Lacrimal",
        "Glnd_Submand",
        "Hippocampus",
        "Kidney",
        "Lens",
        "LN_Ax_L1",
        "LN_Neck_II",
        "Lobe_Temporal",
        "Lung",
        "OpticNrv",
        "Parotid",
        "Retina",
        "Rib04",
        "SeminalVes",
    )
] + [
    "A_Aorta",
    "A_LAD",
    "Atrium_L",
    "Bladder",
    "Bowel_Large",
    "Bowel_Small",
    "Brainstem",
    "Cartlg_Thyroid",
    "Cavity_Oral",
    "Heart",
    "Kidneys",
    "Larynx",
    "Lips",
    "Liver",
    "Lungs",
    "Musc_Constrict",
    "OpticChiasm",
    "PenileBulb",
    "Pituitary",
    "Prostate",
    "Rectum",
    "SpinalCord",
    "SpinalCord_PRV05",
    "VB_L1",
    "VB_T12",
    "Ventricle_L",
]
OTHERS = {
    "AMOS": "spleen;right kidney;left kidney;gall "
    "bladder;esophagus;liver;stomach;arota;postcava;pancreas;right adrenal gland;left adrenal "
    "gland;duodenum;bladder;prostate/uterus",
    "FLARE": "Liver;Right kidney;Spleen;Pancreas;Aorta;Inferior Vena Cava;Right Adrenal Gland;Left "
    "Adrenal Gland;Gallbladder;Esophagus;Stomach;Duodenum;Left kidney",
    "OpenKBP": "Brainstem;SpinalCord;RightParotid;LeftParotid;Esophagus;Larynx;Mandible;PTV56;PTV63;PTV70",
    "MSD": "liver;cancer;pancreas;hepatic vessels;tumour;spleen;colon cancer primaries;left "
    "atrium;Anterior;Posterior",
    "VerSe": ";".join(f"{part}{n}" for part in "CTL" for n in range(1, 7)),
    "CTPelvic1K": "sacrum;right_hip;left_hip;lumbar_vertebra",
}


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (TOTAL, len(_BOTH) + 12),
        (TG263, 24),
        *(
            (text.split(";"), {"AMOS": 2, "FLARE": 2, "OpenKBP": 1, "CTPelvic1K": 1}.get(name, 0))
            for name, text in OTHERS.items()
        ),
    ],
)
def test_class_lists_in_use_have_their_pairs_and_no_others(names, pairs):
    found = find_sides(names)
    swapped = {"left": "right", "right": "left", "l": "r", "r": "l"}
    assert len(found.pairs) == pairs and found.lone == ()
    assert all(
        [swapped.get(word, word) for word in laterality.words_of(left)] == laterality.words_of(right)
        for left, right in found.pairs
    )
    assert len({spelling(name) for name in names}) == len(names)  # no two of them are taken for one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("肝臓", "脾臓"),
        ("печень", "селезёнка"),
        ("كبد", "طحال"),
        ("यकृत", "प्लीहा"),
        ("CTV+1cm", "CTV-1cm"),
        ("CTV+1cm", "CTV1cm"),
        ("CTV-1cm", "CTV1cm"),
        ("LN+", "LN-"),
        ("PTV_50.4", "PTV_504"),
        ("PTV_50_4", "PTV_504"),
        ("PTV-Rectum", "PTV Rectum"),
        ("GTV'", "GTV"),
        ("GTV*", "GTV"),
        ("🫀", "🫁"),
        ("***", "**"),
        ("...", "___"),
        ("μ", "m"),
        ("Höhle", "Hohle"),
        ("CTV_L+1cm", "CTV_L-1cm"),
        ("T1_2", "T12"),
        ("L1", "L"),
        ("肝 1", "肝 2"),
        ("α", "β"),
        ("左肺", "右肺"),
    ],
)
def test_different_names_have_different_keys(one, other):
    assert spelling(one) != spelling(other) and all(any(spelling(name)) for name in (one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Größe", "Gro\u0308ße"),
        ("ＬＩＶＥＲ", "liver"),
        ("µ-Organ", "μ-organ"),
        ("GTV1", "GTV_1"),
        ("CTV−1cm", "CTV-1cm"),
        ("肝臓 ", "肝臓"),
        ("liver\u200b", "Liver"),
        ("左 肾", "左肾"),
        ("ΉΠΑΡ", "ήπαρ"),
    ],
)
def test_spellings_of_one_name_have_one_key(one, other):
    assert spelling(one) == spelling(other)
