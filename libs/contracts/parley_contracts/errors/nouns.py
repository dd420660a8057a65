"""Errors of things that are not there, or not yours: a foreign one is answered like a missing one."""

from parley_contracts.errors.error import ParleyError


class NotFound(ParleyError):
    """There is nothing here. Check the path and the method."""

    code = "not_found"
    status = 404


class SessionNotFound(ParleyError):
    """The session does not exist, or it is not yours."""

    code = "session_not_found"
    status = 404


class MessageNotFound(ParleyError):
    """The message does not exist, or it is not yours."""

    code = "message_not_found"
    status = 404


class TurnNotFound(ParleyError):
    """The turn does not exist, or it is not yours."""

    code = "turn_not_found"
    status = 404


class ModelNotFound(ParleyError):
    """Model {model} not found"""

    code = "model_not_found"
    status = 404


class ModelConfigNotFound(ParleyError):
    """The model config does not exist, or it is not yours."""

    code = "model_config_not_found"
    status = 404


class UserNotFound(ParleyError):
    """The user does not exist."""

    code = "user_not_found"
    status = 404


class ShareNotFound(ParleyError):
    """This share link does not exist, or it was withdrawn."""

    code = "share_not_found"
    status = 404


class IdConflict(ParleyError):
    """This id is in use with other content. Make a new one."""

    code = "id_conflict"
    status = 409
