"""What the shell offers after a flag: presets, samplers, schedules, model files. Reads no more than file names."""

import typer

Candidates = list[tuple[str, str] | str]


def complete_preset(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of presets, with their descriptions."""
    from sdxl_core.presets import list_presets

    return [(e.name, e.description) for e in list_presets() if e.kind != "broken" and e.name.startswith(incomplete)]


def complete_sampler(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of samplers."""
    from sdxl_core.diffusion.samplers import SAMPLERS

    return [name for name in SAMPLERS if name.startswith(incomplete)]


def complete_guider(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of the ways of guidance."""
    from sdxl_core.guider_config import GUIDANCE_METHODS

    return [name for name in GUIDANCE_METHODS if name.startswith(incomplete)]


def complete_schedule(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of noise schedules, with what they are."""
    from sdxl_core.diffusion.schedules import SCHEDULES

    return [(row.name, row.summary) for row in SCHEDULES.values() if row.name.startswith(incomplete)]


def complete_prediction(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of what networks predict, in words."""
    from sdxl_core.prediction import PREDICTIONS

    return [(name, kind.title) for name, kind in PREDICTIONS.items() if name.startswith(incomplete)]


def complete_program(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Programs whose conventions can be taken."""
    from sdxl_core.compat import PROGRAMS

    return [(name, program.title) for name, program in PROGRAMS.items() if name.startswith(incomplete)]


def complete_model(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """Names of the model files that lie in the models folders."""
    from sdxl_cli.places import models_folders
    from sdxl_core.checkpoints.find import list_files

    return [file.name for file in list_files(models_folders()) if file.name.startswith(incomplete)]


def complete_handover(_: typer.Context, __: list[str], incomplete: str) -> Candidates:
    """One of each way to hand over to a refiner."""
    from sdxl_core.diffusion.handover import EXAMPLES

    return [text for text in EXAMPLES if text.startswith(incomplete)]
