"""Write a report, for programs and for people."""

from __future__ import annotations

from pathlib import Path

from edge_resnet.files import atomic_write
from edge_resnet.report.html import to_html
from edge_resnet.report.markdown import to_markdown
from edge_resnet.report.schema import Report

__all__ = ["save_report"]


def save_report(report: Report, directory: Path) -> None:
    """Write report.json, report.md and report.html; each is complete or not there."""
    atomic_write(directory / "report.md", to_markdown(report))
    atomic_write(directory / "report.html", to_html(report))
    atomic_write(directory / "report.json", report.model_dump_json(indent=1) + "\n")
