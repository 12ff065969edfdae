"""What a picture says about how it was made, written into it; `picture_files` reads it. Imports no torch.

A record holds what the picture depends on and nothing that differs from run to run, so that the same plan on the same
machine gives the same bytes.
"""

import html
import io
import json
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from sdxl_core.config import Config
from sdxl_core.diffusion.handover import Switch
from sdxl_core.diffusion.schedules import resolve_schedule
from sdxl_core.errors import OutputError
from sdxl_core.guider_config import GuiderConfig
from sdxl_core.picture_files import (
    AI_MARK,
    EXIF_IFD,
    PARAMETERS_KEY,
    RECORD_KEY,
    SOFTWARE,
    UNICODE_COMMENT,
    USER_COMMENT,
    XMP_KEY,
)
from sdxl_core.plan import Plan

# Names that other tools know, from the `parameters` text of AUTOMATIC1111's web UI and its readers.
_SAMPLER_NAMES = {
    "euler": "Euler",
    "heun": "Heun",
    "euler_ancestral": "Euler a",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "lms": "LMS",
    "heunpp2": "HeunPP2",
    "dpm_2": "DPM2",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "ddim": "DDIM",
    "uni_pc": "UniPC",
    "deis": "DEIS",
    "ipndm": "IPNDM",
    "ipndm_v": "IPNDM_V",
}
_SCHEDULE_NAMES = {
    "legacy_ddpm": "SGM Uniform",
    "normal": "Normal",
    "simple": "Simple",
    "sgm_uniform": "SGM Uniform",
    "ddim_uniform": "DDIM",
    "edm": "Karras",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "beta_a1111": "Beta",
    "kl_optimal_a1111": "KL Optimal",
    "align_your_steps_a1111": "Align Your Steps",
}


Role = Literal["model", "vae", "refiner", "model_parts", "refiner_parts"]
"""What a file of weights is in a picture; parts are what a model takes from another one's file."""


class Weights(Config):
    """One file of weights: `sha256` of the whole file, None where it was not computed."""

    role: Role
    name: str
    sha256: str | None = None


class Record(Config):
    """Everything that is written into a picture.

    Args:
        software: name and version of the program.
        plan: what was asked for, with device, dtype and attention as they were resolved.
        sigmas: the noise levels that the model walked, decreasing, down to 0 or to where the refiner went on.
        refiner_sigmas: those that the refiner walked.
        switch: where the refiner took over the same walk; None without one, or where noise was added first.
        model_calls: evaluations of the networks.
        weights: the files that were read.
        versions: of Python, torch and the device's driver libraries.
        device_name: of the hardware.
    """

    format: Literal[1] = 1
    software: str
    plan: Plan
    sigmas: tuple[float, ...]
    refiner_sigmas: tuple[float, ...] = ()
    switch: Switch | None = None
    model_calls: int
    weights: tuple[Weights, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    device_name: str = ""

    def to_json(self) -> str:
        """One line of ASCII: no control or foreign character can get lost on its way through a metadata field."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))


def parameters_text(record: Record) -> str:
    """The record as the text that AUTOMATIC1111's web UI writes and most tools read."""
    plan, guider = record.plan, record.plan.guider
    pairs: dict[str, object] = {
        "Steps": plan.steps,
        "Sampler": _SAMPLER_NAMES.get(plan.sampler.name, plan.sampler.name),
        **_schedule(plan),
        "CFG scale": f"{guider.scale:g}" if guider.name == "vanilla_cfg" else 1,
        **_guidance(guider),
        "Seed": plan.seed,
        "Size": f"{plan.size[1]}x{plan.size[0]}",
    }
    if plan.source is not None:
        pairs["Denoising strength"] = f"{plan.source.strength:g}"
    for weights in record.weights:
        if weights.role == "refiner":
            short = f" [{weights.sha256[:10]}]" if weights.sha256 else ""
            pairs["Refiner"] = f"{weights.name.removesuffix('.safetensors')}{short}"
            if record.switch is not None:
                pairs["Refiner switch at"] = f"{record.switch.fraction:.4g}"
        if weights.role not in ("model", "vae"):
            continue
        hash_key, name_key = ("Model hash", "Model") if weights.role == "model" else ("VAE hash", "VAE")
        if weights.sha256:
            pairs[hash_key] = weights.sha256[:10]
        pairs[name_key] = weights.name.removesuffix(".safetensors") if weights.role == "model" else weights.name
    options = plan.sampler.options()
    pairs |= {key: options[name] for name, key in (("s_churn", "Sigma churn"), ("eta", "Eta")) if name in options}
    pairs |= {"RNG": "CPU", "Version": record.software}
    lines = [plan.prompt]
    if plan.negative:
        lines.append(f"Negative prompt: {plan.negative}")
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items())])


def _guidance(guider: GuiderConfig) -> dict[str, object]:
    """What no other tool has a name for, in one pair: which ways of guidance were on; all of it is in the record."""
    words = guider.words()
    return {"Guidance": " + ".join(words)} if words else {}


def _schedule(plan: Plan) -> dict[str, object]:
    """The schedule by the name that the web UI has for it, else by ours."""
    name, options = plan.discretization.name, plan.discretization.options()
    shown: dict[str, object] = {"Schedule type": _SCHEDULE_NAMES.get(name, name)}
    if name in ("edm", "karras"):
        sigmas, default = plan.schedule(), resolve_schedule(name).options["rho"]
        shown["Schedule max sigma"] = f"{sigmas[0]:.6g}"
        shown["Schedule min sigma"] = f"{sigmas[-2]:.6g}"
        shown["Schedule rho"] = f"{options.get('rho', default):g}"
    return shown


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def encode_picture(pixels: NDArray[np.uint8], format: str, record: Record | None) -> bytes:
    """A picture file in memory.

    Args:
        pixels: (h, w, 3).
        format: png, jpg or webp.
        record: what to write into it; None writes no metadata at all.

    Raises:
        OutputError: the record does not fit into the format.
    """
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if format == "png":
        # Level 1 takes a quarter of the time of the default and gives files a tenth larger.
        image.save(buffer, "PNG", pnginfo=_png_info(record), compress_level=1)
        return buffer.getvalue()
    embedded = {} if record is None else {"exif": _exif(record), "xmp": _xmp(record, whole=True)}
    try:
        if format == "jpg":
            image.save(buffer, "JPEG", quality=95, subsampling=0, **embedded)
        else:
            image.save(buffer, "WEBP", quality=92, method=4, **embedded)
    except ValueError as error:
        raise OutputError(f"the record does not fit into a {format} file: {error}", hint="use --format png") from None
    return buffer.getvalue()


def _png_info(record: Record | None) -> PngInfo | None:
    if record is None:
        return None
    info = PngInfo()
    info.add_text(PARAMETERS_KEY, parameters_text(record))
    info.add_itxt(RECORD_KEY, record.to_json())
    info.add_itxt(XMP_KEY, _xmp(record).decode())
    return info


def _exif(record: Record) -> Image.Exif:
    exif = Image.Exif()
    exif[SOFTWARE] = record.software
    comment = UNICODE_COMMENT + parameters_text(record).encode("utf-16-be")
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    return exif


def _xmp(record: Record, whole: bool = False) -> bytes:
    """The mark of a machine-made picture (IPTC), and with `whole` the record, for formats without free text fields."""
    own = f'\n   sdxl:record="{html.escape(record.to_json())}"' if whole else ""
    return f"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:sdxl="urn:sdxl:record"
   xmp:CreatorTool="{html.escape(record.software)}"
   Iptc4xmpExt:DigitalSourceType="{AI_MARK}"{own}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>""".encode()
