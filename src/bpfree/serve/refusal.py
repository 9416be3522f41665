"""Errors of the service as JSON: `{"error": "..."}` with what is wrong, in plain words."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from bpfree.errors import UserError, shown
from bpfree.serve.forms import Refusal
from bpfree.serve.limits import RequestError

_WORDS = {
    404: "there is nothing at this address. / is the page, and /openapi.json lists all addresses",
    405: "this address does not take the method. /openapi.json lists the methods of each address",
}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": words}
    for status, words in {
        400: "The body cannot be read.",
        403: "The request comes from another site.",
        404: "There is no such run.",
        413: "The body is too large, or has too many samples.",
        415: "The body is of another type.",
        422: "The samples do not fit the run.",
        503: "Too many requests wait.",
        504: "The answer took too long.",
    }.items()
}
"""The errors of routes with a body, for the OpenAPI schema."""


def refusal(status: int, message: str) -> Response:
    """Return the answer for a request that is refused.

    Args:
        status: the status code of HTTP.
        message: what is wrong.
    """
    # Text of a user may contain halves of surrogate pairs, which UTF-8 cannot hold: JSON escapes them here.
    content = json.dumps({"error": " ".join(message.split())}, ensure_ascii=True)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(content, status, headers, "application/json")


def add_refusals(app: FastAPI) -> None:
    """Let an application answer every error by a refusal.

    Args:
        app: the application.
    """

    @app.exception_handler(UserError)
    async def of_user(request: Request, error: UserError) -> Response:
        return refusal(422, str(error))

    @app.exception_handler(RequestError)
    async def of_request(request: Request, error: RequestError) -> Response:
        return refusal(error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def of_form(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return refusal(422, f"{where}: found {shown(first.get('input'))}. {first['msg']}")

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        answer = refusal(error.status_code, _WORDS.get(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientDisconnect)
    async def of_lost_client(request: Request, error: ClientDisconnect) -> Response:
        return refusal(400, "body: the connection ended before its end")  # for the counters alone: nobody reads it

    @app.exception_handler(Exception)
    async def of_bug(request: Request, error: Exception) -> Response:
        logging.getLogger("bpfree.serve").error("a defect of bpfree", exc_info=error)
        return refusal(500, f"a defect of bpfree: {type(error).__name__}. The server has printed where it is")
