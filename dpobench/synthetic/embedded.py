"""The embedded default: a small world in which the truth is known, built and cached on first use."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpobench.artifacts.files import building, digest, folder_hash, seal, sealed, write_bytes, write_json
from dpobench.errors import UserError
from dpobench.synthetic.settings import Settings

_HERE = Path(__file__).parent


def presets() -> dict[str, Path]:
    """Experiment files that come with the world: their names and where they are."""
    return {file.stem: file for file in sorted((_HERE / "presets").glob("*.toml"))}


def location(preset_world: Mapping[str, Any], cache: Path) -> Path:
    """Where the world of these settings is, or would be built: a key of settings, code and library versions."""
    settings = asdict(Settings.parse(preset_world))
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return cache / f"world-{digest(settings, folder_hash(_HERE, ('*.py',)), libraries, _device(settings['device']))}"


def build(preset_world: Mapping[str, Any], cache: Path, say: Callable[[str], None] | None = None) -> Path:
    """Build the world of these settings, or find it where an earlier call built it.

    Args:
        preset_world: settings that differ from the defaults of `Settings`.
        cache: folder in which worlds are kept.
        say: is told, in a line, what is being done.

    Returns: a folder with `model/` (Hugging Face model and tokenizer), `train.jsonl` and `heldout.jsonl` (preference
        pairs, each with its true probability and a third, best answer), `prompts.jsonl` (held-out prompts), `tasks/`
        (lm-eval), and `world.json` (settings, places, what was measured while it was made).

    Raises:
        UserError: a setting that is unknown or out of range.
        DpobenchError: the base model came out unable to answer.
    """
    settings = Settings.parse(preset_world)
    folder = location(preset_world, cache)
    if not sealed(folder):
        with building(folder) as part:
            _make(part, settings, say or (lambda line: None))
            seal(part)
    return folder


def undertrained(preset_world: Mapping[str, Any], cache: Path, quality: float) -> Path:
    """The base model of a world after a share of its training, or where an earlier call left it. The world itself is not made.

    The learning rate runs its whole course in the fewer steps: the model has seen less, it is not caught in the middle.

    Args:
        preset_world: settings that differ from the defaults of `Settings`.
        cache: folder in which worlds are kept.
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
            _train_alone(part, replace(settings, steps=steps))
            seal(part)
    return folder


def _train_alone(folder: Path, settings: Settings) -> None:
    from dpobench.synthetic.base import reproducible
    from dpobench.synthetic.construction import Construction

    with reproducible(settings.seed):
        work = Construction(replace(settings, device=_device(settings.device)))
        work.train()
        work.measure()
        work.save_model(folder)
    write_json(folder / "measured.json", {"steps": settings.steps, **work.measured})


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("[world] device = 'cuda': this machine has none that torch can use; choose cpu or auto")
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _make(folder: Path, settings: Settings, say: Callable[[str], None]) -> None:
    # Here, not above: asking for presets must not wait for torch.
    from dpobench.synthetic.base import reproducible
    from dpobench.synthetic.construction import Construction

    with reproducible(settings.seed):
        seconds: dict[str, float] = {}
        work = Construction(replace(settings, device=_device(settings.device)))
        for line, stage in (
            ("training the base model", work.train),
            ("measuring it against the grammar's floor", work.measure),
            ("sampling and labelling preference pairs", work.compare),
        ):
            say(line)
            started = time.monotonic()
            stage()
            seconds[stage.__name__] = round(time.monotonic() - started, 2)
        for name, text in work.files().items():
            write_bytes(folder / name, text.encode())
        work.save(folder)
    write_json(
        folder / "world.json",
        {
            "settings": asdict(settings),
            "measured": work.measured,
            "seconds": seconds,
            "places": settings.world.as_json(),
        },
    )
