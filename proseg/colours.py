"""The colours of raters, for all that draws them; needs neither matplotlib nor torch."""

RATER_COLOURS = ("#00a5ff", "#ffd000", "#ff3b8d", "#3ddc6e", "#b08bff", "#ff8c3b",
                 "#6900ff", "#78ffff", "#5a691e", "#c300b4", "#964b78", "#e1001e")  # fmt: skip
"""Apart from each other and from grey; further raters repeat them."""


def rater_colour(rater: int) -> str:
    """The colour of the rater of this number, from 0."""
    return RATER_COLOURS[rater % len(RATER_COLOURS)]
