"""What one picture is conditioned on. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConditionRequest:
    """One row of a conditioning.

    Args:
        prompt: read by ViT-L, and by ViT-bigG where prompt_2 is None.
        prompt_2: read by ViT-bigG instead.
        original_size: (height, width) in pixels of the picture before it was scaled.
        crop_coords_top_left: (top, left) in pixels of the crop.
        target_size: (height, width) in pixels of the crop itself.
        aesthetic_score: 0 to 10, read by the refiner only.
    """

    prompt: str
    prompt_2: str | None = None
    original_size: tuple[int, int] = (1024, 1024)
    crop_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] = (1024, 1024)
    aesthetic_score: float = 6.0
