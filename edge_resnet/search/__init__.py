"""Search over a recipe's ranges for two goals, accuracy and latency: what `edge-resnet search` does.

Optuna proposes (`sampler.py`) and keeps (`storage.py`); a trial is the stages of `compress` (`trial.py`),
workers share a study (`worker.py`, `lease.py`), and the front (`front.py`) becomes a report and recipes.
"""

from edge_resnet.search.run import SearchResult, search

__all__ = ["SearchResult", "search"]
