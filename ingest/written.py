"""What heads write into the residual stream, and what of it a later reader sees.

Vectors of size d_model are never formed per head: a head's output z W_O meets a direction d as
z (W_O d), so one product of the directions with W_O^T serves all heads.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FrozenNorm:
    """A norm as the linear map that it is once its per-token scale is given.

    norm(x) = scale(x) * gain * C x + bias, where C takes the mean off (LayerNorm) or is the
    identity (RMSNorm), as in Elhage et al. 2021 ("A Mathematical Framework for Transformer
    Circuits", Handling Layer Normalization).
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    is_centring: bool

    @classmethod
    def of(cls, norm: nn.Module, d_model: int, device: torch.device | str) -> "FrozenNorm":
        """Read off gain and bias from what the norm makes of three inputs.

        Architectures keep the gain as w, 1 + w or not at all; asked for its values, every norm
        answers alike. Whether it is of this form at all is for the caller to prove.
        """
        exact = copy.deepcopy(norm).float()
        ones = torch.ones(d_model, device=device)
        # Large, so that what the norm adds to the variance does not count.
        mixed = 1e3 * (1 - 2 * (torch.arange(d_model, device=device) % 2)).float()
        with torch.inference_mode():
            bias = exact(0 * ones)
            of_ones, of_mixed = exact(ones) - bias, exact(mixed) - bias
        is_centring = bool(of_ones.abs().max() < 1e-3 * of_mixed.abs().max())
        centred = mixed - mixed.mean() if is_centring else mixed
        gain = of_mixed / centred * centred.square().mean().sqrt()
        return cls(gain=gain.clone(), bias=bias.clone(), is_centring=is_centring)

    def unscaled(self, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
        """What the norm makes of x but for scale and bias: gain * C x."""
        x = x.float()
        return self.gain * (x - x.mean(dim=-1, keepdim=True) if self.is_centring else x)

    def scale(
        self, x: Float[Tensor, "*token d_model"], normed: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, " *token"]:
        """Of each token, from what went in and what came out; NaN where the norm passes nothing.

        The best fit over all dimensions, in which the rounding of 16-bit outputs averages out.
        """
        unscaled = self.unscaled(x)
        fit = ((normed.float() - self.bias) * unscaled).sum(dim=-1)
        return fit / unscaled.square().sum(dim=-1)

    def pulled_back(
        self, directions: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, "*token d_model"]:
        """C^T (gain * d): meets x as d meets `unscaled(x)`."""
        pulled = self.gain * directions
        return pulled - pulled.mean(dim=-1, keepdim=True) if self.is_centring else pulled


@dataclass(frozen=True, kw_only=True)
class HeadOutputs:
    """One layer's heads at some positions of a batch of sequences, in float32.

    Head h writes o_h = z_h W_O^h: no bias, and z_h is what the output projection reads, after a
    gate where there is one.
    """

    z: Float[Tensor, "batch position head d_head"]
    output: Float[Tensor, "head d_head d_model"]
    """W_O."""
    gram: Float[Tensor, "head d_head d_head"]
    """W_O W_O^T of each head, in float64."""
    added: Float[Tensor, "batch position d_model"]
    """What the layer's attention adds to the residual stream, all heads and biases together and
    after its own norm where it has one; before a constant residual multiplier."""
    norm: FrozenNorm | None = None
    """Through which the attention's output goes before it is added."""
    scale: Float[Tensor, "batch position"] | None = None
    """Of that norm."""
    targets: Float[Tensor, "target d_model"] | None = None
    """What in the residual stream raises a token's logit, but for the final norm's scale; of every
    token that follows somewhere, once. None where logits are no linear function of what the heads
    write, even with all scales given."""
    following: Int[Tensor, "batch next"] | None = None
    """Which target really follows, at all these positions except a sequence's last."""
    mean_target: Float[Tensor, " d_model"] | None = None
    """The mean of such directions over the vocabulary."""

    def along(
        self, directions: Float[Tensor, "batch position d_model"] | Float[Tensor, " d_model"]
    ) -> Float[Tensor, "batch position head"]:
        """How far what each head adds to the residual stream points along a direction.

        <o_h, d>, and <scale * gain * C o_h, d> where a norm is between. Directions are those of
        each position, or one for all.
        """
        return self._meet(self._read(directions))

    @cached_property
    def of_next_token(self) -> Float[Tensor, "batch next head"]:
        """What each head adds to the next token's logit, but for the final norm's scale.

        Raises:
            ValueError: If there are no targets.
        """
        if self.targets is None or self.following is None:
            raise ValueError("without targets there is no logit to attribute")
        # Tokens that follow several times, as in repeated sequences, are multiplied once.
        return self._meet(self._read(self.targets)[self.following])

    def _read(
        self, directions: Float[Tensor, "*direction d_model"]
    ) -> Float[Tensor, "*direction head d_head"]:
        if self.norm is not None:
            directions = self.norm.pulled_back(directions)
        read = directions @ self.output.flatten(0, 1).mT
        return read.unflatten(-1, self.z.shape[2:])

    def _meet(
        self, read: Float[Tensor, "batch few head d_head"] | Float[Tensor, "head d_head"]
    ) -> Float[Tensor, "batch few head"]:
        few = read.shape[1] if read.ndim == self.z.ndim else self.z.shape[1]
        met = (self.z[:, :few] * read).sum(dim=-1)
        return met if self.scale is None else met * self.scale[:, :few, None]
