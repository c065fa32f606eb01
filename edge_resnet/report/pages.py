"""How every HTML page is made: from the templates here, names from users escaped, no gap left silently."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["page_environment"]


def page_environment() -> Environment:
    """The templates of the report's and the search's page."""
    return Environment(
        loader=PackageLoader("edge_resnet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
