"""What Fabric asks about the processes that launch.py forks. Imported where training starts."""

from __future__ import annotations

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

__all__ = ["ForkedEnvironment"]


class ForkedEnvironment(ClusterEnvironment):
    """Process `rank` of `world`, all on this machine. Of one process nothing is asked but that."""

    def __init__(self, rank: int, world: int, port: int) -> None:
        self._rank, self._world, self._port = rank, world, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world

    def set_world_size(self, size: int) -> None:
        """Given at the start."""

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Given at the start."""

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0
