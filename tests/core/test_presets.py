import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support_tiny import tiny_config

from sdxl_core.config import FirstStageConfig, RecipeConfig, borrowed_towers
from sdxl_core.errors import PresetError
from sdxl_core.presets import Preset, list_presets, load_preset, shipped_file, user_folder
from sdxl_core.typed_toml import read_toml

ROOT = Path(__file__).parents[2]
Put = Callable[[str, str], Path]
MORE = " (and 1 more)"
BASE = 'base = "sdxl-base-1.0"\n'


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder for the user's presets, still missing."""
    return tmp_path / "sdxl" / "presets"


@pytest.fixture
def put(user: Path) -> Put:
    """Write a preset of the user's by name."""

    def write(name: str, text: str) -> Path:
        user.mkdir(parents=True, exist_ok=True)
        path = user / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def complaint(name: str | Path, user: Path, **flags: object) -> PresetError:
    with pytest.raises(PresetError) as caught:
        load_preset(name, {key.replace("__", "."): value for key, value in flags.items()}, user=user)
    return caught.value


def shipped() -> list[str]:
    return [entry.name for entry in list_presets(ROOT / "none")]


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_preset_is_sound(name: str, user: Path) -> None:
    preset = load_preset(name, user=user)
    assert preset.name == name
    assert preset.description
    assert preset.values.keys() == preset.origins.keys()
    assert "flags" not in preset.origins.values()


def test_a_refiner_knows_the_levels_that_it_was_trained_on(user: Path) -> None:
    assert load_preset("sdxl-refiner-1.0", user=user).model.lowest_levels == 200
    micro = read_toml(shipped_file("train/micro-refiner.toml"))["train"]["loss"]["index_range"]
    assert micro == [0, load_preset("micro-refiner", user=user).model.lowest_levels]


@pytest.mark.parametrize("name", ["./other.toml", "more/other.toml", "other.toml"])
def test_a_refiner_given_as_a_path_lies_beside_the_file_that_names_it(put: Put, user: Path, name: str) -> None:
    path = put("mine", f'{BASE}[recipe.refiner]\npreset = "{name}"\n')
    assert load_preset(path, user=user).recipe.refiner.preset == os.path.abspath(path.parent / name)
    above = put("above", 'base = "mine"\n')
    assert load_preset(above, user=user).recipe.refiner.preset == os.path.abspath(path.parent / name)


def test_a_shipped_model_is_named_like_its_file(user: Path) -> None:
    for entry in list_presets(user):
        if entry.kind == "model":
            assert load_preset(entry.name, user=user).model.name == entry.name


def test_the_published_architectures(user: Path) -> None:
    base, refiner = (load_preset(f"sdxl-{kind}-1.0", user=user).model for kind in ("base", "refiner"))
    assert (base.kind, base.network.channel_mult, base.network.transformer_depth) == ("base", (1, 2, 4), (1, 2, 10))
    assert (refiner.kind, refiner.network.channel_mult, refiner.network.context_dim) == ("refiner", (1, 2, 4, 4), 1280)
    assert base.file.bytes == 6938078334


def test_later_layers_win_and_every_value_says_where_it_came_from(user: Path, put: Put) -> None:
    mine = put("mine", 'base = "sdxl-fast"\n[recipe.sampler]\nname = "heun"\n[recipe.guider]\nscale = 6.0')
    below = put("below", 'base = "mine"\n[recipe]\nnegative = "fog"')
    preset = load_preset("below", {"recipe.guider.scale": 7.5, "recipe.size": None}, user=user)
    origins, values = preset.origins, preset.values
    assert (values["recipe.guider.scale"], origins["recipe.guider.scale"]) == (7.5, "flags")
    assert (values["recipe.negative"], origins["recipe.negative"]) == ("fog", "recipe below")
    assert (values["recipe.sampler.name"], origins["recipe.sampler.name"]) == ("heun", "recipe mine")
    assert (values["recipe.steps"], origins["recipe.steps"]) == (20, "recipe sdxl-fast")
    assert (values["model.kind"], origins["model.kind"]) == ("base", "model sdxl-base-1.0")
    assert (values["recipe.size"], origins["recipe.size"]) == (None, "default")
    assert origins["model.conditioner.embedders[0].kind"] == "model sdxl-base-1.0"
    assert origins["model.conditioner.embedders[0].width"] == "default"
    assert load_preset(below, user=user).origins["recipe.negative"] == f"file {below}"
    assert load_preset(mine, user=user).recipe.sampler.name == "heun"


def test_a_recipe_without_values_is_its_base(user: Path, put: Put) -> None:
    put("same", BASE)
    same, base = load_preset("same", user=user), load_preset("sdxl-base-1.0", user=user)
    assert (same.model, same.recipe, dict(same.origins)) == (base.model, base.recipe, dict(base.origins))


def test_flags_take_lists_and_tuples(user: Path) -> None:
    for size in ([832, 1216], (832, 1216)):
        assert load_preset("sdxl-base-1.0", {"recipe.size": size}, user=user).recipe.size == (832, 1216)


def test_a_file_of_ones_own_describes_a_model_of_ones_own(user: Path, tmp_path: Path) -> None:
    text = shipped_file("models/sdxl-base-1.0.toml").read_text(encoding="utf-8")
    path = tmp_path / "vpred.toml"
    path.write_text(text.replace('"sdxl-base-1.0"', '"vpred"').replace('scaling = "eps"', 'scaling = "v"'))
    preset = load_preset(path, user=user)
    assert (preset.model.name, preset.model.denoiser.scaling) == ("vpred", "v")
    recipe = tmp_path / "recipes" / "r.toml"
    recipe.parent.mkdir()
    recipe.write_text('base = "../vpred.toml"\n[recipe]\nsteps = 3')
    assert load_preset(recipe, user=user).model.name == "vpred"


def test_a_users_preset_hides_a_shipped_one_and_may_build_on_it(user: Path, put: Put) -> None:
    put("sdxl-base-1.0", BASE + "[recipe]\nsteps = 44")
    preset = load_preset("sdxl-base-1.0", user=user)
    assert preset.recipe.steps == 44
    assert preset.model.name == "sdxl-base-1.0"


def test_circles_are_refused(user: Path, put: Put) -> None:
    put("a", 'base = "b"')
    put("b", 'base = "a"')
    assert "in a circle" in complaint("a", user).message
    own = put("own", 'base = "./own.toml"')
    assert complaint(own, user).message.startswith(f"{own}: base: ")


def test_unknown_names_are_met_with_a_near_one_and_the_list(user: Path, put: Put) -> None:
    error = complaint("sdxl-base", user)
    assert error.message == "no preset is named 'sdxl-base'; did you mean sdxl-base-1.0?"
    assert "sdxl-fast" in (error.hint or "")
    path = put("mine", 'base = "sdxl-bas-1.0"')
    assert complaint("mine", user).message.startswith(f"{path}: base: no preset is named 'sdxl-bas-1.0'; did you mean")
    assert "No such file" in complaint("./none.toml", user).message
    assert "No such file" in complaint("none.toml", user).message
    for name in ("", "..", "a\0b", "x" * 5000):
        assert "no preset is named" in complaint(name, user).message


def test_a_recipe_that_names_a_sampler_takes_no_options_from_its_bases(user: Path, put: Put) -> None:
    put("below", BASE + "[recipe.sampler]\nname = 'euler_ancestral'\neta = 0.5\n[recipe.discretization]\nname = 'edm'")
    put("same", "base = 'below'\n[recipe.sampler]\ns_noise = 1.1\n[recipe.discretization]\nrho = 7.0")
    put("other", "base = 'same'\n[recipe.sampler]\nname = 'lms'\n[recipe.discretization]\nname = 'legacy_ddpm'")
    assert load_preset("same", user=user).recipe.sampler.options() == {"eta": 0.5, "s_noise": 1.1}
    other = load_preset("other", user=user)
    assert other.recipe.sampler.options() == {}
    assert other.recipe.discretization.options() == {}
    assert not any(key.endswith((".eta", ".s_noise")) for key in other.origins)


WRONG = {
    "base = 3": "base: expected text",
    "[recipe]\nsteps = 3": "base: missing",
    "[model]\n" + BASE: "model.base: unknown key",
    BASE + "[model]": "base: a preset with a [model] of its own has no base",
    BASE + "[recip]": "recip: unknown key; did you mean recipe?",
    BASE + "model = 3": "model: expected a table [model]",
    BASE + "[recipe]\nstep = 3": "recipe.step: unknown key; did you mean steps?",
    BASE + "[recipe]\nsampler = 'heun'": "recipe.sampler: expected a table such as {name = 'heun'}, got 'heun'",
    BASE + "[recipe]\nsteps = 0": "recipe.steps: must be at least 1, got 0",
    BASE + "[recipe.sampler]\nnmae = 'x'": "recipe.sampler.nmae: sampler 'euler' has no option 'nmae'",
    BASE + "[recipe.sampler]\nname = 'eulr'": "recipe.sampler.name: unknown sampler 'eulr'; did you mean euler?",
    BASE
    + "[recipe.sampler]\nname = 'lms'\norder = 5": "recipe.sampler.order: order of sampler 'lms' must be 1, 2, 3 or",
    BASE
    + "[recipe.discretization]\nname = 'karas'": "recipe.discretization.name: unknown schedule 'karas'; did you mean",
    BASE
    + "[recipe.discretization]\nrho = 7.0": "recipe.discretization.rho: schedule 'legacy_ddpm' has no option 'rho'",
    BASE
    + "[recipe.discretization]\nname = 'edm'\nrho = 0.0": "recipe.discretization.rho: rho of schedule 'edm' must be",
    "[model]\nname = 'x'": "model.kind: missing",
    "[model.network]\nchanel_mult = [1]": "model.network.chanel_mult: unknown key; did you mean channel_mult?",
}


@pytest.mark.parametrize("text", WRONG)
def test_errors_name_the_file_and_the_key(user: Path, put: Put, text: str) -> None:
    path = put("mine", text)
    assert complaint("mine", user).message.startswith(f"{path}: {WRONG[text]}")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("num_res_blocks", "num_res_block", "model.network.num_res_block: unknown key; did you mean num_res_blocks?"),
        (
            "channel_mult",
            "chanel_mult",
            "model.network.chanel_mult: unknown key; did you mean channel_mult? (and 1 more)",
        ),
        ("[1, 2, 4]", "[1, 2.5, 4]", "model.network.channel_mult[1]: expected a whole number, got 2.5"),
        ("[1, 2, 10]", "[1, 2]", "model.network: transformer_depth has 2 entries, channel_mult 3"),
        ("2816", "2815", "model: the embedders give a vector of 2816, network.adm_in_channels is 2815"),
        ('"base"', '"bass"', "model.kind: expected base, refiner, inpaint or edit, got 'bass'; did you mean base?"),
    ],
)
def test_slips_in_a_model_file_are_named(user: Path, tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = shipped_file("models/sdxl-base-1.0.toml").read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / "x.toml"
    path.write_text(text.replace(right, wrong))
    assert complaint(path, user).message == f"{path}: {message}"


def test_errors_in_flags_are_blamed_on_the_flags(user: Path) -> None:
    for flags, message in (
        ({"recipe__steps": 0}, "flags: recipe.steps: must be at least 1, got 0"),
        ({"recipe__stps": 1}, "flags: recipe.stps: unknown key; did you mean steps?"),
        ({"recip__steps": 1}, "flags: recip: unknown key; did you mean recipe?"),
        ({"recipe__guider": 3}, "flags: recipe.guider: expected a table, got 3"),
        ({"model__network__context_dim": 3}, "flags: model: the text towers give 2048 features"),
    ):
        assert complaint("sdxl-base-1.0", user, **flags).message.startswith(message)


def test_the_list_holds_shipped_and_own_presets_and_names_the_broken(user: Path, put: Put) -> None:
    path = put("mine", BASE + 'description = "all mine"')
    broken = put("broken", "= 3")
    put("odd", "base = 3")
    entries = {entry.name: entry for entry in list_presets(user)}
    assert {"sdxl-base-1.0", "sdxl-refiner-1.0", "sdxl-fast", "mine", "broken", "odd"} <= entries.keys()
    assert (entries["mine"].kind, entries["mine"].source, entries["mine"].path) == ("recipe", "user", path)
    assert entries["mine"].description == "all mine"
    assert entries["sdxl-base-1.0"].kind == "model"
    assert entries["sdxl-base-1.0"].source == "shipped"
    assert entries["sdxl-base-1.0"].description == "Stable Diffusion XL 1.0 base, 1024x1024"
    assert (entries["broken"].kind, entries["odd"].kind) == ("broken", "broken")
    assert str(broken) in entries["broken"].description


def test_the_users_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "sdxl" / "presets"
    user_folder().mkdir(parents=True)
    (user_folder() / "mine.toml").write_text(BASE)
    assert load_preset("mine").name == "mine"
    assert "mine" in [entry.name for entry in list_presets()]


def test_a_preset_is_frozen(user: Path) -> None:
    preset: Preset = load_preset("sdxl-base-1.0", user=user)
    with pytest.raises(TypeError):
        preset.origins["x"] = "y"  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        preset.recipe.steps = 3  # type: ignore[misc]
    assert load_preset("sdxl-base-1.0", user=user).recipe == preset.recipe
    assert isinstance(preset.recipe, RecipeConfig)


def test_presets_are_instant_and_leave_the_heavy_libraries_out() -> None:
    code = (
        "import sys, time; start = time.process_time(); from sdxl_core.presets import load_preset;"
        "load_preset('sdxl-fast'); spent = time.process_time() - start;"
        "print(spent, *(m for m in ('torch', 'numpy', 'huggingface_hub') if m in sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    spent, *heavy = done.stdout.split()
    assert heavy == []
    assert float(spent) < 0.5


def test_parts_can_only_be_taken_from_a_model_that_has_them() -> None:
    refiner, base = tiny_config("refiner"), tiny_config("base")
    assert borrowed_towers(refiner, base) == {0: 1}
    with pytest.raises(PresetError, match="tiny-refiner, which has no clip tower like its own"):
        borrowed_towers(base, refiner)
    other = base.model_copy(update={"first_stage": FirstStageConfig(ch=64)})
    with pytest.raises(PresetError, match="another first stage"):
        borrowed_towers(refiner, other)
