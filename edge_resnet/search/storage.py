"""Where a study is kept: a journal file, or a database that Optuna has a URL for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_resnet.errors import InputError, MissingToolError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

__all__ = ["check_identity", "import_optuna", "open_storage", "open_study", "storage_errors"]

_ABOUT = "edge-resnet"
# Raised where a study that an earlier version began cannot be gone on with.
_FORMAT = 1
_GOALS = ("accuracy", "latency")
_PARTS = {"model": "another model or other weights", "data": "other data", "recipe": "another recipe"}


def import_optuna() -> Any:
    """Optuna, silent. Raises MissingToolError where it is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingToolError("search needs Optuna: pip install 'edge-resnet[search]'")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(where: str) -> BaseStorage:
    """`where`: a database's URL (sqlite:///FILE, mysql://...), else a journal's file, made if not there.

    Raises InputError: locked, damaged, of another version of Optuna, or not to be read; MissingToolError: no
    driver for such a database.
    """
    import_optuna()
    with storage_errors(where):
        if "://" in where:
            from optuna.storages import RDBStorage

            return RDBStorage(where)
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        Path(where).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(where))


def open_study(storage: BaseStorage, where: str, name: str) -> Study:
    """The study of that name, made if not there."""
    optuna = import_optuna()
    with storage_errors(where):
        study: Study = optuna.create_study(
            storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
        )
        if len(study.directions) != len(_GOALS):
            raise InputError(f"{where}: the study {name!r} is none of edge-resnet; give another --study")
        return study


def check_identity(study: Study, where: str, parts: Mapping[str, Any]) -> None:
    """Whether the study is of the same model, data and recipe; a new one is from now on.

    Raises InputError that says what differs.
    """
    about = {"format": _FORMAT, **{name: json.dumps(part, sort_keys=True) for name, part in parts.items()}}
    with storage_errors(where):
        found = study.user_attrs.get(_ABOUT)
        if found is None:
            if study.get_trials(deepcopy=False):
                raise InputError(
                    f"{where}: the study {study.study_name!r} is none of edge-resnet; give another --study"
                )
            study.set_user_attr(_ABOUT, about)
            return
    advice = "give another --study, or another --out"
    if found.get("format") != _FORMAT:
        raise InputError(f"{where}: the study {study.study_name!r} is of another version; {advice}")
    differs = [words for name, words in _PARTS.items() if found.get(name) != about[name]]
    if differs:
        raise InputError(f"{where}: the study {study.study_name!r} is of {' and '.join(differs)}; {advice}")


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Whatever a storage raises becomes one line. The block must hold nothing but calls of the storage."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        yield
    except ArgumentError as error:
        raise InputError(f"--storage {where}: not a database's URL, such as sqlite:///study.db") from error
    except (StorageInternalError, SQLAlchemyError) as error:
        raise InputError(_database(where, error)) from error
    except (ImportError, ModuleNotFoundError) as error:
        raise MissingToolError(f"--storage {where}: {error}; install the database's driver") from error
    except OSError as error:
        raise InputError(f"--storage {where}: {error.strerror or error}") from error
    except RuntimeError as error:
        if "version" in str(error) or "schema" in str(error):
            raise InputError(
                f"--storage {where}: written by another version of Optuna; give another, or "
                f"`optuna storage upgrade --storage {where}`"
            ) from error
        raise
    except (ValueError, KeyError, AssertionError, TypeError, NotImplementedError, AttributeError) as error:
        # What Optuna's journal raises for lines that it has not written, or not in this version.
        raise InputError(
            f"--storage {where}: not a journal that this version of Optuna reads "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]}); give another file"
        ) from error


def _database(where: str, error: BaseException) -> str:
    """The innermost reason, in one line."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    words = " ".join(str(reason).split())
    if "locked" in words:
        return (
            f"--storage {where}: the database is locked by another program; close it, or use a journal "
            "(--storage FILE), which many processes can share"
        )
    return f"--storage {where}: {words[:200]}"
