"""Named sets of values for `TrainConfig.with_values`: how a training is set up where nothing else is said."""

from typing import Any

PAPER: dict[str, Any] = {
    "model.encoder": "shared", "model.patch": 1, "model.width": 16, "model.levels": 4, "model.z_channels": 16,
    "model.z_grid": None, "model.tau_size": 8, "model.concentration": 1.0, "model.predictor_width": 32,
    "loss.segmentation": "ce", "loss.w_rec": 1.0, "loss.w_cls": 1.0, "loss.beta_z": 1.0, "loss.beta_tau": 1.0,
    "loss.w_es": 0.0,
    "optim.name": "adam", "optim.lr": 1e-4, "optim.tau_lr_factor": 1.0, "optim.weight_decay": 0.0,
    "optim.schedule": "constant", "optim.grad_clip": None, "optim.ema": None, "optim.bf16": False,
    "data.flip": True, "data.rotate": 0.0, "batch_size": 12, "epochs": 100, "patience": 20,
}  # fmt: skip
"""App. C.1.1 and C.2, and the defaults of `TrainConfig`. The paper says neither the widths, nor the patience, nor by
what angles it rotates: here by quarter turns, `data.rotate` for others; it adds noise on NPC only (`data.noise`)."""

MODERN: dict[str, Any] = {
    "model.patch": 2, "model.width": 16, "model.levels": 4, "model.z_channels": 8, "model.z_grid": 8,
    "model.predictor_width": 16,
    "loss.segmentation": "ce_dice", "loss.w_rec": 0.1, "loss.w_cls": 0.1, "loss.beta_z": 0.03, "loss.beta_tau": 0.005,
    "loss.w_es": 1.0,
    "optim.name": "adamw", "optim.lr": 3e-3, "optim.weight_decay": 1e-4,
    "optim.schedule": "onecycle", "optim.grad_clip": 5.0, "optim.bf16": True,
}  # fmt: skip
"""What the search spaces start from: a quarter of the paper's CPU-seconds a step, and an energy score (README)."""

RECIPES = {"paper": PAPER, "modern": MODERN}
