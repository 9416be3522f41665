"""The JSON forms of the service: what a request asks, and what it gets. The OpenAPI schema is made of them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Cell = str | float
SIDE = 512  # of a drawing, in cells


class Question(BaseModel):
    """The samples to answer for: exactly one of `samples`, `rows` and `drawing`."""

    model_config = ConfigDict(extra="forbid")

    samples: list[Any] | dict[str, list[Any]] | None = Field(
        default=None,
        description="Raw samples [N, ...] in the form of the training data; for a net of several inputs by name.",
    )
    rows: list[dict[str, Cell]] | None = Field(
        default=None, description="Rows of a table, each with a value for each column."
    )
    drawing: list[list[float]] | None = Field(
        default=None,
        description="A drawing [h, w] with values from 0 (paper) to 1 (ink). It is put into the form of the data.",
    )

    @model_validator(mode="after")
    def _is_one(self) -> "Question":
        if sum(value is not None for value in (self.samples, self.rows, self.drawing)) != 1:
            raise ValueError("give exactly one of samples, rows and drawing")
        return self


class Answer(BaseModel):
    """The answer for one sample; which parts are there depends on the task of the run."""

    label: str | None = Field(default=None, description="The name of the most likely class.")
    index: int | None = Field(default=None, description="The number of the most likely class, from 0.")
    labels: list[str] | None = Field(default=None, description="With several labels a sample: those that are likely.")
    probabilities: list[float] | None = Field(
        default=None, description="The probability of each class, or of each label."
    )
    values: list[Any] | float | None = Field(
        default=None, description="Predicted numbers, the rebuilt sample, or the class of each pixel."
    )
    error: float | None = Field(default=None, description="The mean squared error of a rebuilt sample.")


class Prediction(BaseModel):
    """The answers for the samples of one request."""

    run: str
    answers: list[Answer]
    samples: list[Any] | None = Field(
        default=None, description="The raw samples that were made of a drawing, of rows or of an image."
    )


class Step(BaseModel):
    """The answer at one place within a net, or after one step of inference."""

    name: str
    answer: Answer
    z: list[float] | None = Field(default=None, description="For NoProp the point that is denoised, if it is short.")


class Inside(BaseModel):
    """The way of one sample through a net, from the first step to the answer."""

    run: str
    kind: Literal["walk", "heads", "probes"]
    steps: list[Step]


class Column(BaseModel):
    """A column of a table."""

    name: str
    values: list[str] | None = Field(default=None, description="The words that are allowed; none if it holds numbers.")
    mean: float | None = Field(default=None, description="The mean of the training rows, for numbers.")


class Input(BaseModel):
    """The form of the samples that a run takes."""

    kind: Literal["image", "table", "numbers"]
    shape: list[int]
    dtype: str
    low: float = Field(description="The raw value of the darkest pixel.")
    high: float = Field(description="The raw value of the brightest pixel.")
    draws: bool = Field(description="True if a drawing can be put into the form of the data.")
    files: bool = Field(description="True if image files can be read.")
    columns: list[Column] | None = None
    inputs: list[str] | None = Field(default=None, description="The names of several inputs.")


class RunFacts(BaseModel):
    """Facts about a run."""

    id: str
    rule: str
    net: str
    data: str
    task: str
    metrics: dict[str, float] = Field(description="Test metrics at the end of training.")
    parameters: int | None = None
    classes: list[str]
    input: Input
    inside: Literal["walk", "heads", "probes"] | None
    inside_why: str = Field(description="Why nothing can be shown inside the net; empty if something can.")
    tests: int = Field(description="The number of test samples at hand.")
    tests_why: str = Field(description="Why there are no test samples; empty if there are.")
    shown: bool = Field(description="True if the page shows the run before the user chooses.")


class Runs(BaseModel):
    """The runs that the service has."""

    version: str
    runs: list[RunFacts]


class TestSample(BaseModel):
    """A sample of the test split."""

    index: int
    label: str | None = Field(default=None, description="The name of the true class, if labels are classes.")
    answer: list[Any] | float | None = Field(default=None, description="The true numbers, if labels are numbers.")
    sample: list[Any]


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ok"] = "ok"
    runs: int


class Refusal(BaseModel):
    """The body of every error."""

    error: str
