"""The samplers, in one table. Importing them does not import torch.

A sampler is a generator (denoise, x, sigmas, *, noise, **options) -> Iterator[Step].
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sdxl_core.diffusion.options import Allowed, Between, OneOf
from sdxl_core.diffusion.samplers.ancestral import ddpm, dpm_2_ancestral
from sdxl_core.diffusion.samplers.cfg_pp import (
    dpmpp_2m_cfg_pp,
    dpmpp_2s_ancestral_cfg_pp,
    euler_ancestral_cfg_pp,
    euler_cfg_pp,
    res_multistep_ancestral_cfg_pp,
    res_multistep_cfg_pp,
)
from sdxl_core.diffusion.samplers.consistency import lcm, tcd
from sdxl_core.diffusion.samplers.deis import deis
from sdxl_core.diffusion.samplers.dpm import dpm_2, dpm_adaptive, dpm_fast
from sdxl_core.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2s_ancestral
from sdxl_core.diffusion.samplers.dpmpp_sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from sdxl_core.diffusion.samplers.er_sde import er_sde
from sdxl_core.diffusion.samplers.euler import ddim, euler, euler_ancestral
from sdxl_core.diffusion.samplers.heun import heun
from sdxl_core.diffusion.samplers.heunpp import heunpp2
from sdxl_core.diffusion.samplers.lms import lms
from sdxl_core.diffusion.samplers.pndm import gradient_estimation, ipndm, ipndm_v
from sdxl_core.diffusion.samplers.res import res_multistep, res_multistep_ancestral
from sdxl_core.diffusion.samplers.restart import restart
from sdxl_core.diffusion.samplers.sa_solver import sa_solver, sa_solver_pece
from sdxl_core.diffusion.samplers.sampler import Sampler
from sdxl_core.diffusion.samplers.seeds import seeds_2, seeds_3
from sdxl_core.diffusion.samplers.unipc import uni_pc
from sdxl_core.types import Option, Prediction
from sdxl_core.unknown import unknown

_UP_TO_3, _UP_TO_4 = OneOf((1, 2, 3)), OneOf((1, 2, 3, 4))
_SHARE = Between(0.1, 1.0)
_ADAPTIVE: Mapping[str, Allowed] = {
    "order": OneOf((2, 3)),
    "rtol": Between(1e-5, 1.0),
    "atol": Between(1e-8, 1.0),
    "h_init": Between(1e-3, 10.0),
}
_RESTARTS = {"restarts": Between(0, 100, whole=True), "restart_steps": Between(0, 1000, whole=True)}
_SA_ORDERS = {"predictor_order": _UP_TO_4, "corrector_order": OneOf((0, 1, 2, 3, 4))}

_ROWS = (
    Sampler(euler, 1, 1, False, "arXiv:2206.00364"),
    Sampler(euler_ancestral, 1, 1, True, "arXiv:2010.02502"),
    Sampler(heun, 2, 2, False, "arXiv:2206.00364"),
    Sampler(heunpp2, 1, 3, False, "Carzit: sd-webui-samplers-scheduler"),
    Sampler(dpm_2, 2, 2, False, "arXiv:2206.00927"),
    Sampler(dpm_2_ancestral, 2, 2, True, "arXiv:2206.00927"),
    Sampler(dpm_fast, 3, 1, False, "arXiv:2206.00927"),
    Sampler(dpm_adaptive, 3, None, False, "arXiv:2206.00927", _ADAPTIVE),
    Sampler(dpmpp_2s_ancestral, 2, 2, True, "arXiv:2211.01095"),
    Sampler(dpmpp_2m, 2, 1, False, "arXiv:2211.01095"),
    Sampler(dpmpp_sde, 2, 2, True, "arXiv:2211.01095", {"r": _SHARE}),
    Sampler(dpmpp_2m_sde, 2, 1, True, "arXiv:2211.01095", {"solver_type": OneOf(("midpoint", "heun"))}),
    Sampler(dpmpp_3m_sde, 2, 1, True, "arXiv:2211.01095"),
    Sampler(lms, 4, 1, False, "Hairer, Norsett, Wanner: Solving ODEs I, III.5", {"order": _UP_TO_4}),
    Sampler(ipndm, 2, 1, False, "arXiv:2202.09778", {"order": _UP_TO_4}),
    Sampler(ipndm_v, 4, 1, False, "arXiv:2312.00094", {"order": _UP_TO_4}),
    Sampler(deis, 3, 1, False, "arXiv:2204.13902", {"order": _UP_TO_3}),
    Sampler(uni_pc, 4, 1, False, "arXiv:2302.04867", {"order": _UP_TO_3, "solver_type": OneOf(("bh1", "bh2"))}),
    Sampler(gradient_estimation, 1, 1, False, "arXiv:2306.04848"),
    Sampler(res_multistep, 2, 1, False, "arXiv:2308.02157"),
    Sampler(res_multistep_ancestral, 2, 1, True, "arXiv:2308.02157"),
    Sampler(ddim, 1, 1, False, "arXiv:2010.02502"),
    Sampler(ddpm, 1, 1, True, "arXiv:2006.11239"),
    Sampler(er_sde, 2, 1, True, "arXiv:2309.06169", {"order": _UP_TO_3}),
    Sampler(sa_solver, 4, 1, True, "arXiv:2309.05019", _SA_ORDERS),
    Sampler(sa_solver_pece, 4, 2, True, "arXiv:2309.05019", _SA_ORDERS),
    Sampler(seeds_2, 2, 2, True, "arXiv:2305.14267", {"r": _SHARE, "solver_type": OneOf(("phi_1", "phi_2"))}),
    Sampler(seeds_3, 3, 3, True, "arXiv:2305.14267"),
    Sampler(restart, 2, 2, True, "arXiv:2306.14878", _RESTARTS),
    Sampler(lcm, 0, 1, True, "arXiv:2310.04378"),
    Sampler(tcd, 1, 1, True, "arXiv:2402.19159", {"eta": Between(0.0, 1.0)}),
    Sampler(euler_cfg_pp, 1, 1, False, "arXiv:2406.08070", uncond=True),
    Sampler(euler_ancestral_cfg_pp, 1, 1, True, "arXiv:2406.08070", uncond=True),
    Sampler(dpmpp_2m_cfg_pp, 2, 1, False, "arXiv:2406.08070", uncond=True),
    Sampler(dpmpp_2s_ancestral_cfg_pp, 2, 2, True, "arXiv:2406.08070", uncond=True),
    Sampler(res_multistep_cfg_pp, 2, 1, False, "arXiv:2406.08070", uncond=True),
    Sampler(res_multistep_ancestral_cfg_pp, 2, 1, True, "arXiv:2406.08070", uncond=True),
)

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({row.name: row for row in _ROWS})
"""Every sampler under its name."""


def resolve_sampler(name: str) -> Sampler:
    """The row of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Refuse an unknown sampler, an option that it does not take, or a value that the option cannot have.

    Raises:
        UsageError: with a suggestion where there is one.
    """
    resolve_sampler(name).check(options)


def model_calls(name: str, sigmas: Sequence[float], options: Mapping[str, Option] | None = None) -> int | None:
    """How many times `denoise` will be called over the whole list; None where only the run itself can tell.

    Raises:
        UsageError: as `check_options`.
    """
    levels = levels_asked(name, sigmas, options)
    return None if levels is None else len(levels)


def levels_asked(
    name: str, sigmas: Sequence[float], options: Mapping[str, Option] | None = None
) -> tuple[float, ...] | None:
    """The level of every call of `denoise` over the whole list, in order; None where only the run itself can tell.

    Raises:
        UsageError: as `check_options`.
    """
    options = options or {}
    check_options(name, options)
    return _walked(name, tuple(sigmas), tuple(options.items()))


@lru_cache(maxsize=64)
def looks_back(name: str, *options: tuple[str, Option]) -> bool:
    """Whether a sampler's step depends on earlier ones, so that a walk that is cut in two is another walk.

    Seen from walking a list of levels with a number for a latent, whole and cut. A sampler that goes its own steps
    counts as one that looks back.
    """
    sampler = SAMPLERS[name]
    if sampler.calls is None:
        return True

    def walked(x: Any, sigmas: Sequence[float]) -> Any:
        *_, last = sampler.fn(_bent, x, sigmas, noise=_Silence(), **dict(options))
        return last.x

    return any(walked(walked(9.0, _LEVELS[: cut + 1]), _LEVELS[cut:]) != walked(9.0, _LEVELS) for cut in (1, 2, 3, 4))


@lru_cache(maxsize=64)
def _walked(name: str, sigmas: tuple[float, ...], options: tuple[tuple[str, Option], ...]) -> tuple[float, ...] | None:
    """Walk the list with the number 0 for a latent: what a sampler asks for does not depend on the answers."""
    sampler = SAMPLERS[name]
    if sampler.calls is None:
        return None
    asked: list[float] = []

    def denoise(x: Any, sigma: float) -> Prediction:
        asked.append(sigma)
        return Prediction(_NOTHING, _NOTHING)

    for _ in sampler.fn(denoise, _NOTHING, sigmas, noise=_Silence(), **dict(options)):
        pass
    return tuple(asked)


_NOTHING: Any = 0.0
_LEVELS = (9.0, 5.0, 3.0, 1.5, 0.5, 0.0)


def _bent(x: Any, sigma: float) -> Prediction:
    """A prediction that no two steps agree on."""
    return Prediction(x / (1 + sigma) + sigma**2 / 50, x / (2 + sigma))


class _Silence:
    def __call__(self) -> Any:
        return _NOTHING

    def between(self, sigma: float, sigma_next: float) -> Any:
        return _NOTHING
