"""A backbone under a bank of consolidated class weights: the model of CWR*.

V. Lomonaco, D. Maltoni, L. Pellegrini, "Rehearsal-Free Continual Learning over Small Non-I.I.D.
Batches", CVPR Workshops 2020, algorithm 1. With cw the consolidated weights of a class, tw the
trained ones, past_j how many samples of class j were seen before and cur_j how many there are now:

    before an experience: tw_j = cw_j for its classes, 0 for all others
    after it, for each class in it:
        wpast_j = sqrt(past_j / cur_j)
        cw_j    = (cw_j * wpast_j + tw_j - avg(tw)) / (wpast_j + 1)
        past_j  = past_j + cur_j

with avg(tw) the mean over all weights of the experience's classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.types import Experience
from strategies.continual.avalanche.networks.frozen_copy import frozen_copy

FAINT = 2.0**-20
"""Weight of what a client merely passes on: next to nothing beside what another one counted."""


class CwrNetwork(nn.Module):
    """In training it outputs the logits of tw; in evaluation those of cw, as if consolidated now.

    The bank before the present experience is a buffer, and so is what tw started from; the bank
    after it is derived whenever the model is evaluated. So it is right after every round, for the
    averaged weights, and no average of consolidated banks is ever taken.
    """

    bank: Tensor
    past: Tensor
    present: Tensor
    offset: Tensor
    experience: Tensor
    consolidations: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Linear, freeze_backbone: bool) -> None:
        """Build the model.

        Args:
            backbone: Outputs features (batch, d).
            head: Its weights (C, d) are where training starts from; its bias is not used.
            freeze_backbone: Whether the first experience alone trains the backbone.
        """
        super().__init__()
        self.backbone = backbone
        self.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
        self.frozen = frozen_copy(backbone) if freeze_backbone else None
        num_classes = len(self.weight)
        # cw (C, d) and past (C,) as of the present experience's start.
        self.register_buffer("bank", torch.zeros_like(self.weight))
        self.register_buffer("past", torch.zeros(num_classes))
        # (2, C): sum of counts and sum of weights; their ratio is cur.
        self.register_buffer("present", torch.zeros(2, num_classes))
        # tw is weight + offset: setting tw moves the buffer and leaves the parameter where the
        # server has it, so server momentum and control variates see no jump.
        self.register_buffer("offset", -self.weight.detach().clone())
        self.register_buffer("experience", torch.tensor(-1))
        self.register_buffer("consolidations", torch.tensor(0))

    def train(self, mode: bool = True) -> "CwrNetwork":
        """Set the mode of all but the frozen backbone, which stays in evaluation mode."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, C) of x (batch, *input_shape)."""
        fixed = self.frozen is not None and int(self.consolidations) > 0
        features = (self.frozen if fixed else self.backbone)(x)  # type: ignore[misc]
        return F.linear(features, self.trained if self.training else self.consolidated()[0])

    @property
    def trained(self) -> Tensor:
        """Tw, (C, d)."""
        return self.weight + self.offset

    @property
    def current(self) -> Tensor:
        """Cur, (C,): samples of each class, the mean over the clients that hold any."""
        total, weight = self.present
        return torch.where(weight > 0, total / weight.clamp(min=FAINT * FAINT), 0.0)

    def consolidated(self) -> tuple[Tensor, Tensor]:
        """Return cw (C, d) and past (C,) as they are if the present experience ends now."""
        current, trained = self.current, self.trained
        among = current > 0
        past_weight = (self.past / torch.where(among, current, 1.0)).sqrt()[:, None]
        shifted = trained - trained[among].mean()
        mixed = (self.bank * past_weight + shifted) / (past_weight + 1)
        return torch.where(among[:, None], mixed, self.bank), self.past + current

    @torch.no_grad()
    def enter(self, experience: Experience, progress: float | None) -> None:
        """Consolidate the experience before, if this is another one; count this client's samples.

        Clients differ in the classes they hold. Each sends its count of a class at weight 1, or
        passes on what it received at next to none, so the server's mean is over those that hold
        the class, as long as anybody in the cohort does.
        """
        if int(self.experience) != experience.index:
            if int(self.experience) >= 0:
                if self.frozen is not None and not int(self.consolidations):
                    self.frozen.load_state_dict(self.backbone.state_dict())
                self.bank, self.past = self.consolidated()
                self.consolidations = self.consolidations + 1
            start = torch.zeros_like(self.bank)
            start[list(experience.classes)] = self.bank[list(experience.classes)]
            self.offset = start - self.weight
            self.present = torch.zeros_like(self.present)
            self.experience = torch.full_like(self.experience, experience.index)
        labels = experience.samples.targets(experience.rows)
        counts = labels.bincount(minlength=len(self.past)).to(self.present)
        held = counts > 0
        faint = torch.stack([self.current * FAINT, torch.full_like(counts, FAINT)])
        self.present = torch.where(held, torch.stack([counts, held.to(counts)]), faint)
