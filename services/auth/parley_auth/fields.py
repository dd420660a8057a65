"""Fields: what users may write into their accounts, and how it is stored."""

import re

from parley_contracts.errors import InvalidEmail, Problem, ValidationFailed

LONGEST_EMAIL = 254
LONGEST_USERNAME = 50
_ROLE = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")


def wrong(field: str, problem: str) -> ValidationFailed:
    return ValidationFailed(problems=(Problem(field, problem),))


def normalised(email: str) -> str:
    return email.strip().lower()


def is_email(text: str) -> bool:
    """Strict enough to catch slips; only a letter sent there would prove more."""
    local, _, domain = text.rpartition("@")
    return (
        len(text) <= LONGEST_EMAIL
        and text.isprintable()
        and " " not in text
        and "@" not in local
        and local != ""
        and (domain == "localhost" or (len(domain.split(".")) > 1 and all(domain.split("."))))
    )


def checked_email(text: str) -> str:
    """As it is stored. Raises InvalidEmail."""
    email = normalised(text)
    if not is_email(email):
        raise InvalidEmail
    return email


def checked_username(text: str) -> str:
    username = text.strip()
    if not 1 <= len(username) <= LONGEST_USERNAME:
        raise wrong("username", f"needs 1 to {LONGEST_USERNAME} characters")
    if not username.isprintable():
        raise wrong("username", "has control characters")
    return username


def username_for(email: str) -> str:
    """Of who chose none: what stands before the @."""
    return email.rpartition("@")[0][:LONGEST_USERNAME]


def role_name(text: str) -> str:
    """Names of roles are read in any case."""
    return text.strip().upper()


def checked_role_name(text: str) -> str:
    name = role_name(text)
    if not _ROLE.fullmatch(name):
        raise wrong("name", "needs 1 to 32 letters, digits, - or _, a letter first")
    return name


def checked_text(text: str, field: str, *, longest: int, shortest: int = 1) -> str:
    stripped = text.strip()
    if not shortest <= len(stripped) <= longest:
        raise wrong(field, f"needs {shortest} to {longest} characters")
    if "\x00" in stripped:
        raise wrong(field, "holds a NUL character; remove it")
    return stripped
