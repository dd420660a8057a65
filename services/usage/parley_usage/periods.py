"""Periods: the days and months of `TIMEZONE`. A budget's period is a calendar month, written `2026-01`; pure."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo


class Calendar:
    """Which day and which month an instant belongs to, where the installation lives."""

    def __init__(self, timezone: str) -> None:
        self._zone = ZoneInfo(timezone)

    def period(self, at: datetime) -> str:
        return at.astimezone(self._zone).strftime("%Y-%m")

    def day(self, at: datetime) -> str:
        return at.astimezone(self._zone).strftime("%Y-%m-%d")

    def resets_at(self, period: str) -> datetime:
        """When the month after `period` begins."""
        year, month = map(int, period.split("-"))
        following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=self._zone)
        return following.astimezone(UTC)
