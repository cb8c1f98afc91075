"""Whether everything that a process of the service depends on answers: `python -m jobs.health`."""

from __future__ import annotations

import sys

from jobs.readiness import Probe, look_at
from jobs.services import Services
from jobs.settings import Settings


def probes_of(services: Services) -> dict[str, Probe]:
    """One for each dependency, for the life of the process."""
    checks = {
        "database": services.database.check,
        "migrations": services.database.check_revision,
        "broker": services.queue.check,
        "storage": services.storage.check,
    }
    return {name: Probe(name, check) for name, check in checks.items()}


def main() -> None:
    """Says what is wrong, and ends with 1 then; a worker's container asks this of itself."""
    services = Services.open(Settings())
    problems = [f"{name}: {seen.problem}" for name, seen in look_at(probes_of(services)).items() if not seen.ok]
    services.close()
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
