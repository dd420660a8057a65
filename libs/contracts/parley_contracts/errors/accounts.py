"""Errors of accounts: who is asking, and what they may."""

from parley_contracts.errors.error import ParleyError


class InvalidEmail(ParleyError):
    """This is not an e-mail address."""

    code = "invalid_email"
    status = 422


class PasswordPolicy(ParleyError):
    """The password {reason}. It needs 8 to 128 characters, with at least one letter and one digit."""

    code = "password_policy"
    status = 422


class Unauthenticated(ParleyError):
    """No valid access token. Send `Authorization: Bearer <access token>`; log in to get one."""

    code = "unauthenticated"
    status = 401


class TokenExpired(ParleyError):
    """The access token has expired. Refresh it and try again."""

    code = "token_expired"
    status = 401


class TokenRevoked(ParleyError):
    """The token was revoked or used twice. Log in again."""

    code = "token_revoked"
    status = 401


class InvalidCredentials(ParleyError):
    """E-mail or password is wrong."""

    code = "invalid_credentials"
    status = 401


class Forbidden(ParleyError):
    """Your role does not allow this."""

    code = "forbidden"
    status = 403


class OriginRefused(ParleyError):
    """Requests from the origin {origin} are not allowed here."""

    code = "origin_refused"
    status = 403


class RegistrationClosed(ParleyError):
    """Registration is closed. Ask an administrator for an account."""

    code = "registration_closed"
    status = 403


class EmailTaken(ParleyError):
    """This e-mail is registered already. Log in, or use another."""

    code = "email_taken"
    status = 409


class EmailNotFound(ParleyError):
    """No account has this e-mail."""

    code = "email_not_found"
    status = 401


class PasswordIncorrect(ParleyError):
    """The password is wrong."""

    code = "password_incorrect"
    status = 401


class WrongPassword(ParleyError):
    """The current password is wrong."""

    code = "wrong_password"
    status = 422


class InvalidTransition(ParleyError):
    """This cannot be changed now: {reason}."""

    code = "invalid_transition"
    status = 409


class KeyNotFound(ParleyError):
    """The API key does not exist, or it is not yours."""

    code = "key_not_found"
    status = 404


class RoleNotFound(ParleyError):
    """The role {role} does not exist."""

    code = "role_not_found"
    status = 404
