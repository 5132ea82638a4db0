"""Write `docs/reference/` from the code. Run it from the root of the repository after changing settings or commands."""

from __future__ import annotations

from pathlib import Path

from headrace.adapters.storage import reference as database
from headrace.cli import reference as commands
from headrace.gateway import metrics_table as metrics
from headrace.settings import reference as settings

PAGES = {
    "configuration.md": settings.configuration_page,
    "cli.md": commands.page,
    "database.md": database.page,
    "metrics.md": metrics.page,
}


def main(folder: Path = Path("docs/reference")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
