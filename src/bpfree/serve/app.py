"""The service of `bpfree serve`: answers of trained runs, and the page to play with them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from torch import Tensor

from bpfree._version import __version__
from bpfree.errors import shown, unknown
from bpfree.inputs import Inputs, one_tensor
from bpfree.serve.answers import answers_of
from bpfree.serve.base import base
from bpfree.serve.batcher import Batcher
from bpfree.serve.forms import Inside, Prediction, Question, RunFacts, Runs, TestSample
from bpfree.serve.limits import Limits, RequestError
from bpfree.serve.refusal import DOCUMENTED
from bpfree.serve.samples import fitting, of_file, read_question, to_samples
from bpfree.serve.served import Served

_FILES = ("page.css", "common.js", "drawing.js", "inputs.js", "cards.js", "play.js", "icon.svg")
_MOST_FIELDS = 8  # of a form
_Result = TypeVar("_Result")
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"$ref": "#/components/schemas/Question"}, {"type": "array", "items": {}}]}
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "An image."},
                        "as_drawing": {
                            "type": "string",
                            "enum": ["true", "false"],
                            "description": "Find the ink on its paper, and put it into the form of the data.",
                        },
                    },
                }
            },
        },
    }
}


class Asked:
    """A request that was read.

    Args:
        samples: the raw samples.
        made: True if they were made of a drawing, of rows or of an image.
    """

    def __init__(self, samples: Inputs, made: bool) -> None:
        self.samples = samples
        self.made = made


class Desk:
    """Read requests and answer them, one computation at a time.

    Args:
        served: the runs.
        limits: of requests.
        observe: called with the name of a run, the number of samples and the seconds of each batch.
    """

    def __init__(self, served: Sequence[Served], limits: Limits, observe: Callable[[str, int, float], object]) -> None:
        self.runs = {each.id: each for each in served}
        self.limits = limits
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="bpfree-serve")
        self._batchers = {
            each.id: Batcher(
                each.run.scores, self.worker, limits, merges=each.merges, observe=partial(observe, each.id)
            )
            for each in served
        }

    def run(self, name: str) -> Served:
        """Return the run with a name.

        Args:
            name: its name.

        Raises:
            RequestError: there is no such run.
        """
        if name not in self.runs:
            raise RequestError(404, str(unknown("run", name, self.runs)))
        return self.runs[name]

    async def within_time(self, work: Awaitable[_Result]) -> _Result:
        """Return the result of some work, or raise RequestError if it takes too long."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await work
        except TimeoutError as error:
            raise RequestError(
                504, f"the answer took longer than {self.limits.seconds:g} seconds. Ask for fewer samples, or later"
            ) from error

    async def work(self, function: Callable[..., _Result], *args: Any) -> _Result:
        """Call a function in the worker, where nothing else runs at the same time."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, partial(function, *args))

    async def read(self, request: Request, served: Served) -> Asked:
        """Return the samples in the body of a request.

        Args:
            request: with a body of JSON, or a form with an image file.
            served: the run that is asked.

        Raises:
            RequestError: the body is of another type, or too large.
            UserError: the body does not fit the run.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await self.work(self._question, await request.body(), served)
        if kind != "multipart/form-data":
            found = shown(kind) if kind else "no type"
            raise RequestError(415, f"body: found {found}, allowed: application/json, multipart/form-data")
        content, as_drawing = await self._upload(request)
        return await self.work(self._image, content, served, as_drawing)

    async def _upload(self, request: Request) -> tuple[bytes, bool]:
        """Return the content of the file in a form, and whether it shows a drawing."""
        try:
            async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
                file = form.get("file")
                content = None if file is None or isinstance(file, str) else await file.read()
                as_drawing = form.get("as_drawing") == "true"
        except (MultiPartException, HTTPException, ValueError) as error:
            raise RequestError(400, "body: not a form that can be read. Send one file: curl -F file=@a.png") from error
        if content is None:
            raise RequestError(422, "file: missing, allowed: an image in the field 'file' of the form")
        return content, as_drawing

    def _question(self, body: bytes, served: Served) -> Asked:
        question: Question = read_question(body)
        samples = fitting(to_samples(question, served.run, self.limits.samples), served.run)
        return Asked(samples, question.samples is None)

    def _image(self, content: bytes, served: Served, as_drawing: bool) -> Asked:
        return Asked(fitting(of_file(content, served.run, as_drawing=as_drawing), served.run), True)

    async def predict(self, request: Request, served: Served) -> Prediction:
        """Return the answers for the samples of a request."""
        asked = await self.read(request, served)
        out: Tensor = await self._batchers[served.id](asked.samples)
        made = one_tensor(asked.samples).tolist() if asked.made else None
        answers = await self.work(answers_of, served.run, out, asked.samples)
        return Prediction(run=served.id, answers=answers, samples=made)

    async def inside(self, request: Request, served: Served, noise: bool) -> Inside:
        """Return the way of the one sample of a request through the net."""
        asked = await self.read(request, served)
        steps = await self.work(partial(served.looks, one_tensor(asked.samples), noise=noise))
        assert served.looks.kind is not None
        return Inside(run=served.id, kind=served.looks.kind, steps=steps)


def application(served: Sequence[Served], limits: Limits, hosts: Collection[str] = ()) -> FastAPI:
    """Return the service for runs.

    Args:
        served: the runs.
        limits: of requests.
        hosts: names that a request may give as its host, beside IP addresses and localhost.
    """
    app, counts = base("bpfree serve", "page.html", _FILES, limits, hosts, lambda: len(served))
    desk = Desk(served, limits, counts.batch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.worker.shutdown(wait=False, cancel_futures=True)

    app.router.lifespan_context = lifespan
    _add_facts(app, desk)
    _add_answers(app, desk)
    _add_question(app)
    return app


def _add_facts(app: FastAPI, desk: Desk) -> None:
    """Add the routes that say what the runs are."""
    known: dict[int | str, dict[str, Any]] = {status: DOCUMENTED[status] for status in (403, 404, 422)}

    @app.get("/api/runs", summary="List the runs", responses={403: DOCUMENTED[403]})
    async def runs() -> Runs:
        return Runs(version=__version__, runs=[each.facts for each in desk.runs.values()])

    @app.get("/api/runs/{id}", summary="Say what a run is", responses=known)
    async def run(id: str) -> RunFacts:  # noqa: A002 -- the name in the address
        return desk.run(id).facts

    @app.get("/api/runs/{id}/sample", summary="Return a sample of the test split", responses=known)
    async def sample(
        id: str,  # noqa: A002
        index: Annotated[int | None, Query(description="Its number, from 0. Default: a random one.")] = None,
    ) -> TestSample:
        return desk.run(id).sample(index)


def _add_answers(app: FastAPI, desk: Desk) -> None:
    """Add the routes that answer for samples."""
    options: dict[str, Any] = {"openapi_extra": _BODY, "responses": DOCUMENTED, "response_model_exclude_none": True}

    @app.post("/api/runs/{id}/predict", summary="Answer for samples", **options)
    async def predict(id: str, request: Request) -> Prediction:  # noqa: A002
        return await desk.within_time(desk.predict(request, desk.run(id)))

    @app.post("/api/runs/{id}/inside", summary="Show the way of one sample through the net", **options)
    async def inside(
        id: str,  # noqa: A002
        request: Request,
        noise: Annotated[bool, Query(description="Start NoProp's inference from noise.")] = False,
    ) -> Inside:
        return await desk.within_time(desk.inside(request, desk.run(id), noise))


def _add_question(app: FastAPI) -> None:
    """Add the form of questions to the schema, which FastAPI cannot know: bodies of two types are read by hand."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        question = Question.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"]["Question"] = question
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
