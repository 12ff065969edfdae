from typing import Any

import pytest
import torch
from torch import Tensor

from sdxl_core.config import DenoiserConfig, NetworkConfig
from sdxl_core.diffusion import guidance
from sdxl_core.diffusion.denoiser import Denoiser
from sdxl_core.diffusion.guiders import Guider, Prompts, build_guider
from sdxl_core.diffusion.interval import Window, resolve_cost
from sdxl_core.errors import ScheduleError, UsageError
from sdxl_core.guider_config import (
    ApgConfig,
    CfgZeroStarConfig,
    DynamicThresholdingConfig,
    FdgConfig,
    FreeUConfig,
    GuiderConfig,
    IntervalConfig,
    PagConfig,
    PerpNegConfig,
    RescaleConfig,
    SagConfig,
    SegConfig,
    TcfgConfig,
)
from sdxl_core.ops.attention import sdpa
from sdxl_core.types import Conditioning, Prediction, Touch

DENOISER = Denoiser(DenoiserConfig())


class PromptNetwork:
    """A network whose answer depends on every part of the conditioning, row by row; keeps the sizes of its batches.

    Its one self-attention has the latent's channels for heads; a touch in the middle block acts on it.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.touches: list[Touch] = []

    def __call__(self, x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Touch | None = None) -> Tensor:
        self.batches.append(x_in.shape[0])
        told = cond.crossattn.mean(dim=(1, 2)) + 2 * cond.vector.mean(dim=1) + c_noise / 1000
        h = torch.tanh(x_in[:, :4] + told[:, None, None, None])
        if touch is not None:
            self.touches.append(touch)
        attend = None if touch is None else touch.at("middle_block")
        q = h.flatten(2)[..., None]
        attended = sdpa(q, -q, q) if attend is None else attend(sdpa, q, -q, q, size=(h.shape[2], h.shape[3]))
        h = h + attended[..., 0].reshape(h.shape)
        return h if touch is None or touch.merge is None else touch.merge(h, x_in)[0]


def conditioning(seed: int, tokens: int = 77) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(2, tokens, 8, generator=generator), torch.randn(2, 6, generator=generator)
    )  # fmt: skip


COND, UNCOND = conditioning(0), conditioning(1)
X = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(2)) * 5


SIGMA = 5.0


def alone(cond: Conditioning, x: Tensor = X) -> Tensor:
    return DENOISER(PromptNetwork(), x, SIGMA, cond)


BOTH_SIDES = Prompts((COND,), uncond=UNCOND)


def guided(network: PromptNetwork | None = None, prompts: Prompts = BOTH_SIDES, **config: Any) -> Prediction:
    """What a guider of that configuration says of X."""
    guider = Guider(GuiderConfig(**config))
    return guider.bind(DENOISER, PromptNetwork() if network is None else network, prompts)(X, SIGMA)


@pytest.mark.parametrize("scale", [-2.0, 0.0, 0.5, 5.0, 7.5])
def test_guidance_is_two_single_predictions_put_together(scale: float) -> None:
    network = PromptNetwork()
    prediction = guided(network, scale=scale)
    u, c = alone(UNCOND), alone(COND)
    torch.testing.assert_close(prediction.denoised, u + scale * (c - u), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.uncond, u, rtol=1e-6, atol=1e-6)
    assert network.batches == [4]


def test_scale_zero_is_the_unconditional_prediction() -> None:
    torch.testing.assert_close(guided(scale=0.0).denoised, alone(UNCOND), rtol=1e-6, atol=1e-6)


NO_GUIDANCE = [{"scale": 1.0}, {"name": "identity"}]


@pytest.mark.parametrize("config", NO_GUIDANCE)
@pytest.mark.parametrize("uncond", [UNCOND, None])
def test_no_guidance_runs_the_prompt_alone(config: dict[str, Any], uncond: Conditioning | None) -> None:
    network = PromptNetwork()
    prediction = guided(network, Prompts((COND,), uncond=uncond), **config)
    assert torch.equal(prediction.denoised, alone(COND))
    assert prediction.uncond is None
    assert network.batches == [2]


def test_uncond_rows_come_first() -> None:
    seen = []

    def network(x_in: Tensor, c_noise: Tensor, cond: Conditioning, touch: Touch | None = None) -> Tensor:
        seen.append(cond)
        return x_in

    Guider(GuiderConfig()).bind(DENOISER, network, Prompts((COND,), uncond=UNCOND))(X, SIGMA)
    assert torch.equal(seen[0].crossattn, torch.cat([UNCOND.crossattn, COND.crossattn]))
    assert torch.equal(seen[0].vector, torch.cat([UNCOND.vector, COND.vector]))


def test_prompts_of_different_length_are_refused() -> None:
    with pytest.raises(UsageError, match="77 and 154 tokens"):
        guided(prompts=Prompts((COND,), uncond=conditioning(1, tokens=154)))


def test_a_concat_condition_on_one_side_only_is_refused() -> None:
    with_picture = Conditioning(COND.crossattn, COND.vector, torch.zeros(2, 1, 3, 5))
    with pytest.raises(UsageError, match="picture condition"):
        guided(prompts=Prompts((with_picture,), uncond=UNCOND))


def test_guidance_without_a_side_that_it_needs_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"scale 5\.0 needs an unconditional"):
        guided(prompts=Prompts((COND,)))
    with pytest.raises(ValueError, match="perp_neg needs the negative"):
        guided(perp_neg=PerpNegConfig())


# --- one method at a time -------------------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "perp_neg": PerpNegConfig(),
    "tcfg": TcfgConfig(),
    "cfg_zero_star": CfgZeroStarConfig(),
    "apg": ApgConfig(threshold=3.0),
    "fdg": FdgConfig(high=7.0),
    "dynamic_thresholding": DynamicThresholdingConfig(mimic=2.0),
    "pag": PagConfig(),
    "seg": SegConfig(),
    "sag": SagConfig(),
    "rescale": RescaleConfig(),
    "freeu": FreeUConfig(),
}
NEGATIVE = conditioning(3)
ALL_SIDES = Prompts((COND,), uncond=UNCOND, negative=NEGATIVE)
FOUR_CHANNELS = NetworkConfig(
    model_channels=4,
    channel_mult=(1,),
    attention_resolutions=(1,),
    transformer_depth=(1,),
    num_head_channels=4,
    context_dim=8,
    adm_in_channels=6,
)


def run_of(config: GuiderConfig, prompts: Prompts = ALL_SIDES, network: PromptNetwork | None = None) -> Any:
    guider = build_guider(config, [SIGMA, 1.0, 0.0], FOUR_CHANNELS)
    return guider.bind(DENOISER, PromptNetwork() if network is None else network, prompts)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_the_prediction_and_leaves_uncond_alone(method: str) -> None:
    plain, changed = run_of(GuiderConfig())(X, SIGMA), run_of(GuiderConfig(**{method: METHODS[method]}))(X, SIGMA)
    assert (changed.denoised - plain.denoised).abs().max() > 1e-3
    if method != "freeu":  # which changes the network itself
        torch.testing.assert_close(changed.uncond, plain.uncond, rtol=1e-6, atol=1e-6)


def rows_of(prompts: Prompts, row: int) -> Prompts:
    def one(side: Conditioning | None) -> Conditioning | None:
        return None if side is None else Conditioning(side.crossattn[row : row + 1], side.vector[row : row + 1])

    parts = tuple(Conditioning(p.crossattn[row : row + 1], p.vector[row : row + 1]) for p in prompts.parts)
    weights = None if prompts.weights is None else prompts.weights[row : row + 1]
    return Prompts(parts, weights, one(prompts.uncond), one(prompts.negative))


OTHER = conditioning(4)
WEIGHTS = torch.tensor([[1.0, 0.7], [-0.5, 1.5]])


@pytest.mark.parametrize("method", [*METHODS, "all"])
def test_a_batch_is_its_singles(method: str) -> None:
    prompts = Prompts((COND, OTHER), WEIGHTS, UNCOND, NEGATIVE)
    config = GuiderConfig(**(METHODS if method == "all" else {method: METHODS[method]}))
    x_next = X * 0.5
    together = run_of(config, prompts)
    both = [together(X, SIGMA).denoised, together(x_next, 1.0).denoised]
    for row in range(2):
        single = run_of(config, rows_of(prompts, row))
        for x, sigma, wanted in ((X, SIGMA, both[0]), (x_next, 1.0, both[1])):
            got = single(x[row : row + 1], sigma).denoised[0]
            torch.testing.assert_close(got, wanted[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("perp_neg", "fdg", "pag", "seg", "sag", "freeu")])
def test_at_scale_one_there_is_no_guidance_to_change(method: str) -> None:
    network = PromptNetwork()
    config = GuiderConfig(scale=1.0, **{method: METHODS[method]})
    prediction = run_of(config, Prompts((COND,)), network)(X, SIGMA)
    torch.testing.assert_close(prediction.denoised, alone(COND), rtol=1e-6, atol=1e-5)
    assert network.batches == [2]


@pytest.mark.parametrize("method", [*METHODS, "all"])
def test_rows_are_counted_as_they_are_run(method: str) -> None:
    config = GuiderConfig(
        interval=IntervalConfig(low=2.0, high=9.0), **(METHODS if method == "all" else {method: METHODS[method]})
    )
    for parts, weights in (((COND,), None), ((COND, OTHER), WEIGHTS)):
        network = PromptNetwork()
        guider = build_guider(config, [SIGMA, 1.0, 0.0], FOUR_CHANNELS)
        denoise = guider.bind(DENOISER, network, Prompts(parts, weights, UNCOND, NEGATIVE))
        cost = resolve_cost(config, [SIGMA, 1.0, 0.0], keep_uncond=False, parts=len(parts))
        for sigma in (SIGMA, 1.0):
            network.batches.clear()
            denoise(X, sigma)
            assert sum(network.batches) == 2 * cost.at(sigma)


@pytest.mark.parametrize("method", ["pag", "seg", "sag"])
def test_a_scale_of_nothing_costs_nothing(method: str) -> None:
    network = PromptNetwork()
    off = type(METHODS[method])(scale=0.0)
    assert torch.equal(guided(network, **{method: off}).denoised, guided().denoised)
    assert network.batches == [4]
    assert network.touches == []


# --- the interval ---------------------------------------------------------------------------------------------------


def test_outside_the_interval_the_prompt_runs_alone_and_inside_nothing_changes() -> None:
    network, levels = PromptNetwork(), [9.0, 5.0, 3.0, 1.0, 0.5, 0.0]
    config = GuiderConfig(interval=IntervalConfig(low=1.0, high=5.0))
    guider = build_guider(config, levels, FOUR_CHANNELS)
    denoise = guider.bind(DENOISER, network, Prompts((COND,), uncond=UNCOND))
    plain = Guider(GuiderConfig()).bind(DENOISER, PromptNetwork(), Prompts((COND,), uncond=UNCOND))
    for sigma in levels[:-1]:
        prediction = denoise(X, sigma)
        if sigma in (5.0, 3.0):
            assert torch.equal(prediction.denoised, plain(X, sigma).denoised)
        else:
            assert torch.equal(prediction.denoised, DENOISER(PromptNetwork(), X, sigma, COND))
            assert prediction.uncond is None
    assert network.batches == [2, 4, 4, 2, 2]
    assert guider.window == Window(1.0, 5.0)


def test_zero_init_leaves_x_where_it_is_in_the_first_steps() -> None:
    network = PromptNetwork()
    config = GuiderConfig(cfg_zero_star=CfgZeroStarConfig(zero_init=1))
    denoise = build_guider(config, [9.0, 5.0, 1.0, 0.0], FOUR_CHANNELS).bind(DENOISER, network, ALL_SIDES)
    assert torch.equal(denoise(X, 9.0).denoised, X)
    assert network.batches == []
    assert not torch.equal(denoise(X, 5.0).denoised, X)
    with pytest.raises(ScheduleError, match="zero_init 3 leaves none of the 3 steps"):
        build_guider(GuiderConfig(cfg_zero_star=CfgZeroStarConfig(zero_init=3)), [9.0, 5.0, 1.0, 0.0], FOUR_CHANNELS)


# --- the order ------------------------------------------------------------------------------------------------------


def test_methods_act_in_the_order_that_is_written_down() -> None:
    """Each step once more by hand, from single predictions."""
    prompts = Prompts((COND, OTHER), WEIGHTS, UNCOND, NEGATIVE)
    config = GuiderConfig(**{k: v for k, v in METHODS.items() if k not in ("freeu", "pag", "seg", "sag")})
    u, n = alone(UNCOND), alone(NEGATIVE)
    w = WEIGHTS.T[..., None, None, None]
    joined = u + w[0] * (alone(COND) - u) + w[1] * (alone(OTHER) - u)
    c = guidance.without_shared(joined, u, n, 1.0)
    v = guidance.fitted(X, c, guidance.tangential(X, c, u))
    update = guidance.ProjectedUpdate(METHODS["apg"])(c, v)
    g = c - update + guidance.by_frequency(update, 5.0, 7.0)
    g = guidance.thresholded(g, c + (2.0 - 1) * update, METHODS["dynamic_thresholding"])
    wanted = guidance.rescaled(g, joined, X, SIGMA, METHODS["rescale"])
    torch.testing.assert_close(run_of(config, prompts)(X, SIGMA).denoised, wanted, rtol=1e-4, atol=1e-4)


def test_rescaling_comes_after_perturbed_attention() -> None:
    both = run_of(GuiderConfig(pag=PagConfig(), rescale=RescaleConfig()))(X, SIGMA).denoised
    pag = run_of(GuiderConfig(pag=PagConfig()))(X, SIGMA).denoised
    wanted = guidance.rescaled(pag, alone(COND), X, SIGMA, RescaleConfig())
    torch.testing.assert_close(both, wanted, rtol=1e-5, atol=1e-5)


def test_momentum_belongs_to_one_run() -> None:
    config = GuiderConfig(apg=ApgConfig(momentum=-0.5, threshold=0.0, eta=1.0))
    first = run_of(config)
    values = [first(X, SIGMA).denoised, first(X, SIGMA).denoised]
    again = run_of(config)
    assert torch.equal(again(X, SIGMA).denoised, values[0])
    u, c = alone(UNCOND), alone(COND)
    torch.testing.assert_close(values[1], c + 4 * 0.5 * (c - u), rtol=1e-5, atol=1e-5)


# --- prompts that AND joins, perp-neg, CFG++ ------------------------------------------------------------------------


def test_prompts_joined_by_and_are_added_with_their_weights() -> None:
    prediction = guided(prompts=Prompts((COND, OTHER), WEIGHTS, UNCOND))
    u, c, o = alone(UNCOND), alone(COND), alone(OTHER)
    w = WEIGHTS.T[..., None, None, None]
    wanted = u + 5 * (w[0] * (c - u) + w[1] * (o - u))
    torch.testing.assert_close(prediction.denoised, wanted, rtol=1e-5, atol=1e-5)


def test_without_uncond_joined_prompts_are_the_mean_of_those_that_are_wanted() -> None:
    prediction = guided(prompts=Prompts((COND, OTHER), WEIGHTS), name="identity")
    c, o = alone(COND), alone(OTHER)
    torch.testing.assert_close(prediction.denoised[0], (c[0] + 0.7 * o[0]) / 1.7, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction.denoised[1], o[1], rtol=1e-5, atol=1e-5)


def test_a_cfg_plus_plus_sampler_gets_uncond_at_scale_one_too() -> None:
    guider = build_guider(GuiderConfig(scale=1.0), [SIGMA, 0.0], FOUR_CHANNELS, keep_uncond=True)
    assert guider.wants_uncond
    prediction = guider.bind(DENOISER, PromptNetwork(), Prompts((COND,), uncond=UNCOND))(X, SIGMA)
    torch.testing.assert_close(prediction.uncond, alone(UNCOND), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.denoised, alone(COND), rtol=1e-6, atol=1e-6)


def test_a_method_of_guidance_where_there_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="apg changes guidance, and identity has none"):
        GuiderConfig(name="identity", apg=ApgConfig())
    assert list(GuiderConfig(name="identity", freeu=FreeUConfig(), pag=PagConfig()).methods()) == ["pag", "freeu"]
