"""The targets that there are, and what this machine has of them."""

from __future__ import annotations

from mdp_fx.errors import TargetError
from mdp_fx.latency.table_target import TableTarget
from mdp_fx.latency.targets import SHIPPED_TABLES, TABLE_PREFIX, target_class, target_names
from mdp_fx.report.facts import TargetRow

_ANY_TABLE = TargetRow(f"{TABLE_PREFIX}PATH", available=True, dtypes=(), device="a CSV file of convolution latencies")


def targets() -> tuple[TargetRow, ...]:
    """Every target: available with its device, or why not."""
    return (*(_row(name) for name in target_names()), *(_table_row(name) for name in SHIPPED_TABLES), _ANY_TABLE)


def _row(name: str) -> TargetRow:
    dtypes: tuple[str, ...] = ()
    try:
        kind = target_class(name)
        dtypes = kind.dtypes
        lacking = kind.missing()
        if lacking is not None:
            return TargetRow(name, available=False, dtypes=dtypes, why_not=lacking)
        target = kind()
    except TargetError as error:
        return TargetRow(name, available=False, dtypes=dtypes, why_not=str(error))
    return TargetRow(
        name,
        available=True,
        dtypes=target.dtypes,
        device=target.device,
        alignment=target.alignment,
        fingerprint=target.fingerprint(),
    )


def _table_row(name: str) -> TargetRow:
    target = TableTarget.named(name)
    return TargetRow(
        name, available=True, dtypes=(), device=name, alignment=target.alignment, fingerprint=target.fingerprint()
    )
