"""Reading the settings: which file, what the environment says over it, and one error that tells all that is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError

from headrace.kernel.errors import ConfigError
from headrace.settings import environment, fields, problems
from headrace.settings.schema import ConfigFile, Settings
from headrace.settings.values import InConfigFolder

FILE_NAME = "headrace.toml"


def load(config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read *config_file* (or the default one, if there is one), put *environ* over it, and check everything.

    Reads that one file, and nothing else of the world but where the platform keeps a user's data, and what kinds of backends
    the installed packages bring.

    Raises:
        ConfigError: the file can't be read, or something in it or the environment is wrong. All that is wrong is told
            at once, each with its place.
    """
    home, cache = home_folder(environ), _cache_folder(environ)
    source = find_file(config_file, home)
    document = _read(source) if source else {}
    said = environment.read(environ, document)
    places = problems.Places(str(source) if source else "the settings", said.origins)
    told = [
        *said.errors,
        *problems.duplicates(said.document, places),
        *problems.unknown_kinds(said.document, places),
    ]
    checked = ConfigFile()
    try:
        checked = ConfigFile.model_validate(said.document)
    except ValidationError as error:
        told += problems.sentences(error, places)
    if told:
        raise problems.gathered(told)
    return Settings(
        **{name: getattr(checked, name) for name in ConfigFile.model_fields},
        home=home,
        cache=cache,
        source=source,
        unused_aliases=tuple(said.unused_aliases),
        warnings=tuple(said.warnings),
    )


def find_file(config_file: Path | None, home: Path) -> Path | None:
    """The file to read: *config_file*, else `headrace.toml` in the working folder, else in *home*; None without any.

    Raises:
        ConfigError: *config_file* was asked for and isn't a file.
    """
    if config_file is not None:
        if not config_file.is_file():
            what = "is not a file" if config_file.exists() else "does not exist"
            raise ConfigError(f"The configuration file {config_file} {what}.")
        return config_file
    candidates = (Path(FILE_NAME), home / FILE_NAME)
    return next((path for path in candidates if path.is_file()), None)


def home_folder(environ: Mapping[str, str]) -> Path:
    """The data folder: `HEADRACE_HOME`, else the platform's folder for a user's data."""
    given = environ.get("HEADRACE_HOME")
    return Path(given).expanduser() if given else platformdirs.user_data_path("headrace", appauthor=False)


def _cache_folder(environ: Mapping[str, str]) -> Path:
    given = environ.get("HEADRACE_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("headrace", appauthor=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    for item in document.get("engines", ()) if isinstance(document.get("engines"), list) else ():
        _settle_model(item, path.parent)
    for item in document.get("upstreams", ()) if isinstance(document.get("upstreams"), list) else ():
        _settle_paths(item, path.parent)
    _settle_storage(document.get("storage"), path.parent)
    return document


def _settle_storage(storage: object, folder: Path) -> None:
    """A database file, too, is relative to the file it is written in."""
    if not isinstance(storage, dict):
        return
    scheme, mark, place = str(storage.get("url", "")).partition(":///")
    if mark and scheme.startswith("sqlite") and place and not place.startswith(":"):
        storage["url"] = f"{scheme}:///{folder / Path(place).expanduser()}"


def _settle_model(engine: object, folder: Path) -> None:
    """A model that is a path is relative to the file it is written in, wherever the command runs."""
    if not isinstance(engine, dict):
        return
    model = engine.get("model")
    if isinstance(model, str) and model.endswith(".gguf") and not model.startswith(("hf:", "ollama:")):
        engine["model"] = str(folder / Path(model).expanduser())


def _settle_paths(upstream: object, folder: Path) -> None:
    if not isinstance(upstream, dict):
        return
    for name in fields.marked("upstreams", InConfigFolder):
        value = upstream.get(name)
        if isinstance(value, str) and value:
            upstream[name] = str(folder / Path(value).expanduser())
