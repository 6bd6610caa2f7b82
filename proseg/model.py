"""ProSeg: two latents, z for the ambiguity of the scan and tau for the preference of the rater (paper, section 4).

Letters: B images, R raters, M maps, C channels, Cz channels of z, K size of tau, H x W pixels, h x w cells of z.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributions import Dirichlet
from torch.nn import functional as F

from proseg.config import TrainConfig
from proseg.data.batches import Batch
from proseg.latents import Posterior, draw_dirichlet, grid_noise
from proseg.losses import Loss, Prediction, objective
from proseg.method import Draws, Method
from proseg.unet import Trunk, from_cells

LOG_VARIANCE_BOUND = 6.0
"""log sigma^2 lies in (-6, 6): an unbounded exponential is a known source of NaN."""
INITIAL_LOG_VARIANCE = -3.0
SMALLEST_ALPHA = 1e-2
TAU_WIDTH = 32
"""Hidden units of the two small networks that read tau."""
INITIAL_PREFERENCE = 8.0
"""What a rater's alpha has more than the prior's on the rater's own places of tau, at first."""
DRAWS_A_RATER = 2
"""Of the energy score, which needs two independent ones."""
CANDIDATES = 32
"""Draws from the prior of tau, among which one that is a given rater's is looked for."""


@dataclass(frozen=True)
class Encoding:
    """What the trunk says of a batch of images."""

    posterior: Posterior
    """q(z_r | x), [B, R, Cz, h, w]; without z only its mean counts, [B, 1, Cz, h, w]."""
    size: torch.Size
    """(H, W)"""


class ProSeg(Method):
    """A trunk (one, or one a rater), a posterior head for each rater, and ONE predictor for all raters.

    Without z (`model.use_z = false`) one deterministic map of features serves all raters; without tau
    (`model.use_tau = false`) the predictor is told nothing of the rater; without both it is a plain U-Net.
    """

    reach = 3  # heads and predictor are three 3x3 convolutions

    def __init__(self, config: TrainConfig, *, channels: int, raters: int, classes: int = 1):
        super().__init__(config, channels=channels, raters=raters, classes=classes)
        m = config.model
        z, hidden, pixels = m.z_channels, m.predictor_width, m.patch**2
        self.trunk = Trunk(channels, m, raters)
        # Every rater's head is a 3x3 convolution; side by side they are one.
        outputs = raters * 2 * z if m.use_z else z
        self.heads = nn.Conv2d(self.trunk.width, outputs, 3, padding=1, groups=self.trunk.copies if m.use_z else 1)
        if m.use_z:
            with torch.no_grad():  # little noise at first, so that the predictor hears the image before z's variance
                assert self.heads.bias is not None
                self.heads.bias.view(raters, 2, z)[:, 1] = INITIAL_LOG_VARIANCE
            self.decoder = nn.Sequential(
                nn.Conv2d(z, m.width, 3, padding=1), nn.LeakyReLU(0.1, inplace=True),
                nn.Conv2d(m.width, channels * pixels, 3, padding=1),
            )  # fmt: skip
        if m.use_tau:
            self.embedding = nn.Parameter(_initial_embedding(raters, m.tau_size, m.concentration))
            self.classifier = nn.Sequential(nn.Linear(m.tau_size, TAU_WIDTH), nn.ReLU(), nn.Linear(TAU_WIDTH, raters))
            # Not linear in tau: the prior lies between the raters, and is to spread wider than they do.
            first, last = nn.Linear(m.tau_size, TAU_WIDTH), nn.Linear(TAU_WIDTH, hidden, bias=False)
            nn.init.zeros_(last.weight)  # silent at first: its noise would drown the image
            self.from_tau = nn.Sequential(first, nn.LeakyReLU(0.1), last)
        # tau is constant over the image, so its share of the predictor's first convolution is a bias. No normalisation
        # follows: it would take a bias out again.
        self.from_z = nn.Conv2d(z, hidden, 3, padding=1)
        self.predictor = nn.Sequential(
            nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
        )  # fmt: skip
        self.to_logits = nn.Linear(hidden, classes * pixels)

    def forward(self, batch: Batch) -> Loss:
        prediction = self.predict(batch.image, batch.rater_mask)
        return objective(prediction, batch, self.config.loss, self.config.model.concentration)

    def predict(self, image: torch.Tensor, rater_mask: torch.Tensor) -> Prediction:
        """Draw z and tau for every rater, and for the energy score as `prior` does. [B, C, H, W], [B, R] bool."""
        m, (batch, raters) = self.config.model, rater_mask.shape
        encoding = self.encode(image)
        posterior = encoding.posterior
        z = posterior.draw(m.z_grid) if m.use_z else posterior.mean.expand(-1, raters, -1, -1, -1)
        alpha = self.alpha() if m.use_tau else None
        tau = None if alpha is None else Dirichlet(alpha.expand(batch, -1, -1), validate_args=False).rsample()
        # One present rater an image is enough for an unbiased estimate of the reconstruction term.
        chosen = torch.multinomial(rater_mask.float(), 1).squeeze(1)
        one_z = z[torch.arange(batch, device=z.device), chosen]
        return Prediction(
            logits=self._logits(z, tau, encoding.size),
            reconstruction=from_cells(self.decoder(one_z), m.patch, encoding.size) if m.use_z else None,
            rater_logits=None if tau is None else self.classify(tau),
            posterior=posterior if m.use_z else None,
            alpha=alpha,
            diverse=self._diverse(encoding) if self.config.loss.w_es else None,
        )

    def _diverse(self, encoding: Encoding) -> torch.Tensor:
        """Draws as `prior` makes them, but as many in the name of each rater: logits [B, R, N, K, H, W].

        They, and not those of q(tau_r | r), bear the spread: a tau of a rater's own asks for what that rater would
        draw, one from the prior for what anyone might.
        """
        m, shape = self.config.model, (len(encoding.posterior.mean), self.raters, DRAWS_A_RATER)
        tau = self._prior_of_each(shape) if m.use_tau else None
        posterior = encoding.posterior[:, :, None].expand(*shape)
        z = posterior.draw(m.z_grid) if m.use_z else posterior.mean
        return self._logits(z, tau, encoding.size)

    @torch.no_grad()
    def _prior_of_each(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """Taus from the prior that the classifier takes for each rater's. (B, R, N) -> [B, R, N, K]

        Where it finds none among the candidates, from q(tau_r | r).
        """
        alpha = self.alpha()
        own = alpha[:, None, None].expand(*shape, 1, -1)
        prior = torch.full_like(alpha[0], self.config.model.concentration).expand(*shape, CANDIDATES, -1)
        tau = Dirichlet(torch.cat([prior, own], 3), validate_args=False).sample()  # [B, R, N, candidates + 1, K]
        with torch.autocast(tau.device.type, enabled=False):  # or it might keep weights that know no gradient
            whose = self.classify(tau).argmax(-1)
        theirs = whose == torch.arange(self.raters, device=tau.device)[:, None, None]
        theirs[..., -1] = True
        first = theirs.float().argmax(-1)[..., None, None]
        return tau.take_along_dim(first, 3).squeeze(3)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return self.trunk(image)

    def encoding(self, features: torch.Tensor, size: torch.Size) -> Encoding:
        heads = self.heads(features).contiguous()
        if not self.config.model.use_z:
            return Encoding(Posterior(heads[:, None], heads[:, None]), size)
        heads = heads.unflatten(1, (self.raters, 2, self.config.model.z_channels))
        bounded = LOG_VARIANCE_BOUND * F.softsign(heads[:, :, 1] / LOG_VARIANCE_BOUND)
        return Encoding(Posterior(heads[:, :, 0], bounded), size)

    def alpha(self) -> torch.Tensor:
        """[R, K], concentrations of q(tau_r | r)."""
        return F.softplus(self.embedding) + SMALLEST_ALPHA

    def classify(self, tau: torch.Tensor) -> torch.Tensor:
        """Logits of p(r | tau). [..., K] -> [..., R]"""
        return self.classifier(self._standard(tau))

    def _standard(self, tau: torch.Tensor) -> torch.Tensor:
        """Of mean zero and unit variance under the prior: as they are, its places are about 1/K and hardly heard."""
        size = self.config.model.tau_size
        spread = math.sqrt((size - 1) / (size * self.config.model.concentration + 1)) / size
        return (tau - 1 / size) / spread

    def each_rater(self) -> Draws:
        alpha = self.alpha() if self.config.model.use_tau else None
        tau = None if alpha is None else (alpha / alpha.sum(1, keepdim=True))[None]
        return Draws(torch.arange(self.raters, device=self.device)[None], tau)

    def personal(self, images: int, count: int, generator: torch.Generator) -> Draws:
        who = torch.arange(self.raters, device=self.device).repeat_interleave(count)
        tau = draw_dirichlet(self.alpha()[who].expand(images, -1, -1), generator) if self.config.model.use_tau else None
        return Draws(who.expand(images, -1), tau, generator)

    def prior(self, images: int, count: int, generator: torch.Generator) -> Draws:
        """tau* ~ Dir(alpha_0); the classifier says whose preference it is like. Without tau: any rater, uniformly."""
        m = self.config.model
        if not m.use_tau:
            who = torch.randint(self.raters, (images, count), generator=generator, device=generator.device).to(
                self.device
            )
            return Draws(who, None, generator)
        alpha = torch.full((images, count, m.tau_size), m.concentration, device=self.device)
        tau = draw_dirichlet(alpha, generator)
        return Draws(self.classify(tau).argmax(-1), tau, generator)

    def decode(self, encoding: Encoding, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        m = self.config.model
        whose = image, draws.who if m.use_z else torch.zeros_like(draws.who)
        z = encoding.posterior.mean[whose]
        if m.use_z and draws.generator is not None:
            noise = grid_noise(z.shape, m.z_grid, draws.generator.device, draws.generator, draws.lattice)
            z = torch.addcmul(z, encoding.posterior.deviation[whose], noise.to(z))
        return self._logits(z, draws.tau, encoding.size)

    def _logits(self, z: torch.Tensor, tau: torch.Tensor | None, size: torch.Size) -> torch.Tensor:
        """p(y | tau, z). z [..., Cz, h, w], tau [..., K] -> [..., classes, H, W]"""
        hidden = self.from_z(z.flatten(0, -4).contiguous(memory_format=torch.channels_last))
        if tau is not None:
            hidden = hidden + self.from_tau(self._standard(tau)).flatten(0, -2)[:, :, None, None]
        # A linear layer over the channels, which lie together in memory: a 1x1 convolution is slower.
        logits = self.to_logits(self.predictor(hidden).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return from_cells(logits, self.config.model.patch, size).unflatten(0, z.shape[:-3])


def _initial_embedding(raters: int, size: int, concentration: float) -> torch.Tensor:
    """[R, K]. Every rater starts at the prior, leaning strongly to places of its own.

    So the classifier soon tells the raters apart and shares the prior among them evenly, and the predictor can tell a
    tau of a rater's own, which asks for that rater's outline, from most of the prior's, which ask for anyone's.
    """
    own = torch.arange(size) % raters == (torch.arange(raters) % size)[:, None]
    alpha = concentration + INITIAL_PREFERENCE * own * (raters > 1)
    above = (alpha.double() - SMALLEST_ALPHA).clamp(min=SMALLEST_ALPHA)
    return (above + torch.log(-torch.expm1(-above))).float()  # the inverse of softplus, for any size
