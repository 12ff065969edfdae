"""Guidance: how the prompt and its opposite are combined into one `denoise`.

The order in which everything acts, whatever the order in which it was asked for. All of it works on predictions of the
clean latent, a row a picture:

1. `freeu` changes every call of the network.
2. Outside the `interval` the prompt alone is the answer: nothing below runs there.
3. The prompts that AND joins become one: cond = uncond + sum of weight_i (cond_i - uncond).
4. `perp_neg` makes uncond the empty prompt's, and moves cond away from the negative prompt.
5. `tcfg`, then `cfg_zero_star`, change uncond.
6. The update is cond - uncond; `apg` changes it.
7. guided = cond - update + scale update; with `fdg`, each band of the update has a scale of its own. Without `apg`
   that is uncond + scale (cond - uncond), classifier-free guidance.
8. `dynamic_thresholding` squeezes it.
9. `pag` and `seg` add scale (cond - worse), with cond from 3 and worse from a call whose attention is worse; `sag` adds
   scale (blurred - denoised again) from uncond, or from cond where there is no uncond.
10. `rescale` gives it the spread of cond from 3.

`Prediction.uncond` is always what the network said of the unconditional side (with `perp_neg`, of the empty prompt).
A sampler's model call is one evaluation of all this, whatever number of network rows it takes: see `Cost`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sdxl_core.config import NetworkConfig
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.guidance import (
    ProjectedUpdate,
    by_frequency,
    fitted,
    rescaled,
    tangential,
    thresholded,
    without_shared,
)
from sdxl_core.diffusion.interval import EVERYWHERE, Window, resolve_still, resolve_window
from sdxl_core.diffusion.touches import BlurredQueries, WatchedAttention, degraded, free_u, own_values
from sdxl_core.errors import UsageError
from sdxl_core.guider_config import GuiderConfig
from sdxl_core.types import Attend, Conditioning, Denoise, Merge, Network, Prediction, Touch, TouchableNetwork


@dataclass(frozen=True, slots=True)
class Prompts:
    """What guidance steers by, every part with a row a picture, see `Conditioning`.

    Args:
        parts: the prompt, or the prompts that AND joins; as many for every picture.
        weights: (b, parts) of the parts; None for 1.
        uncond: what to move away from; None where nothing needs it.
        negative: with perp_neg, the negative prompt, and `uncond` is the empty one.
    """

    parts: tuple[Conditioning, ...]
    weights: Tensor | None = None
    uncond: Conditioning | None = None
    negative: Conditioning | None = None

    def showing(self, concat: Tensor | None) -> "Prompts":
        """The same, with channels (b, c, h, w) that the network is shown beside x, under every prompt."""
        shown = [
            None if side is None else replace(side, concat=concat) for side in (*self.parts, self.uncond, self.negative)
        ]
        parts = tuple(side for side in shown[: len(self.parts)] if side is not None)
        return Prompts(parts, self.weights, *shown[len(self.parts) :])


@dataclass(frozen=True, slots=True)
class Guider:
    """Makes a `denoise` out of a network and what the pictures show.

    Args:
        config: what acts.
        window: levels at which guidance is on.
        still: x is left where it is at levels above this one (the zero-init of `cfg_zero_star`).
        merge: of `freeu`.
        keep_uncond: make the unconditional prediction where guidance does not need it, too: for a CFG++ sampler.
    """

    config: GuiderConfig
    window: Window = EVERYWHERE
    still: float = math.inf
    merge: Merge | None = None
    keep_uncond: bool = False

    @property
    def wants_uncond(self) -> bool:
        """Whether the unconditional side is run."""
        return self.config.runs_uncond(self.keep_uncond)

    def bind(self, denoiser: Denoiser, network: TouchableNetwork, prompts: Prompts) -> Denoise:
        """Tie everything but (x, sigma) down, for one run: what `apg` remembers begins here.

        Raises:
            UsageError: the prompts cannot share a batch.
            ValueError: a side that guidance needs is missing.
        """
        sides = list(prompts.parts)
        if self.wants_uncond:
            if prompts.uncond is None:
                raise ValueError(f"guidance at scale {self.config.scale} needs an unconditional conditioning")
            sides.insert(0, prompts.uncond)
        if self.config.perp_neg is not None:
            if prompts.negative is None:
                raise ValueError("perp_neg needs the negative prompt beside the empty one")
            sides.append(prompts.negative)
        apg = self.config.apg
        return _Run(
            self,
            denoiser,
            network,
            prompts,
            everything=_together(sides),
            prompt=_together(prompts.parts),
            update=None if apg is None else ProjectedUpdate(apg),
        ).denoise


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a guider; the order of what it does is that of the module's list."""

    guider: Guider
    denoiser: Denoiser
    network: TouchableNetwork
    prompts: Prompts
    everything: Conditioning
    prompt: Conditioning
    update: ProjectedUpdate | None

    def denoise(self, x: Tensor, sigma: float) -> Prediction:
        guider, config = self.guider, self.guider.config
        if sigma > guider.still:
            return Prediction(x)
        if sigma not in guider.window:
            return Prediction(self._joined(self._ask(x, sigma, self.prompt)))
        watch = WatchedAttention(len(x)) if config.sag is not None and config.sag.scale else None
        said = self._ask(x, sigma, self.everything, watch, ("middle_block",))
        uncond = said.pop(0) if guider.wants_uncond else None
        negative = said.pop() if config.perp_neg is not None else None
        cond = self._joined(said, uncond)
        guided = cond if uncond is None else self._combined(x, cond, uncond, negative)
        if config.pag is not None and config.pag.scale:
            worse = self._joined(self._ask(x, sigma, self.prompt, own_values, config.pag.stages), uncond)
            guided = guided + config.pag.scale * (cond - worse)
        if config.seg is not None and config.seg.scale:
            attend = BlurredQueries(config.seg.blur)
            worse = self._joined(self._ask(x, sigma, self.prompt, attend, config.seg.stages), uncond)
            guided = guided + config.seg.scale * (cond - worse)
        if config.sag is not None and watch is not None and watch.attended is not None:
            clean = cond if uncond is None else uncond
            blurred = degraded(clean, watch.attended, config.sag)
            noisy = blurred + (x - clean)
            if uncond is None or self.prompts.uncond is None:
                again = self._joined(self._ask(noisy, sigma, self.prompt))
            else:
                again = self._ask(noisy, sigma, self.prompts.uncond)[0]
            guided = guided + config.sag.scale * (blurred - again)
        if config.rescale is not None:
            guided = rescaled(guided, cond, x, sigma, config.rescale)
        return Prediction(guided, uncond)

    def _combined(self, x: Tensor, cond: Tensor, uncond: Tensor, negative: Tensor | None) -> Tensor:
        """Steps 4 to 8 of the list: cond and uncond as one prediction."""
        config, scale = self.guider.config, self.guider.config.scale
        if config.perp_neg is not None and negative is not None:
            cond = without_shared(cond, uncond, negative, config.perp_neg.weight)
        if config.tcfg is not None:
            uncond = tangential(x, cond, uncond)
        if config.cfg_zero_star is not None:
            uncond = fitted(x, cond, uncond)
        update, start = cond - uncond, uncond
        if self.update is not None:
            update = self.update(cond, uncond)
            start = cond - update
        amplified = scale * update if config.fdg is None else by_frequency(update, scale, config.fdg.high)
        guided = start + amplified
        if config.dynamic_thresholding is not None:
            mild = start + config.dynamic_thresholding.mimic * update
            guided = thresholded(guided, mild, config.dynamic_thresholding)
        return guided

    def _ask(
        self, x: Tensor, sigma: float, cond: Conditioning, attend: Attend | None = None, stages: tuple[str, ...] = ()
    ) -> list[Tensor]:
        """What the network makes of x under each of the conditionings that are joined in `cond`."""
        merge = self.guider.merge
        network: Network = self.network
        if attend is not None or merge is not None:
            network = partial(self.network, touch=Touch(attend, stages, merge))
        sides = len(cond.vector) // len(x)
        return list(self.denoiser(network, torch.cat([x] * sides), sigma, cond).chunk(sides))

    def _joined(self, parts: Sequence[Tensor], uncond: Tensor | None = None) -> Tensor:
        """The prompts that AND joins as one; without uncond the mean of those with a positive weight."""
        weights = self.prompts.weights
        if weights is None:
            return parts[0]
        shares = weights.to(parts[0]).T[..., None, None, None]  # (parts, b, 1, 1, 1)
        if uncond is None:
            shares = shares.clamp(min=0)
            return sum((w * part for w, part in zip(shares, parts, strict=True)), 0 * parts[0]) / shares.sum(dim=0)
        return sum((w * (part - uncond) for w, part in zip(shares, parts, strict=True)), uncond)


def build_guider(
    config: GuiderConfig, sigmas: Sequence[float], network: NetworkConfig, *, keep_uncond: bool = False
) -> Guider:
    """The guider that a recipe names.

    Args:
        config: what acts.
        sigmas: n + 1 decreasing levels, whose steps an interval counts.
        network: the UNet, whose stages are told by their width.
        keep_uncond: see `Guider`.

    Raises:
        ScheduleError: an interval without a step, or no step that moves.
        UsageError: a stage that this network does not have.
    """
    config.check_stages(network.attended_stages())
    return Guider(
        config,
        resolve_window(config.interval, sigmas),
        still=resolve_still(config, sigmas),
        merge=None if config.freeu is None else free_u(config.freeu, network),
        keep_uncond=keep_uncond,
    )


def _together(sides: Sequence[Conditioning]) -> Conditioning:
    tokens = {side.crossattn.shape[1] for side in sides}
    if len(tokens) > 1:
        counts = " and ".join(str(count) for count in sorted(tokens))
        raise UsageError(f"the prompts have {counts} tokens; guidance needs as many in all, the negative one too")
    if len({side.concat is None for side in sides}) > 1:
        raise UsageError("only one of the prompt and the negative prompt comes with a picture condition")
    return Conditioning.cat(sides)
