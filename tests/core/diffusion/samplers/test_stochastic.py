"""What holds for samplers that add noise, beside the laws of all."""

import math
from itertools import pairwise

import pytest
import torch
from support_closed_form import Counted, Gaussian, TwoPeaks, deterministic, legacy_ddpm, log_levels, silence, steps
from torch import Tensor

from sdxl_core.diffusion.discretization import edm, legacy_ddpm_table
from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.samplers import SAMPLERS
from sdxl_core.errors import ScheduleError
from sdxl_core.types import Prediction

SHAPE = (4, 6, 5)

EVERYWHERE = {"s_tmin": 0.0, "s_tmax": math.inf}  # noise on all levels
SDE = {
    "dpm_2_ancestral": {},
    "dpmpp_sde": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "res_multistep_ancestral": {},
    "er_sde": {},
    "sa_solver": {},
    "sa_solver_pece": EVERYWHERE,
    "seeds_2": {},
    "seeds_3": {},
    "restart": {"restart_steps": 40},  # with nine its own error in the standard deviation is 0.006
}


@pytest.mark.parametrize(("name", "options"), SDE.items())
def test_samples_have_the_law_of_the_data(name: str, options: dict[str, float]) -> None:
    gaussian = Gaussian(std=0.7, mean=0.4)
    sigmas = edm(100, rho=7.0)
    noise = PictureNoise([0], (4, 60, 60))
    x = gaussian.mean + noise() * math.sqrt(gaussian.std**2 + sigmas[0] ** 2)
    sample = steps(name, gaussian, x, sigmas, noise, **options)[-1].x.double()
    n = sample.numel()
    # Measured on 360 000 values, the methods themselves are at most 0.002 off at 100 steps, half a standard error here.
    # With 4.5 standard errors allowed, a right set of samplers has one that fails for at most one seed in 1000.
    assert abs(float(sample.mean()) - 0.4) < 4.5 * 0.7 / math.sqrt(n)
    assert abs(float(sample.std()) - 0.7) < 4.5 * 0.7 / math.sqrt(2 * n)


def test_lcm_has_the_law_of_the_data_where_one_prediction_is_a_sample() -> None:
    gaussian = Gaussian(std=0.7, mean=0.4)

    def consistent(x: Tensor, sigma: float) -> Prediction:
        return Prediction(gaussian.solution(x, sigma, 0.0))

    sigmas = legacy_ddpm(4)
    noise = PictureNoise([0], (4, 60, 60))
    x = gaussian.mean + noise() * math.sqrt(gaussian.std**2 + sigmas[0] ** 2)
    for step in steps("lcm", consistent, x, sigmas, noise):
        wanted = math.sqrt(0.7**2 + step.sigma**2)
        n = step.x.numel()
        assert abs(float(step.x.mean()) - 0.4) < 4.5 * wanted / math.sqrt(n)  # a right one fails for one seed in 10 000
        assert abs(float(step.x.std()) - wanted) < 4.5 * wanted / math.sqrt(2 * n)


def same(x: Tensor, y: Tensor, tolerance: float = 1e-5) -> bool:
    return float((x - y).norm() / y.norm()) < tolerance


class Driving(PictureNoise):
    """The Brownian motion B of the reverse diffusion toward a steady prediction.

    With tau = 1 / sigma^2 and y = tau x that is dy = denoised dtau + dB. Known from level 16 to 1/16, at the 240th
    parts of an octave.
    """

    def __init__(self) -> None:
        super().__init__([3], SHAPE)
        levels = torch.tensor([16.0 * 2 ** (-k / 240) for k in range(1921)], dtype=torch.float64)
        moves = levels[1:] ** -2 - levels[:-1] ** -2
        draws = torch.randn((1920, 1, *SHAPE), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        moved = (moves.sqrt().view(-1, 1, 1, 1, 1) * draws).cumsum(0)
        self.motion = torch.cat([torch.zeros_like(moved[:1]), moved])

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        start, end = (self.motion[round(240 * math.log2(16.0 / level))] for level in (sigma, sigma_next))
        return (end - start) / math.sqrt(sigma_next**-2 - sigma**-2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp_sde", {}),
        ("dpmpp_sde", {"r": 0.3}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_3m_sde", {}),
        ("sa_solver", EVERYWHERE),
        ("sa_solver_pece", EVERYWHERE),
        ("seeds_2", {}),
        ("seeds_2", {"solver_type": "phi_2", "r": 1.0}),
        ("seeds_3", {}),
    ],
)
def test_a_steady_prediction_gives_the_same_x_whatever_the_steps(name: str, options: dict[str, float]) -> None:
    """Where nothing else changes the steps are exact, so given the right driving noise their number changes nothing."""
    x = PictureNoise([3], SHAPE).start(16.0)
    driving = Driving()
    steady = PictureNoise([9], SHAPE)()
    ends = []
    for n in (2, 16, 64):
        sigmas = [16.0 * 2 ** (-8 * i / n) for i in range(n + 1)]
        ends.append(steps(name, lambda x, sigma: Prediction(steady), x, sigmas, driving, **options)[-1].x)
    assert same(ends[0], ends[2])
    assert same(ends[1], ends[2])


@pytest.mark.parametrize(
    "name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "er_sde", "sa_solver", "sa_solver_pece", "seeds_2", "seeds_3"]
)
def test_more_steps_come_nearer_to_one_picture(name: str) -> None:
    options = EVERYWHERE if name.startswith("sa_") else {}  # else each list cuts its noise at other levels
    sigmas = {n: [*log_levels(n), 0.0] for n in (16, 64, 256)}
    last = {}
    for n, levels in sigmas.items():
        noise = PictureNoise([4], SHAPE)
        last[n] = steps(name, TwoPeaks(), noise.start(levels[0]), levels, noise, **options)[-1].x
    errors = [float((last[n] - last[256]).norm() / last[256].norm()) for n in (16, 64)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1


@pytest.mark.parametrize(
    ("name", "options", "other", "theirs"),
    [
        ("dpmpp_sde", {}, "dpmpp_2s_ancestral", {}),
        ("dpmpp_2m_sde", {}, "dpmpp_2m", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, "res_multistep_ancestral", {}),
        ("seeds_2", {}, "dpmpp_2s_ancestral", {}),
        ("restart", {}, "heun", {}),
        ("tcd", {}, "euler", {}),
        ("er_sde", {"order": 1}, "euler", {}),
        ("sa_solver", {"predictor_order": 1, "corrector_order": 0}, "euler", {}),
        ("euler_ancestral_cfg_pp", {}, "euler", {}),
        ("dpmpp_2s_ancestral_cfg_pp", {}, "dpmpp_2s_ancestral", {}),
    ],
)
def test_without_noise_it_is_the_method_for_the_equation(name, options, other, theirs) -> None:  # type: ignore[no-untyped-def]
    sigmas = legacy_ddpm(15)
    x = PictureNoise([0], SHAPE).start(sigmas[0])
    ours = steps(name, TwoPeaks(), x, sigmas, silence, **deterministic(name), **options)
    those = steps(other, TwoPeaks(), x, sigmas, silence, **deterministic(other), **theirs)
    assert same(ours[-1].x, those[-1].x)


@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("ddpm", {}, "euler_ancestral"),
        ("euler_ancestral_cfg_pp", {}, "euler_ancestral"),
        ("dpmpp_2s_ancestral_cfg_pp", {}, "dpmpp_2s_ancestral"),
    ],
)
def test_what_is_another_sampler_by_another_name_draws_the_same(name, options, other) -> None:  # type: ignore[no-untyped-def]
    sigmas = legacy_ddpm(15)
    ends = []
    for which, given in ((name, options), (other, {})):
        noise = PictureNoise([5], SHAPE)
        ends.append(steps(which, TwoPeaks(), noise.start(sigmas[0]), sigmas, noise, **given)[-1].x)
    assert same(*ends)


@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if row.stochastic and "s_noise" in row.options])
def test_s_noise_scales_what_is_added(name: str) -> None:
    sigmas = legacy_ddpm(30)[:12]
    ends = []
    for s_noise in (0.0, 0.5, 1.0):
        noise = PictureNoise([5], SHAPE)
        # The prediction is steady and the method linear, so x is linear in the noise.
        run = steps(name, lambda x, sigma: Prediction(0.1 * x), noise.start(sigmas[0]), sigmas, noise, s_noise=s_noise)
        ends.append(run[-1].x)
    assert same(ends[1], (ends[0] + ends[2]) / 2)


def guided(x: Tensor, sigma: float) -> Prediction:
    """A prediction that guidance pushed 0.5 off the unconditional one."""
    uncond = Gaussian()(x, sigma).denoised
    return Prediction(uncond + 0.5, uncond)


def test_euler_ancestral_cfg_pp_takes_its_noise_from_the_unconditional_prediction() -> None:
    sigmas = legacy_ddpm(12)
    x = PictureNoise([1], SHAPE).start(sigmas[0])
    for step, (sigma, sigma_next) in zip(
        steps("euler_ancestral_cfg_pp", guided, x, sigmas, silence, eta=0.0),
        pairwise(sigmas),
        strict=True,
    ):
        prediction = guided(x, sigma)
        assert prediction.uncond is not None
        assert same(step.x, prediction.denoised + sigma_next * (x - prediction.uncond) / sigma)
        x = step.x


def test_2s_ancestral_cfg_pp_moves_to_the_unconditional_prediction_and_adds_the_guidance() -> None:
    sigmas = legacy_ddpm(12)
    x = PictureNoise([1], SHAPE).start(sigmas[0])
    ours = steps("dpmpp_2s_ancestral_cfg_pp", guided, x, sigmas, silence, eta=0.0)
    for step, (sigma, sigma_next) in zip(ours, pairwise(sigmas), strict=True):
        # What guidance adds is steady, so the unconditional method and half a unit are the whole step.
        alone = steps("dpmpp_2s_ancestral", Gaussian(), x, [sigma, sigma_next], silence, eta=0.0)[-1].x
        assert same(step.x, alone + 0.5)
        x = step.x


def test_tcd_goes_below_the_next_level_and_noises_back_up() -> None:
    table = legacy_ddpm_table().tolist()
    sigmas = (table[999], table[499], table[250])
    noise, replay = PictureNoise([1], SHAPE), PictureNoise([1], SHAPE)
    x = noise.start(sigmas[0])
    first, second = steps("tcd", Gaussian(), x, sigmas, noise, eta=0.3)
    replay()
    for step, start, sigma, sigma_next, below in (
        (first, x, sigmas[0], sigmas[1], table[349]),  # 0.7 x 499 = 349.3
        (second, first.x, sigmas[1], sigmas[2], table[175]),
    ):
        eps = (start - Gaussian()(start, sigma).denoised) / sigma
        expected = step.denoised + below * eps + math.sqrt(sigma_next**2 - below**2) * replay()
        assert same(step.x, expected)


def test_sa_solver_draws_on_its_middle_levels_only() -> None:
    sigmas = legacy_ddpm(30)
    counted = Counted(PictureNoise([0], SHAPE))
    run = steps("sa_solver", Gaussian(), PictureNoise([0], SHAPE).start(sigmas[0]), sigmas, counted)
    assert counted.draws == sum(0.5712 <= step.sigma <= 5.0924 for step in run) == 18


def test_restart_goes_up_once_near_the_end_and_counts_its_calls() -> None:
    sigmas = edm(20, rho=7.0)
    peaks, counted = TwoPeaks(), Counted(PictureNoise([0], SHAPE))
    x = PictureNoise([0], SHAPE).start(sigmas[0])
    run = steps("restart", peaks, x, sigmas, counted, restarts=2, restart_steps=5)
    longest = max(run, key=lambda step: step.calls)
    assert longest.sigma == min(sigmas[:-1], key=lambda sigma: abs(math.log(sigma / 0.1)))
    assert longest.calls == 2 + 2 * 5 * 2
    assert [level for level in peaks.levels if level == 2.0] == [2.0, 2.0]
    assert counted.draws == 2
    assert sum(step.calls for step in run) == len(peaks.levels)


@pytest.mark.parametrize(
    ("sigmas", "options"),
    [
        ((14.6, 0.0), {}),  # no level to restart from
        ((14.6, 3.0, 0.0), {}),  # the nearest is above where a restart goes
        (edm(20), {"restart_steps": 0}),
        (edm(20), {"restarts": 0}),
    ],
)
def test_without_a_restart_it_is_heun(sigmas: tuple[float, ...], options: dict[str, float]) -> None:
    x = PictureNoise([0], SHAPE).start(sigmas[0])
    ours = steps("restart", TwoPeaks(), x, sigmas, silence, **options)
    assert torch.equal(ours[-1].x, steps("heun", TwoPeaks(), x, sigmas, silence)[-1].x)


def test_a_restart_that_would_go_down_is_refused() -> None:
    with pytest.raises(ScheduleError, match="must be below restart_high"):
        steps("restart", TwoPeaks(), torch.zeros(SHAPE), edm(20), silence, restart_high=0.05)


@pytest.mark.parametrize(("points", "limit"), [(200, 1e-3), (20_000, 1e-5)])
def test_er_sde_is_what_its_authors_sums_tend_to(points: int, limit: float) -> None:
    sigmas = legacy_ddpm(20)
    noise, replay = (PictureNoise([6], SHAPE) for _ in range(2))
    last = steps("er_sde", TwoPeaks(), noise.start(sigmas[0]).double(), sigmas, noise)[-1].x
    assert same(last, summed_er_sde(TwoPeaks(), replay.start(sigmas[0]).double(), sigmas, replay, points), limit)


def summed_er_sde(peaks: TwoPeaks, x: Tensor, sigmas: tuple[float, ...], noise: PictureNoise, points: int) -> Tensor:
    """Cui et al. 2023, algorithm 3 with the integrals as sums over evenly spaced points, in double precision."""

    def phi(level: Tensor) -> Tensor:
        return level * (torch.exp(level**0.3) + 10)

    levels = torch.tensor(sigmas[:-1], dtype=torch.float64)
    seen: list[Tensor] = []
    first: list[Tensor] = []
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        seen.append(peaks(x, float(s)).denoised)
        kept = phi(t) / phi(s)
        x = kept * x + (1 - kept) * seen[i]
        at = t + (s - t) / points * torch.arange(points)
        if i >= 1:
            first.append((seen[i] - seen[i - 1]) / (s - levels[i - 1]))
            x = x + (t - s + phi(t) * ((s - t) / points / phi(at)).sum()) * first[-1]
        if i >= 2:
            second = (first[-1] - first[-2]) / ((s - levels[i - 2]) / 2)
            x = x + ((t - s) ** 2 / 2 + phi(t) * ((at - s) * (s - t) / points / phi(at)).sum()) * second
        x = x + (t**2 - (kept * s) ** 2).sqrt() * noise.between(float(s), float(t))
    return peaks(x, float(levels[-1])).denoised
