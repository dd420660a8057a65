"""Settings of usage: none of its own so far; `TIMEZONE` decides where its days and months begin."""

from parley_runtime.settings import Settings


class UsageSettings(Settings):
    """What usage needs to know."""
