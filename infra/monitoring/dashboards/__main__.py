"""`python -m infra.monitoring.dashboards`: writes the dashboards beside this file."""

from __future__ import annotations

from infra.monitoring.dashboards import FOLDER, texts

if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
