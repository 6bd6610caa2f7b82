"""The colours of raters, for all that draws them; needs neither matplotlib nor torch."""

RATER_COLOURS = ("#00a5ff", "#ffd000", "#ff3b8d", "#3ddc6e", "#b08bff", "#ff8c3b")
"""Apart from each other on grey, also for most who see colours differently; further raters repeat them."""
