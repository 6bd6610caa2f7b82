"""Named sets of values for `TrainConfig.with_values`: how a training is set up where nothing else is said."""

from typing import Any

PAPER: dict[str, Any] = {
    "model.patch": 1, "model.z_grid": None, "model.tau_size": 8, "model.concentration": 1.0,
    "loss.segmentation": "ce", "loss.w_es": 0.0,
    "optim.name": "adam", "optim.lr": 1e-4, "optim.schedule": "constant", "optim.ema": None,
    "batch_size": 12, "epochs": 100, "patience": 20,
}  # fmt: skip
"""App. C.2: what the paper states, and the defaults of `TrainConfig`. It stops early, but does not say after how many
epochs; 20 is ours."""

MODERN: dict[str, Any] = {
    "model.patch": 2, "model.width": 16, "model.levels": 4, "model.z_channels": 8, "model.z_grid": 16,
    "model.predictor_width": 16,
    "loss.segmentation": "ce_dice", "loss.w_rec": 0.1, "loss.w_cls": 0.1, "loss.beta_z": 0.03, "loss.beta_tau": 0.05,
    "loss.w_es": 0.5,
    "optim.name": "adamw", "optim.lr": 3e-3, "optim.weight_decay": 1e-4,
    "optim.schedule": "onecycle", "optim.grad_clip": 5.0, "optim.bf16": True,
}  # fmt: skip
"""Reaches a better GED in a fraction of the paper's cost (`benchmarks/`); the ground the search spaces stand on."""

RECIPES = {"paper": PAPER, "modern": MODERN}
