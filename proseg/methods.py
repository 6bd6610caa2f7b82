"""The methods by name. A new one: a subclass of `Method` in its own module, its name here and in `TrainConfig`."""

from proseg.config import TrainConfig
from proseg.method import Method
from proseg.model import ProSeg
from proseg.multihead import MultiHeadUNet

METHODS: dict[str, type[Method]] = {"proseg": ProSeg, "multihead_unet": MultiHeadUNet}


def build(config: TrainConfig, *, channels: int, raters: int, classes: int = 1) -> Method:
    """The method that the configuration names, with fresh weights."""
    return METHODS[config.method](config, channels=channels, raters=raters, classes=classes)
