"""What `headrace doctor` looks at. Each check finds something and says what to do about it; none of them changes a thing."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.cli import checks_keeping as keeping
from headrace.cli import checks_machine as machine
from headrace.cli.checks_backends import Backends, ollama
from headrace.cli.checks_finding import Finding, Level
from headrace.cli.checks_gateway import gateway
from headrace.cli.checks_through import through
from headrace.engine.catalog import Catalog
from headrace.gateway.open_files import hard_limit
from headrace.kernel.errors import ConfigError
from headrace.settings import Settings, load

_COMMAND_TIMEOUT_S = 60.0


def run_quietly(command: Sequence[str]) -> bool:
    """Whether the command succeeds within a minute. Its output is dropped."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Asked:
    """What is looked at only when somebody asks for it. stream_model: have upstreams that have it generate a few words.
    through: where clients reach the running service; key: an administrator's, for that."""

    stream_model: str | None = None
    through: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Doctor:
    """One examination. `now`: UTC epoch seconds. `succeeds`: runs a command and says whether that went well."""

    environ: Mapping[str, str]
    now: float
    config: Path | None = None
    succeeds: machine.Succeeds = run_quietly
    asked: Asked = field(default_factory=Asked)

    def examine(self) -> list[Finding]:
        """Everything, in the order in which it should be mended. Blocks, and runs an event loop where it asks a server."""
        found = [machine.clock(self.now)]
        try:
            settings = load(self.config, self.environ)
        except ConfigError as error:
            advice = "Mend them; the rest depends on them."
            return [*found, Finding("settings", Level.FAILED, error.message, advice)]
        skews: dict[str, float] = {}
        found += machine.settings_read(settings)
        found += [machine.data_folder(settings.home), machine.disk_space(settings.cache)]
        found.append(machine.open_files(settings.server.max_connections, hard_limit()))
        found += self._kept(settings, skews)
        found += self._engines(settings)
        if settings.ollama.probe:
            found.append(ollama(settings.ollama.url))
        found += Backends(skews, self.asked.stream_model).examine(settings.upstreams)
        found += gateway(settings)
        if self.asked.through:
            found += through(self.asked.through, self.asked.key, skews)
        return [*found, *machine.clocks(skews)]

    def _engines(self, settings: Settings) -> list[Finding]:
        if not settings.effective_engines:
            return []
        catalog = Catalog.from_environment(settings.cache, self.environ)
        models = [machine.model(engine, catalog, self.succeeds) for engine in settings.effective_engines]
        return [machine.llama_cpp(self.succeeds), *models]

    @staticmethod
    def _kept(settings: Settings, skews: dict[str, float]) -> list[Finding]:
        missing = list(keeping.extras(settings))
        lacking = {finding.check for finding in missing}
        if "extra postgresql" not in lacking:
            missing.append(keeping.database(settings, skews))
        if (quota := keeping.quota(settings, skews)) is not None:
            missing.append(quota)
        return missing
