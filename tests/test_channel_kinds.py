"""Names of channels say whether they are label-free; builds, trainings and `init` all ask the one function."""

from __future__ import annotations

import pytest

from dynaclr_wds.channel_kinds import find_kind
from tests.test_init import facts, values_for

LABELFREE = (
    *("Phase", "Phase2D", "Phase3D", "S0_Phase3D", "PhaseContrast", "phase_contrast", "QuantPhase", "PhC", "PC"),
    *("Digital Phase Contrast", "DPC", "BF", "BF1", "bf-1", "BF_mid", "LED_BF", "BF_LED_Matrix_Full", "Brightfield"),
    *("BrightField", "Bright Field", "bright-field", "Brightfield_LED", "Brightfield QPI", "Darkfield", "DIC", "DIC2"),
    *("Nomarski", "TL", "TL10", "TL 10x", "TL-BF", "TL Phase", "Transmitted", "Transmitted Light", "Transmission"),
    *("Trans", "T-PMT Trans", "QPI", "QPM", "Holo", "Hologram", "Holotomography", "Refractive Index", "Retardance"),
    *("Retardance_PolScope", "Birefringence", "Polscope", "Polarized", "State1 Pol", "State0_Oblique", "Oblique"),
    *("Label-free", "labelfree", "label_free"),
)
FLUORESCENCE = (
    *("GFP", "EGFP", "BFP", "DAPI", "SiR-DNA", "FUCCI cyan", "raw mCherry EX561 EM605-52", "HaloTag", "TOMM20", ""),
    # words of label-free methods within others
    *("ATL1", "TL1A", "TLR4", "dicer", "DICER1", "indicator", "Pol2", "RNA Pol2", "POLR2A", "polarity marker", "PC3"),
    *("PCNA", "BFA", "Phosphatase", "interphase", "metaphase plate", "StarBright Blue", "LysoBrite", "Transferrin"),
    *("TransGolgi", "trans-Golgi", "viral_sensor", "State0"),
    # phases of the cell cycle
    *("S-phase reporter", "G1 phase", "M_phase"),
    # words of stains win
    *("MultiCam_GFP_BF", "Phase mCherry", "BF EX488 EM525-45", "Cy5 on DIC", "FUCCI phase"),
    *("nuclei_prediction", "nuclei_prediction from Phase3D", "Phase3D_virtual", "vs_BF"),
)


@pytest.mark.parametrize("name", LABELFREE)
def test_names_of_label_free_methods_are_known(name: str) -> None:
    assert find_kind(name) == "labelfree"


@pytest.mark.parametrize("name", FLUORESCENCE)
def test_every_other_name_is_fluorescence(name: str) -> None:
    assert find_kind(name) == "fluorescence"


THEIRS = {
    **dict.fromkeys(("Phase3D", "DIC", "Brightfield", "Retardance"), "labelfree"),
    **dict.fromkeys(
        (
            *("raw GFP EX488 EM525-45", "raw mCherry EX561 EM600-37", "raw Cy5 EX639 EM698-70", "MultiCam_GFP_BF"),
            *("GFP EX488 EM525-45", "mCherry EX561 EM600-37", "RFP", "White", "viral_sensor", "SEC61B", "G3BP1"),
            *("TOMM20", "HIST2H2BE", "CAAX", "pAL10", "pAL17", "mCherry", "membrane", "nucleus", "er", "mito"),
        ),
        "fluorescence",
    ),
}
"""Channels and markers of the collections and configs in mehta-lab/VisCy (June 2026), as its `parse_channel_name` has
them: everything that is not `labelfree` is reduced as fluorescence."""


@pytest.mark.parametrize(("name", "kind"), THEIRS.items())
def test_channels_of_the_reference_are_what_they_are_there(name: str, kind: str) -> None:
    assert find_kind(name) == kind


def test_init_drops_fluorescence_beside_the_channels_that_builds_take_for_label_free() -> None:
    channels = ("State0_Oblique", "MultiCam_GFP_BF", "TL", "ATL1")
    chosen = values_for(facts(channels=channels, shape=(4, 1, 64, 64)))["data.channel_dropout_channels"]
    assert (chosen.text, chosen.comment) == ("[1, 3]", "fluorescence by its name: MultiCam_GFP_BF, ATL1")
