"""Everything that decides the outcome of one training, and nothing about where it runs.

Frozen and complete: a value that is not allowed fails when the configuration is made, with its full name.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from proseg.errors import ConfigError


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelConfig(_Part):
    encoder: Literal["shared", "separate"] = "shared"
    """shared: one trunk and a posterior head for each rater, as in the authors' release; separate: a U-Net for each
    rater, as the paper's equations read. Without z the features of all of them meet in one map."""
    patch: PositiveInt = 1
    """Side of the square of pixels that is one cell of the network and of z, in pixels. 1: z is a map of the image's
    size, as in the paper; 2: a quarter of the cells, for several times the channels at the same cost."""
    width: PositiveInt = 16
    """Channels of the U-Net's first level; they double at each level down."""
    levels: int = Field(default=4, ge=1, le=7)
    """Resolutions of the U-Net, the full one included."""
    use_z: bool = True
    """Ablation: without z, one deterministic map of features serves all raters."""
    use_tau: bool = True
    """Ablation: without tau, the predictor is told nothing of the rater."""
    z_channels: PositiveInt = 16
    """Cz: channels of the spatial latent z."""
    z_grid: PositiveInt | None = None
    """Cells along the image's longer side on which the noise of z is drawn (then upsampled to the size of z).
    None, or not fewer than z has: independent noise in every cell of z, as in the paper. It counts cells, not pixels:
    on a larger image the same grid is coarser."""
    tau_size: int = Field(default=8, ge=2)
    """K: size of the Dirichlet latent tau, the rater's preference."""
    concentration: float = Field(default=1.0, ge=0.01)
    """alpha_0: concentration of the Dirichlet prior over tau."""
    predictor_width: PositiveInt = 32
    """Channels of the segmentation predictor p(y | tau, z)."""


class LossConfig(_Part):
    """Weights of the negative ELBO (eq. 8 and 9); the segmentation term has weight 1 and is the unit."""

    segmentation: Literal["ce", "dice", "ce_dice"] = "ce"
    """ce is the paper's; its authors' release trains on soft Dice."""
    w_rec: NonNegativeFloat = 1.0
    """Weight of the image's reconstruction, mean squared error."""
    w_cls: NonNegativeFloat = 1.0
    """Weight of the classification of the rater from tau, cross-entropy."""
    beta_z: NonNegativeFloat = 1.0
    """Weight of KL(q(z|x) || N(0, I)), a mean over elements: with a z_grid, of the marginals."""
    beta_tau: NonNegativeFloat = 1.0
    """Weight of KL(q(tau|r) || Dir(alpha_0))."""
    w_es: NonNegativeFloat = 0.0
    """Weight of the energy score (`proseg.losses.energy_score`); 0 is the paper's. It is taken of two draws for each
    rater, made as they will be generated: with tau from the prior. A method without noise has no use for it."""


class OptimConfig(_Part):
    name: Literal["adam", "adamw"] = "adam"
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    tau_lr_factor: PositiveFloat = 1.0
    """Learning rate of tau's embedding in units of lr; the authors' release has 40."""
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    """cosine: from the peak to zero; onecycle: a linear warm-up over the first 15 % of the steps before it."""
    grad_clip: PositiveFloat | None = None
    """Largest norm of the gradient; None: not clipped."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which then is what is validated and kept; None: no average."""
    bf16: bool = False
    """Automatic mixed precision on GPUs that have bfloat16; elsewhere float32."""
    compile: bool = False
    """torch.compile the model: faster steps after a slow first one; needs a C++ compiler."""


class DataConfig(_Part):
    crop: PositiveInt | None = None
    """Side of the central square that is cut out of every image, pixels; None: the whole image."""
    flip: bool = True
    """Augmentation: random mirror images and quarter turns, image and masks together."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Augmentation: largest angle of a random rotation about the centre, degrees."""
    noise: NonNegativeFloat = 0.0
    """Augmentation: standard deviation of Gaussian noise added to the normalised image."""


class TrainConfig(_Part):
    method: Literal["proseg", "multihead_unet"] = "proseg"
    """multihead_unet: the baseline, one deterministic head a rater on the same trunk."""
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 12
    """Images per optimiser step, over all ranks together."""
    patience: PositiveInt | None = 20
    """Training stops after so many epochs without a better validation objective; None: never."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initial weights, order, augmentation and latent noise."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time. A CPU's do anyway; a GPU's cost speed."""

    def with_values(self, values: Mapping[str, Any]) -> "TrainConfig":
        """A new configuration with some fields changed, named by their full path: `{"optim.lr": 1e-3}`.

        Raises:
            ConfigError: a name is not a field, or its value is not allowed.
        """
        changed = self.model_dump()
        for name, value in values.items():
            if name not in field_names():
                raise ConfigError(f"unknown field {name!r}; the fields are {', '.join(field_names())}")
            *parents, leaf = name.split(".")
            part = changed
            for parent in parents:
                part = part[parent]
            part[leaf] = value
        return parse(changed)

    def flat(self) -> dict[str, Any]:
        """All fields under their full path, in the order of the class."""
        return dict(_leaves(self.model_dump()))


def parse(values: Mapping[str, Any] | str) -> TrainConfig:
    """A configuration from nested values or from JSON.

    Raises:
        ConfigError: naming every field at fault and what is allowed.
    """
    try:
        if isinstance(values, str):
            return TrainConfig.model_validate_json(values)
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise ConfigError("; ".join(faults)) from None


def field_names() -> tuple[str, ...]:
    """The full path of every field."""
    return tuple(name for name, _ in _leaves(TrainConfig().model_dump()))


def _leaves(values: Mapping[str, Any], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
