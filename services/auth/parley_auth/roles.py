"""Roles: who may do what. An ADMIN may do everything, a USER what everyone needs."""

ADMIN = "ADMIN"
USER = "USER"

_PERMISSIONS = {
    ADMIN: (
        "models:create",
        "models:system",
        "users:manage",
        "settings:manage",
        "usage:read_all",
        "activity:read_all",
        "flows:manage",
        "connections:manage",
    ),
    USER: ("models:create",),
}


def permissions_of(role: str) -> tuple[str, ...]:
    return _PERMISSIONS.get(role, ())
