"""The negative ELBO (eq. 7 to 9) and the energy score, every weight a field of the configuration.

Letters: B images, R raters, N draws, C channels, classes K (of foreground), H x W pixels.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from proseg.config import LossConfig
from proseg.data.batches import Batch
from proseg.latents import Posterior, kl_tau, kl_z


@dataclass(frozen=True)
class Prediction:
    """A draw of the latents for every rater, and what the objective needs of it. None: the model has no such part."""

    logits: torch.Tensor
    """[B, R, K, H, W], of p(y_r | tau_r, z_r); the background's is zero."""
    reconstruction: torch.Tensor | None = None
    """[B, C, H, W], of the image from one rater's z."""
    rater_logits: torch.Tensor | None = None
    """[B, R, R], of p(r | tau_r); the last axis is the class."""
    posterior: Posterior | None = None
    """[B, R, ...]"""
    alpha: torch.Tensor | None = None
    """[R, K], concentrations of q(tau_r | r)."""
    diverse: torch.Tensor | None = None
    """[B, R, N, K, H, W], logits of N independent draws in the name of each rater with tau from the prior (eq. 11), for
    the energy score."""

    def float(self) -> "Prediction":
        """In single precision: sums over an image do not fit into half of it."""
        tensors = {name: value.float() for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        p = self.posterior
        posterior = None if p is None else Posterior(p.mean.float(), p.log_variance.float())
        return replace(self, posterior=posterior, **tensors)


@dataclass(frozen=True)
class Loss:
    total: torch.Tensor
    """Scalar."""
    parts: dict[str, torch.Tensor]
    """The unweighted terms by name (seg, rec, cls, kl_z, kl_tau, es); scalars, detached."""


def objective(prediction: Prediction, batch: Batch, config: LossConfig, concentration: float = 1.0) -> Loss:
    """The loss of one batch: the mean over images of the mean over the raters that are present.

    A missing rater contributes nothing to any term. Because it is a mean over images, equal shards of a batch on
    several ranks average to the loss of the whole. Terms of parts that the model does not have are left out.
    """
    with torch.autocast(batch.image.device.type, enabled=False):
        return _objective(prediction.float(), batch, config, concentration)


def _objective(p: Prediction, batch: Batch, config: LossConfig, concentration: float) -> Loss:
    share = batch.rater_mask / batch.rater_mask.sum(1, keepdim=True)  # [B, R]

    def over_raters(term: torch.Tensor) -> torch.Tensor:  # [B, R] -> scalar
        return (term * share).sum(1).mean()

    terms = {"seg": (1.0, over_raters(segmentation(p.logits, batch.annotations, config.segmentation)))}
    if p.reconstruction is not None:
        terms["rec"] = config.w_rec, F.mse_loss(p.reconstruction, batch.image)
    if p.rater_logits is not None:
        raters = torch.arange(share.shape[1], device=share.device).expand(len(batch), -1)
        right = F.cross_entropy(p.rater_logits.flatten(0, 1), raters.flatten(), reduction="none")
        terms["cls"] = config.w_cls, over_raters(right.view_as(share))
    if p.posterior is not None:
        terms["kl_z"] = config.beta_z, over_raters(kl_z(p.posterior))
    if p.alpha is not None:
        terms["kl_tau"] = config.beta_tau, over_raters(kl_tau(p.alpha, concentration).expand_as(share))
    if p.diverse is not None:
        masks = planes(batch.annotations, p.diverse.shape[3])
        terms["es"] = config.w_es, energy_score(probabilities(p.diverse), masks, share).mean()
    total = torch.stack([weight * term for weight, term in terms.values()]).sum()
    return Loss(total, {name: term.detach() for name, (_, term) in terms.items()})


def planes(annotations: torch.Tensor, classes: int) -> torch.Tensor:
    """Label maps as one plane a class of foreground. [B, R, H, W] with labels 0..K -> [B, R, K, H, W] float32"""
    if classes == 1:
        return annotations[:, :, None].float()
    labels = torch.arange(1, classes + 1, device=annotations.device)
    return (annotations[:, :, None] == labels[:, None, None]).float()


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of every class of foreground: a softmax with the background's logit at zero. [..., K, H, W] -> the same"""
    if logits.shape[-3] == 1:
        return torch.sigmoid(logits)
    return torch.softmax(with_background(logits), -3)[..., 1:, :, :]


def with_background(logits: torch.Tensor) -> torch.Tensor:
    """[..., K, H, W] -> [..., 1 + K, H, W]"""
    return F.pad(logits, (0, 0, 0, 0, 1, 0))


def segmentation(logits: torch.Tensor, annotations: torch.Tensor, kind: str) -> torch.Tensor:
    """-log p(y_r | tau_r, z_r), a mean over pixels, or one minus the soft Dice (a mean over classes), or both.

    logits [B, R, K, H, W], annotations [B, R, H, W] with labels 0..K -> [B, R]
    """
    classes = logits.shape[2]
    truth = planes(annotations, classes)
    loss = torch.zeros(logits.shape[:2], device=logits.device)
    if kind in ("ce", "ce_dice"):
        if classes == 1:
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").squeeze(2)
        else:  # by planes: torch's cross-entropy over labels is not deterministic on a GPU
            entropy = torch.logsumexp(with_background(logits), 2) - (truth * logits).sum(2)
        loss = loss + entropy.mean((-2, -1))
    if kind in ("dice", "ce_dice"):
        p = probabilities(logits)
        overlap, areas = (p * truth).sum((-2, -1)), (p + truth).sum((-2, -1))
        loss = loss + (1 - (2 * overlap + 1) / (areas + 1)).mean(2)  # the ones: two empty masks agree
    return loss


def energy_score(samples: torch.Tensor, annotations: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """GED in a form that can be trained: 2 d(draws, annotations) - d(draws, draws) of the mixture of all raters.

    With a soft Jaccard distance d that is 0 between equal soft masks. Two draws of one rater stand for that rater's
    pairs, draws of different raters for the others, so that both means are unbiased whatever the number of draws. It
    is a proper score: least when the draws lie apart as the annotations do. The likelihood of one draw gains nothing
    from spread, and leaves both latents idle.

    Args:
        samples: [B, R, N, K, H, W] probabilities of N > 1 independent draws in the name of each rater.
        annotations: [B, R, K, H, W] in {0, 1}.
        share: [B, R], weights of the raters, summing to one in every image; zero where a rater is missing.

    Returns:
        [B], a mean over classes.
    """
    raters, draws = samples.shape[1:3]
    sets = torch.cat([samples, annotations[:, :, None]], 2).flatten(4).permute(0, 3, 1, 2, 4)  # [B, K, R, N + 1, P]
    flat = sets.flatten(2, 3)
    both = flat @ flat.mT  # every mask with every other, as one matrix product
    own = both.diagonal(dim1=-2, dim2=-1)
    union = own[..., :, None] + own[..., None, :] - both
    distance = 1 - (both + 1) / (union + 1)  # the ones: two empty masks agree
    distance = distance.unflatten(3, (raters, draws + 1)).unflatten(2, (raters, draws + 1))  # [B, K, R, N+1, R, N+1]
    pairs = draws * draws - draws * torch.eye(raters, device=share.device)  # a draw is no pair with itself
    apart = distance[:, :, :, :draws, :, :draws].sum((3, 5)) / pairs  # [B, K, R, R]
    astray = distance[:, :, :, :draws, :, draws].mean(3)
    return ((2 * astray - apart) * (share[:, :, None] * share[:, None, :])[:, None]).sum((2, 3)).mean(1)
