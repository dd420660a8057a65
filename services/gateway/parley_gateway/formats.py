"""How values look on the outside: instants with milliseconds and `Z`, money as a JSON number with 8 decimals."""

from datetime import UTC, datetime
from decimal import Decimal


def instant(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def usd(amount: Decimal | None) -> float | None:
    """Rounded for display only; the ledger keeps exact decimals."""
    return None if amount is None else float(round(amount, 8))
