"""Floor 3: the settings. Read once by `load`, frozen, handed down in slices.

`headrace.toml`, then the environment over it: every key is also `HEADRACE_SECTION__KEY`.
"""

from headrace.settings.loading import FILE_NAME, find_file, home_folder, load
from headrace.settings.schema import (
    DEMO_ENGINE,
    Auth,
    ConfigFile,
    Engine,
    Limits,
    Log,
    LogFormat,
    LogLevel,
    Models,
    Server,
    Settings,
    Storage,
)
from headrace.settings.upstreams import Ollama, Upstream, UpstreamTimeouts, known_kinds

__all__ = [
    "DEMO_ENGINE",
    "FILE_NAME",
    "Auth",
    "ConfigFile",
    "Engine",
    "Limits",
    "Log",
    "LogFormat",
    "LogLevel",
    "Models",
    "Ollama",
    "Server",
    "Settings",
    "Storage",
    "Upstream",
    "UpstreamTimeouts",
    "find_file",
    "home_folder",
    "known_kinds",
    "load",
]
