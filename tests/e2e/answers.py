"""What an answer must say: a success in the envelope, or a failure in the common shape."""

from typing import Any

import httpx


def refused(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body.get("code")) == (status, code), answer.text[:500]
    assert body["success"] is False
    assert body["data"] is None


def data(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text[:500]
    body = answer.json()
    assert (body["success"], body["error"]) == (True, None)
    return body["data"]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
