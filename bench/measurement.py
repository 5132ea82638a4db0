"""All that one run found."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench import held
from bench.admission.measure import AdmissionFigures
from bench.admission.shared import RedisFigures
from bench.cancel import Cancels
from bench.engine import EngineFigures
from bench.held import Held
from bench.machine import Machine, Weather
from bench.scenarios import Part, Scenario
from bench.simulation_report import Simulated
from bench.startup import Startup
from bench.turns import Turn


@dataclass(slots=True)
class Measurement:
    """Everything measured, each turn by itself. `absences` names what couldn't be measured, and why."""

    rounds: int
    seconds: float
    machine: Machine = field(default_factory=Machine.this)
    weather: list[Weather] = field(default_factory=list)
    scenarios: list[Scenario] = field(default_factory=list)
    configurations: dict[str, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    cancels: list[Cancels] = field(default_factory=list)
    holding: held.Plan | None = None
    held: list[Held] = field(default_factory=list)
    startup: Startup | None = None
    engine: EngineFigures | None = None
    simulated: list[Simulated] = field(default_factory=list)
    admission: AdmissionFigures | None = None
    redis: list[RedisFigures] = field(default_factory=list)
    absences: list[str] = field(default_factory=list)

    @property
    def stacks(self) -> list[str]:
        """The names of those that came up, in the order in which they were asked for."""
        return list(self.configurations)

    def of(self, part: Part) -> list[Turn]:
        """The turns of one part."""
        names = {scenario.name for scenario in self.scenarios if scenario.part == part}
        return [turn for turn in self.turns if turn.scenario in names]

    def is_empty(self) -> bool:
        """Whether nothing at all was measured."""
        alone = self.startup or self.engine or self.simulated or self.admission or self.redis
        return not (self.turns or self.cancels or self.held or alone)
