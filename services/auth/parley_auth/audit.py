"""Audit: who changed what for others, in the same transaction as the change. Secrets are masked before they are written."""

import re
from datetime import datetime
from typing import Any

import msgspec
import structlog
from sqlalchemy import insert

from parley_auth.tables import AuditRow
from parley_runtime.database import Transaction
from parley_runtime.telemetry import hide_secrets

_SECRET_NAMES = re.compile(r"password|secret|token|api_?key", re.IGNORECASE)
HIDDEN = "[hidden]"


async def record(
    tx: Transaction,
    *,
    at: datetime,
    actor_id: int | None,
    act: str,
    subject: str,
    before: object = None,
    after: object = None,
) -> None:
    """`before` and `after` are what the contracts show of the thing; None: it was not there, or is not any more."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    await tx.session.execute(
        insert(AuditRow).values(
            at=at,
            actor_id=actor_id,
            act=act,
            subject=subject,
            before=masked(msgspec.to_builtins(before)),
            after=masked(msgspec.to_builtins(after)),
            request_id=None if request_id is None else str(request_id),
        )
    )


def masked(value: Any, name: str = "") -> Any:
    """The value without secrets: by the field's name, and by what a text looks like."""
    if _SECRET_NAMES.search(name) and value is not None:
        return HIDDEN
    if isinstance(value, dict):
        return {key: masked(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return hide_secrets(value) if isinstance(value, str) else value
