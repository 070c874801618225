"""Jobs, events, checkpoints and files on the wire: OpenAI's fine-tuning objects with what distillation adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..schemas import Text, whole_inside
from .gate import Gate, Publish

MAX_SEED = 2**31 - 1
"""A recipe's."""
METADATA_KEY = r"^[\w .:/@-]{1,64}$"


Name = Annotated[Text, Field(min_length=1, max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Field(pattern=METADATA_KEY)], Annotated[Text, Field(max_length=512)]] | None,
    Field(max_length=16),
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Method(Body):
    type: Literal["sid"] = "sid"
    sid: Annotated[dict[str, Any], AfterValidator(whole_inside)] = Field(
        default={},
        description="Keys of a recipe; `recipe` names the shipped one that they change",
        examples=[{"iterations": 360, "optimizer": {"lr_generator": 1e-4}}],
    )


class Webhook(Body):
    url: Annotated[Text, Field(max_length=2000, pattern=r"^https?://")]


class Integration(Body):
    """Whoever is to be told when the job has ended."""

    type: Literal["webhook"]
    webhook: Webhook


class JobRequest(Body):
    """`POST …/jobs`."""

    model: Name = Field(
        description="The teacher: a shipped name, a folder or a hub id that the server allows"
    )
    training_file: Name = Field(description="Prompts: a file's id, shapes:train or shapes:held-out")
    method: Method = Method()
    suffix: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][\w.-]{0,63}$", description="Of the student's name"
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="0 by default")
    metadata: Metadata = None
    integrations: list[Integration] | None = Field(None, max_length=1)
    validation_file: None = Field(None, description="Not used: the gate says what is measured")
    gate: Gate | None = Field(None, description="What is measured at the end, and what has to hold")
    publish: Publish | None = Field(None, description="Served under this name if the gate holds")
    precision: Literal["fp32", "fp16", "int8", "auto"] = Field("fp32", description="Of the bundle")
    prompts: Name | None = Field(None, description="What published networks measure on, as training_file")


class JobMethod(BaseModel):
    type: Literal["sid"] = "sid"
    sid: dict[str, Any] = Field(description="The whole recipe")


class JobError(BaseModel):
    code: str | None
    message: str
    param: str | None


class JobObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    requested: Literal["pause", "cancel"] | None = Field(description="What a running job has been asked for")
    error: JobError | None
    model: str
    fine_tuned_model: str | None
    training_file: str
    validation_file: None = None
    method: JobMethod
    hyperparameters: dict[str, Any] = {}
    suffix: str | None
    seed: int
    metadata: dict[str, str]
    integrations: list[Integration] | None
    organization_id: str = "fewstep"
    result_files: list[str] = []
    trained_tokens: None = None
    gate: Gate | None
    publish: Publish | None
    precision: str
    prompts: str | None
    progress: dict[str, Any] = Field(description="How far it is, as of the last heartbeat")
    result: dict[str, Any] = Field(description="What there is of it at the end, and whether it is published")


class EventObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any]
    sample_url: str | None = Field(description="A grid of what the student drew then")


class TeacherObject(BaseModel):
    id: str
    object: Literal["distillation.teacher"] = "distillation.teacher"
    recipe: dict[str, Any] = Field(description="What a job of it does unless `method.sid` says otherwise")


class TeacherList(BaseModel):
    object: Literal["list"] = "list"
    data: list[TeacherObject]


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "batch", "batch_output"]
    status: Literal["processed"] = "processed"
    digest: str


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Page(BaseModel):
    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None


class JobList(Page):
    data: list[JobObject]


class EventList(Page):
    data: list[EventObject]


class CheckpointList(Page):
    data: list[CheckpointObject]


class FileList(Page):
    data: list[FileObject]
