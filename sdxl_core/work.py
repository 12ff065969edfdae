"""What a picture takes, part by part: calls, rows and arithmetic of every network. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sdxl_core.config import ModelConfig
from sdxl_core.diffusion.samplers import levels_asked
from sdxl_core.flops import Work, decoder_work, encoder_work, network_work, text_work
from sdxl_core.plan import Plan

PartName = Literal["text", "encode", "network", "decode"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one network does for one picture.

    Args:
        name: what is done.
        model: whose network does it.
        calls: how often it is asked; None, as the rest, where only the run itself can tell.
        rows: of all calls: a model call takes one for each side that guidance needs at its level, the text towers one
            a prompt.
        work: of all calls.
    """

    name: PartName
    model: str
    calls: int | None
    rows: int | None
    work: Work | None


def plan_work(plan: Plan, model: ModelConfig, refiner: ModelConfig | None = None) -> tuple[Part, ...]:
    """The networks that a picture runs through, in their order.

    Counted are the networks as they are written: the first stage whole, although it may work in pieces or tiles, and
    the text of the picture alone, although a batch encodes what its pictures share once. What guidance computes beside
    the network (blurs, maps of attention) is not.

    Args:
        plan: one picture.
        model: that the plan names.
        refiner: that the plan's refiner names.

    Raises:
        ValueError: the plan has a refiner and its model is missing.
    """
    parts = []
    latent = plan.size[0] // model.first_stage.factor, plan.size[1] // model.first_stage.factor
    for walk in _walks(plan):
        config = model if walk.plan is plan else refiner
        if config is None:
            raise ValueError("the plan has a refiner, whose model is missing")
        prompts, rows, own_values = walk.prompts(), walk.rows(), walk.own_value_rows()
        parts.append(Part("text", config.name, prompts, prompts, text_work(config.conditioner) * prompts))
        work = None
        if rows is not None and own_values is not None:
            pag = plan.guider.pag
            stages = () if pag is None else pag.stages
            work = network_work(config.network, latent) * (rows - own_values)
            work += network_work(config.network, latent, own_values=stages) * own_values
        parts.append(Part("network", config.name, walk.calls(), rows, work))
    source = plan.source
    if source is not None and not source.latent:
        # An inpainting model is shown the picture once more, grey where it is to paint.
        times = source.is_encoded_whole + (source.condition == "inpaint")
        work = encoder_work(model.first_stage, plan.size) * times
        parts[1:1] = [Part("encode", model.name, times, times, work)] if times else []
    return (*parts, Part("decode", model.name, 1, 1, decoder_work(model.first_stage, plan.size)))


def network_rows(plan: Plan) -> int | None:
    """Rows that the UNets work through for a picture; None where nobody knows beforehand."""
    rows = [walk.rows() for walk in _walks(plan)]
    return None if None in rows else sum(count for count in rows if count is not None)


@dataclass(frozen=True, slots=True)
class _Walk:
    """The levels that one model walks for a picture, and those of the whole, whose steps guidance counts."""

    plan: Plan
    sigmas: Sequence[float]
    schedule: Sequence[float]

    def prompts(self) -> int:
        """How many are encoded."""
        plan = self.plan
        count = len(plan.requests())
        if plan.edits or plan.guidance_cost(self.schedule).uncond:
            count += not plan.zero_negative
            count += plan.guider.perp_neg is not None and plan.empty_negative != "zeros"
        return count

    def calls(self) -> int | None:
        levels = self._levels()
        return None if levels is None else len(levels)

    def rows(self) -> int | None:
        levels = self._levels()
        if levels is None:
            return None
        if self.plan.edits:
            return 3 * len(levels)
        cost = self.plan.guidance_cost(self.schedule)
        return sum(cost.at(sigma) for sigma in levels)

    def own_value_rows(self) -> int | None:
        """Rows of perturbed attention guidance among them."""
        levels, pag = self._levels(), self.plan.guider.pag
        if levels is None:
            return None
        if pag is None or pag.scale == 0 or self.plan.edits:
            return 0
        cost = self.plan.guidance_cost(self.schedule)
        return cost.parts * sum(sigma in cost.window and sigma <= cost.still for sigma in levels)

    def _levels(self) -> tuple[float, ...] | None:
        return levels_asked(self.plan.sampler.name, self.sigmas, self.plan.sampler.options())


def _walks(plan: Plan) -> Iterator[_Walk]:
    whole, second = plan.schedule(), plan.refiner_sigmas()
    yield _Walk(plan, plan.sigmas(), whole)
    if second:
        yield _Walk(plan.refiner_plan(), second, whole if plan.switch() is not None else second)
