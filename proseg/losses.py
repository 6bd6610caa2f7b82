"""The negative ELBO (eq. 7 to 9), every weight a field of the configuration."""

from dataclasses import dataclass

import torch
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from proseg.config import LossConfig
from proseg.data.batches import Batch
from proseg.model import Posterior, Prediction


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    """Scalar."""
    parts: dict[str, torch.Tensor]
    """The unweighted terms: seg, rec, cls, kl_z, kl_tau; scalars, detached."""


def elbo(prediction: Prediction, batch: Batch, config: LossConfig, concentration: float) -> Loss:
    """The objective of one batch: the mean over images of the mean over the raters that are present.

    A missing rater contributes nothing to any term. Because it is a mean over images, equal shards of a batch on
    several ranks average to the loss of the whole.
    """
    share = batch.rater_mask / batch.rater_mask.sum(1, keepdim=True)  # [B, R]

    def over_raters(term: torch.Tensor) -> torch.Tensor:  # [B, R] -> scalar
        return (term * share).sum(1).mean()

    classes = torch.arange(prediction.rater_logits.shape[1], device=share.device).expand(len(batch), -1)
    classification = F.cross_entropy(prediction.rater_logits.flatten(0, 1), classes.flatten(), reduction="none")
    terms = {
        "seg": over_raters(segmentation(prediction.logits, batch.annotations, config.segmentation)),
        "rec": F.mse_loss(prediction.reconstruction, batch.image),
        "cls": over_raters(classification.view_as(share)),
        "kl_z": over_raters(kl_z(prediction.posterior)),
        "kl_tau": over_raters(kl_tau(prediction.alpha, concentration).expand_as(share)),
    }
    weights = {"seg": 1.0, "rec": config.w_rec, "cls": config.w_cls, "kl_z": config.beta_z, "kl_tau": config.beta_tau}
    total = sum((weights[name] * term for name, term in terms.items()), torch.zeros((), device=share.device))
    return Loss(total, {name: term.detach() for name, term in terms.items()})


def segmentation(logits: torch.Tensor, annotations: torch.Tensor, kind: str) -> torch.Tensor:
    """-log p(y_r | tau_r, z_r), a mean over pixels, or one minus the soft Dice, or both. [B, R, H, W] -> [B, R]"""
    loss = torch.zeros(logits.shape[:2], device=logits.device)
    if kind in ("ce", "ce_dice"):
        loss = loss + F.binary_cross_entropy_with_logits(logits, annotations, reduction="none").mean((-2, -1))
    if kind in ("dice", "ce_dice"):
        p = torch.sigmoid(logits)
        overlap, areas = (p * annotations).sum((-2, -1)), (p + annotations).sum((-2, -1))
        loss = loss + 1 - (2 * overlap + 1) / (areas + 1)  # the ones: two empty masks agree
    return loss


def kl_z(posterior: Posterior) -> torch.Tensor:
    """KL(q(z_r | x) || N(0, I)), a MEAN over the elements of z (marginal variances). -> [B, R]"""
    mean, log_variance = posterior.mean, posterior.log_variance
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean((-3, -2, -1))


def kl_tau(alpha: torch.Tensor, concentration: float) -> torch.Tensor:
    """KL(q(tau_r | r) || Dir(alpha_0 * 1)) in closed form. [R, K] -> [R]"""
    # Unchecked: a NaN must come out as one, so that training can say in which step it arose.
    prior = Dirichlet(torch.full_like(alpha, concentration), validate_args=False)
    return kl_divergence(Dirichlet(alpha, validate_args=False), prior)
