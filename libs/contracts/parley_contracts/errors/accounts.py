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
