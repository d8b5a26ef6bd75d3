"""The embedded default: a small world in which the truth is known, built and cached on first use."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from dpobench.artifacts.files import building, digest, folder_hash, seal, sealed, write_bytes, write_json
from dpobench.errors import UserError
from dpobench.synthetic.settings import Settings

_HERE = Path(__file__).parent


def presets() -> dict[str, Path]:
    """Experiment files that come with the package, by name.

    Example:
        >>> sorted(presets())
        ['large', 'small', 'tiny']
    """
    return {file.stem: file for file in sorted((_HERE / "presets").glob("*.toml"))}


def location(preset_world: Mapping[str, object], cache: Path) -> Path:
    """Folder of the world of these settings, whether or not it is built: named after settings, code and library versions.

    Args:
        preset_world: settings that differ from the defaults of `Settings`.
        cache: folder of all worlds.

    Raises:
        UserError: a setting that is unknown or out of range.
    """
    settings = asdict(Settings.parse(preset_world))
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return cache / f"world-{digest(settings, folder_hash(_HERE, ('*.py',)), libraries, _device(settings['device']))}"


def build(preset_world: Mapping[str, object], cache: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Build the world of these settings, unless an earlier call built it.

    Args:
        preset_world: settings that differ from the defaults of `Settings`.
        cache: folder of all worlds.
        say: shows a line to the user: what is being done.

    Returns: a folder with `model/` (Hugging Face model and tokenizer), `train.jsonl` and `heldout.jsonl` (preference
        pairs, each with its true probability and a third, best answer), `prompts.jsonl` (held-out prompts), `tasks/`
        (lm-eval), and `world.json` (settings, places, measurements).

    Raises:
        UserError: a setting that is unknown or out of range.
        DpobenchError: the base model does not end its answers, or always gives the same one.
    """
    settings = Settings.parse(preset_world)
    folder = location(preset_world, cache)
    if not sealed(folder):
        with building(folder) as part:
            _build(part, settings, say)
            seal(part)
    return folder


def undertrained(preset_world: Mapping[str, object], cache: Path, quality: float) -> Path:
    """The base model of a world after fewer training steps, unless an earlier call trained it. The world itself is not built.

    The schedule of the learning rate is shortened to these steps, not cut off after them.

    Args:
        preset_world: settings that differ from the defaults of `Settings`.
        cache: folder of all worlds.
        quality: share of the steps, above 0 and at most 1.

    Returns: a folder with `model/` and `measured.json` (its steps, its loss on held-out reviews and the grammar's floor).

    Raises:
        UserError: a setting that is unknown or out of range.
    """
    settings = Settings.parse(preset_world)
    steps = max(1, round(quality * settings.steps))
    folder = location(preset_world, cache)
    folder = folder.with_name(f"base-{folder.name.removeprefix('world-')}-{steps}")
    if not sealed(folder):
        with building(folder) as part:
            _train_base(part, replace(settings, steps=steps))
            seal(part)
    return folder


def _train_base(folder: Path, settings: Settings) -> None:
    from dpobench.synthetic.base import reproducible
    from dpobench.synthetic.construction import Construction

    with reproducible(settings.seed):
        world = Construction(replace(settings, device=_device(settings.device)))
        world.train()
        world.measure()
        world.save_model(folder)
    write_json(folder / "measured.json", {"steps": settings.steps, **world.measured})


def _device(setting: str) -> str:
    """The device of a setting: cpu or cuda."""
    import torch

    if setting == "cuda" and not torch.cuda.is_available():
        raise UserError("[world] device = 'cuda': this machine has none that torch can use; choose cpu or auto")
    return setting if setting != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _build(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    # Imported here, so that listing the presets does not import torch.
    from dpobench.synthetic.base import reproducible
    from dpobench.synthetic.construction import Construction

    with reproducible(settings.seed):
        seconds: dict[str, float] = {}
        world = Construction(replace(settings, device=_device(settings.device)))
        for line, stage in (
            ("training the base model", world.train),
            ("measuring it against the grammar's floor", world.measure),
            ("sampling and labelling preference pairs", world.compare),
        ):
            say(line)
            started = time.monotonic()
            stage()
            seconds[stage.__name__] = round(time.monotonic() - started, 2)
        for name, text in world.files().items():
            write_bytes(folder / name, text.encode())
        world.save(folder)
    write_json(
        folder / "world.json",
        {
            "settings": asdict(settings),
            "measured": world.measured,
            "seconds": seconds,
            "places": settings.world.as_json(),
        },
    )
