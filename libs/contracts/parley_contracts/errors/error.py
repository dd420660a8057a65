"""An error: one class for each thing that can go wrong, with the code, status and advice a client gets.

The docstring is the message; `{names}` in it are filled from keyword arguments. Errors travel over the bus as
`ErrorBody` and come out as the same class on the other side (requirements 2.3).
"""

from typing import Any, ClassVar

import msgspec
from typing_extensions import override

ERRORS: dict[str, type["ParleyError"]] = {}


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with one field of a request."""

    field: str
    problem: str


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """A `ParleyError` on the bus. `status` and `message` serve a receiver that does not know the code yet."""

    code: str
    message: str
    status: int
    retryable: bool = False
    fields: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    retry_after_s: float | None = None


class ParleyError(Exception):
    """Something went wrong inside Parley. Try again; tell your administrator the request id if it stays."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    retry_after_s: float | None = None

    def __init__(self, *, problems: tuple[Problem, ...] = (), retry_after_s: float | None = None, **fields: object) -> None:
        self.fields = {name: str(value) for name, value in fields.items()}
        self.problems = problems
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        self.message = _fill(type(self).__doc__ or "", self.fields)
        super().__init__(self.message)

    @override
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            if cls.code in ERRORS:
                raise TypeError(f"error code {cls.code} is taken by {ERRORS[cls.code].__name__}")
            ERRORS[cls.code] = cls

    @property
    def http_status(self) -> int:
        return self.status

    def body(self) -> ErrorBody:
        return ErrorBody(
            code=self.code,
            message=self.message,
            status=self.http_status,
            retryable=self.retryable,
            fields=self.fields,
            problems=self.problems,
            retry_after_s=self.retry_after_s,
        )


class UnknownError(ParleyError):
    """{message}"""  # an error of a newer version: code, status and text are the sender's

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(problems=body.problems, retry_after_s=body.retry_after_s, message=body.message)
        self._body = body

    @property
    @override
    def http_status(self) -> int:
        return self._body.status

    @override
    def body(self) -> ErrorBody:
        return self._body


def error_from(body: ErrorBody) -> ParleyError:
    """The error a peer raised, as the same class here."""
    kind = ERRORS.get(body.code)
    if kind is None:
        return UnknownError(body)
    fields: dict[str, Any] = dict(body.fields)
    return kind(problems=body.problems, retry_after_s=body.retry_after_s, **fields)


def _fill(text: str, fields: dict[str, str]) -> str:
    message = " ".join(text.split())
    for name, value in fields.items():
        message = message.replace("{" + name + "}", value)
    return message


ERRORS["internal"] = ParleyError
