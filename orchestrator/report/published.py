"""What the ProSeg paper publishes: its tables, to stand beside a study's own numbers and never among them.

Transcribed from the paper: Table 1 (LIDC-IDRI), 2 (ablation), 3 (NPC), 6 (cost) and 9 (decomposed GED). Dice in percent
there, fractions here, under the names of `proseg.evaluate`.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lidc", "npc"]

ALONE, EACH, FIFTY = "1 (one U-Net)", "4 (one a rater)", "50 (prior)"
"""S: how a row was sampled. The paper states 50 only; one a rater is what it says of personalised methods elsewhere."""
QUALITY = ("ged", "dice_soft", "dice_max", "dice_match", "dice_a1", "dice_a2", "dice_a3", "dice_a4", "dice_mean")


@dataclass(frozen=True)
class PublishedRow:
    method: str
    samples: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class PublishedTable:
    number: int
    """Of the table in the paper."""
    data: str
    split: str
    rows: tuple[PublishedRow, ...]

    @property
    def source(self) -> str:
        return f"ProSeg paper, Table {self.number}"


@dataclass(frozen=True)
class Likeness:
    """How data at hand are like a data set of the paper."""

    kind: Kind
    differs: str
    """In what they differ from the paper's, for the column of every published row beside them."""


LIKE = {
    "real contours, simulated intensities": Likeness("lidc", "other images, other split"),
    "LIDC-IDRI": Likeness("lidc", "other split"),
    "LIDC-IDRI, 8-bit crops of MedicalMatting": Likeness("lidc", "other split"),
    "NPC (MMIS-2024 task 1)": Likeness("npc", "other experiment"),
    "NPC stand-in: synthetic volumes, no patient, no expert": Likeness("npc", "other data"),
}
"""By the label that a source gives its data (proseg.data.lidc_contours, lidc_dicom, lidc_pickle, npc: slow to import, a
test compares them). To data of anybody else nothing published is put beside."""


def _quality(text: str, samples: str) -> tuple[PublishedRow, ...]:
    """Rows as the paper prints them, `method: GED D_soft D_max ...`; a dash is what it leaves out."""
    rows = []
    for line in text.strip().splitlines():
        method, numbers = line.rsplit(":", 1)
        cells = zip(QUALITY, numbers.split(), strict=False)
        metrics = {name: float(cell) / (1 if name == "ged" else 100) for name, cell in cells if cell != "-"}
        rows.append(PublishedRow(method.strip(), samples, metrics))
    return tuple(rows)


LIDC_SPLIT = "4 folds, by patient says the paper, by slice or study in public code"
NPC_SPLIT = "80 / 20 / 20 subjects, one split"

_LIDC = PublishedTable(
    1, "LIDC-IDRI, CT", LIDC_SPLIT,
    _quality("""
        U-Net (A1): .3062 86.59 - - 87.80 87.47 85.49 80.67 85.36
        U-Net (A2): .2459 88.43 - - 87.16 89.08 88.59 85.15 87.50
        U-Net (A3): .2436 88.20 - - 85.29 88.48 89.40 87.20 87.59
        U-Net (A4): .2962 85.83 - - 80.80 85.48 88.22 88.90 85.85
    """, ALONE)
    + _quality("""
        Prob. U-Net: .2168 88.80 88.87 88.81
        D-Persona (I): .1358 90.45 91.37 91.33
        ProSeg (prior): .1077 91.62 91.46 91.43
    """, FIFTY)
    + _quality("""
        CM-Global: .2432 88.53 87.51 87.51 86.13 88.76 88.99 86.18 87.51
        CM-Pixel: .2407 88.64 87.72 87.72 85.99 88.81 89.31 86.77 87.72
        TAB: .2322 86.35 87.11 86.08 85.00 86.35 86.77 85.77 85.97
        Pionono: .1502 90.00 90.10 88.97 87.94 89.11 89.55 88.76 88.84
        D-Persona (II): .1444 90.31 90.38 89.17 88.54 89.50 90.03 88.60 89.17
        ProSeg: .1152 91.53 91.03 90.25 89.49 90.27 91.01 90.23 90.25
    """, EACH),
)  # fmt: skip
_NPC = PublishedTable(
    3, "NPC, MR", NPC_SPLIT,
    _quality("""
        U-Net (A1): .4531 76.48 - - 85.93 72.09 72.11 75.79 76.48
        U-Net (A2): .4636 77.10 - - 79.51 77.10 74.10 74.13 76.21
        U-Net (A3): .5057 75.40 - - 76.13 75.91 77.38 74.47 75.97
        U-Net (A4): .5606 71.17 - - 78.79 71.05 70.80 74.33 73.74
    """, ALONE)
    + _quality("""
        Prob. U-Net: .3614 80.94 82.42 79.95
        D-Persona (I): .2133 83.24 81.52 80.25
        ProSeg (prior): .2182 84.36 83.28 82.43
    """, FIFTY)
    + _quality("""
        CM-Global: .3755 80.69 79.62 79.62 85.53 77.34 77.04 79.58 79.62
        CM-Pixel: .3678 80.92 79.86 79.86 85.09 77.08 77.37 79.91 79.86
        TAB: .3159 81.84 80.88 80.64 85.63 77.76 78.80 80.36 80.64
        Pionono: .3309 81.65 80.59 80.42 85.44 77.84 77.62 80.77 80.42
        D-Persona (II): .2866 82.45 81.37 80.96 85.92 78.23 79.45 80.23 80.96
        ProSeg: .2272 84.24 82.36 82.07 87.48 79.39 80.66 80.77 82.07
    """, EACH),
)  # fmt: skip
FINAL: dict[Kind, PublishedTable] = {"lidc": _LIDC, "npc": _NPC}
"""Tables 1 and 3."""
ABLATION: dict[Kind, PublishedTable] = {
    "npc": PublishedTable(2, "NPC, MR", NPC_SPLIT, _quality("""
        neither: .3639 80.58 79.77 79.69
        tau: .3091 82.10 81.19 80.98
        z: .2566 83.33 81.92 81.51
        both: .2272 84.24 82.36 82.07
    """, EACH))
}  # fmt: skip
"""Table 2, by which latents the model has; the paper has none for LIDC-IDRI."""


def _decomposed(method: str, samples: str, ged: float, d_pp: float, d_pa: float) -> PublishedRow:
    return PublishedRow(method, samples, {"ged": ged, "d_pp": d_pp, "d_pa": d_pa, "d_aa": 0.2951})


DECOMPOSED: dict[Kind, PublishedTable] = {
    "npc": PublishedTable(9, "NPC, MR", NPC_SPLIT, (
        _decomposed("Prob. U-Net", FIFTY, 0.3614, 0.0075, 0.3320),
        _decomposed("D-Persona (I)", FIFTY, 0.2133, 0.2212, 0.3648),
        _decomposed("ProSeg (prior)", FIFTY, 0.2182, 0.1865, 0.3499),
        _decomposed("CM-Global", EACH, 0.3755, 0.0000, 0.3353),
        _decomposed("CM-Pixel", EACH, 0.3678, 0.0000, 0.3314),
        _decomposed("TAB", EACH, 0.3159, 0.0578, 0.3344),
        _decomposed("Pionono", EACH, 0.3309, 0.0317, 0.3289),
        _decomposed("D-Persona (II)", EACH, 0.2866, 0.0913, 0.3365),
        _decomposed("ProSeg", EACH, 0.2272, 0.1739, 0.3482),
    ))
}  # fmt: skip
"""Table 9; the paper has none for LIDC-IDRI."""
COST_COLUMNS = ("training, MB", "training, s", "inference, MB", "inference, s")
COST = (
    ("CM-Global", 402.06, 10.39, 201.41, 0.23),
    ("CM-Pixel", 404.16, 15.52, 201.74, 0.26),
    ("Pionono", 410.71, 25.11, 202.42, 1.07),
    ("D-Persona (I)", 471.22, 22.75, 916.54, 2.57),
    ("D-Persona (II)", 407.29, 19.95, 241.91, 0.99),
    ("ProSeg", 411.32, 17.51, 202.42, 1.05),
)
"""Table 6, on an RTX 4090; the paper does not say of what these seconds are, nor on which data."""
