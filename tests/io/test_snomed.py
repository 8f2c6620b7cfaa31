"Codes of classes in all the spellings that people use, with the side right."
import pytest

from ctseg.io.snomed import plain_name, snomed
from ctseg.io.totalsegmentator import total_parts

LEFT, RIGHT = "7771000", "24028007"
OTHER_TOTAL = """vertebrae_S1 kidney_cyst_left kidney_cyst_right prostate pulmonary_vein brachiocephalic_trunk subclavian_artery_left
    common_carotid_artery_right brachiocephalic_vein_left atrial_appendage_left superior_vena_cava sternum skull costal_cartilages
    thyroid_gland spinal_cord heart lung_vessels hip_implant coronary_arteries body_trunc body_extremities pleural_effusion
    subcutaneous_fat skeletal_muscle torso_fat patella tibia fibula tarsal metatarsal phalanges_feet ulna radius carpal metacarpal
    phalanges_hand liver_vessels liver_tumor intracerebral_hemorrhage lung_covid_infiltrate pericardial_effusion vertebrae_body
    lung_pleural lung_trachea_bronchia""".split()


@pytest.mark.parametrize("names, code, side", [
    (["kidney_left", "kidney_l", "Kidney_L", "Kidney L", "left kidney", "LKidney", "Lt_Kidney", "KIDNEY_LT", "L_Kidney"], "64033007", LEFT),
    (["parotid_r", "Parotid_R", "parotid_right", "Parotid Gland R", "right_parotid", "Glnd_Parotid_R"], "45289007", RIGHT),
    (["Glnd_Submand_L", "submandibular_l", "SubmandibularGland_L"], "385296007", LEFT),
    (["OpticNrv_R", "Optic_Nerve_R", "optic nerve right"], "18234004", RIGHT),
    (["Lung_L", "lung_left"], "39607008", LEFT),
    (["rib_right_12", "rib_12_right", "Rib_R_12", "rib_right12", "rib_12right"], "43993008", RIGHT),
    (["BrachialPlex_L"], "36582005", LEFT),
])
def test_one_structure_in_many_spellings(names, code, side):
    for name in names:
        codes = snomed(name)
        assert codes.structure.code == code and codes.side.code == side, name


@pytest.mark.parametrize("name, code", [
    ("SpinalCord", "2748008"), ("BrainStem", "119238007"), ("Brainstem", "119238007"), ("Bone_Mandible", "91609006"), ("Cavity_Oral", "74262004"),
    ("A_Aorta", "15825003"), ("V_Venacava_I", "64131007"), ("Bladder", "89837001"), ("Esophagus", "32849002"), ("Kidneys", "64033007"),
    ("vertebrae_L1", "66794005"), ("VB_T12", "23215003"), ("heart_atrium_left", "82471001"), ("Atrium_R", "73829009"),
    ("lung_middle_lobe_right", "72481006"), ("atrial_appendage_left", "33626005"),
])
def test_what_has_no_side_or_has_it_in_its_code(name, code):
    codes = snomed(name)
    assert codes.structure.code == code and codes.side is None


@pytest.mark.parametrize("name", ["aorta_left", "liver_l", "vertebrae_left", "PTV", "GTVp", "lparotid", "kidney_left_right", "tumour"])
def test_what_cannot_be_told_has_no_code(name):
    assert snomed(name).structure is None


def test_every_name_of_totalsegmentator_has_a_code():
    names = {part for version in (1, 2) for parts in total_parts(version).values() for part in parts} | set(
        OTHER_TOTAL
    )
    for name in names:
        codes = snomed(name)
        assert codes.structure is not None, name
        sides = {"left": LEFT, "right": RIGHT}
        own = next((side for side in sides if f"_{side}" in name), None)
        assert codes.side is None or codes.side.code == sides[own], name
    assert len(names) > 130


def test_the_side_of_a_cyst_is_that_of_its_kidney():
    codes = snomed("kidney_cyst_left")
    assert codes.side_of_region and codes.region.code == "64033007" and codes.category.code == "49755003"
    assert not snomed("kidney_left").side_of_region


def test_plain_names():
    assert [plain_name(n) for n in ("OpticNrv_L", "V_Venacava_I", " Eye  L ", "vertebrae_T10")] == [
        "optic_nrv_l",
        "v_venacava_i",
        "eye_l",
        "vertebrae_t10",
    ]
