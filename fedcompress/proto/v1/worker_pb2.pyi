from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainRequest(_message.Message):
    __slots__ = ("task", "chunk")
    TASK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    task: TaskHeader
    chunk: bytes
    def __init__(self, task: _Optional[_Union[TaskHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class TaskHeader(_message.Message):
    __slots__ = ("task_json", "payload_size", "signature")
    TASK_JSON_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    task_json: str
    payload_size: int
    signature: str
    def __init__(self, task_json: _Optional[str] = ..., payload_size: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class TrainEvent(_message.Message):
    __slots__ = ("progress", "reply", "chunk", "failure")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    reply: ReplyHeader
    chunk: bytes
    failure: Failure
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., reply: _Optional[_Union[ReplyHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "step", "steps", "loss", "text")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    phase: str
    step: int
    steps: int
    loss: float
    text: str
    def __init__(self, phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class ReplyHeader(_message.Message):
    __slots__ = ("payload_size", "replayed")
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    payload_size: int
    replayed: bool
    def __init__(self, payload_size: _Optional[int] = ..., replayed: _Optional[bool] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "have_version", "has_state")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HAVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_STATE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    have_version: int
    has_state: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., have_version: _Optional[int] = ..., has_state: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("site", "pid", "phase", "run", "round", "ranks_ready", "ranks", "model_loads", "last_error", "rss_bytes", "step", "steps", "loss", "text", "last_error_at", "last_error_code", "last_error_run", "last_error_round", "uptime_seconds", "ranks_rss_bytes", "host_total_bytes", "host_available_bytes", "gpus", "traffic", "bytes_received", "bytes_sent", "phase_seconds", "rounds")
    SITE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RANKS_READY_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_LOADS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_RUN_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_ROUND_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RANKS_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    site: str
    pid: int
    phase: str
    run: str
    round: int
    ranks_ready: int
    ranks: int
    model_loads: int
    last_error: str
    rss_bytes: int
    step: int
    steps: int
    loss: float
    text: str
    last_error_at: float
    last_error_code: str
    last_error_run: str
    last_error_round: int
    uptime_seconds: float
    ranks_rss_bytes: int
    host_total_bytes: int
    host_available_bytes: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuMemory]
    traffic: _containers.RepeatedCompositeFieldContainer[RunTraffic]
    bytes_received: int
    bytes_sent: int
    phase_seconds: float
    rounds: int
    def __init__(self, site: _Optional[str] = ..., pid: _Optional[int] = ..., phase: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., ranks_ready: _Optional[int] = ..., ranks: _Optional[int] = ..., model_loads: _Optional[int] = ..., last_error: _Optional[str] = ..., rss_bytes: _Optional[int] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., text: _Optional[str] = ..., last_error_at: _Optional[float] = ..., last_error_code: _Optional[str] = ..., last_error_run: _Optional[str] = ..., last_error_round: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., ranks_rss_bytes: _Optional[int] = ..., host_total_bytes: _Optional[int] = ..., host_available_bytes: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuMemory, _Mapping]]] = ..., traffic: _Optional[_Iterable[_Union[RunTraffic, _Mapping]]] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., phase_seconds: _Optional[float] = ..., rounds: _Optional[int] = ...) -> None: ...

class GpuMemory(_message.Message):
    __slots__ = ("index", "name", "total_bytes", "used_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    total_bytes: int
    used_bytes: int
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., total_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ...) -> None: ...

class RunTraffic(_message.Message):
    __slots__ = ("run", "received_bytes", "sent_bytes", "requests", "replies")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    run: str
    received_bytes: int
    sent_bytes: int
    requests: int
    replies: int
    def __init__(self, run: _Optional[str] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., requests: _Optional[int] = ..., replies: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankHello(_message.Message):
    __slots__ = ("rank", "pid", "group")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    group: int
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ..., group: _Optional[int] = ...) -> None: ...

class MeetRequest(_message.Message):
    __slots__ = ("rank", "group", "host", "port")
    RANK_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    group: int
    host: str
    port: int
    def __init__(self, rank: _Optional[int] = ..., group: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class MeetReply(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class NodeHello(_message.Message):
    __slots__ = ("node", "ranks", "version", "name")
    NODE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    node: int
    ranks: int
    version: str
    name: str
    def __init__(self, node: _Optional[int] = ..., ranks: _Optional[int] = ..., version: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class NodeCommand(_message.Message):
    __slots__ = ("group", "world")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    group: int
    world: int
    def __init__(self, group: _Optional[int] = ..., world: _Optional[int] = ...) -> None: ...

class NodeLoss(_message.Message):
    __slots__ = ("node", "group", "message")
    NODE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    node: int
    group: int
    message: str
    def __init__(self, node: _Optional[int] = ..., group: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class NodeAck(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankCommand(_message.Message):
    __slots__ = ("id", "job_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    id: int
    job_json: str
    def __init__(self, id: _Optional[int] = ..., job_json: _Optional[str] = ...) -> None: ...

class RankReport(_message.Message):
    __slots__ = ("rank", "id", "progress", "result_json", "error")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    rank: int
    id: int
    progress: Progress
    result_json: str
    error: str
    def __init__(self, rank: _Optional[int] = ..., id: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result_json: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class RankAck(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
