from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_UPDATE: _ClassVar[Kind]
    KIND_DELTA: _ClassVar[Kind]
    KIND_SNAPSHOT: _ClassVar[Kind]
    KIND_REPORT: _ClassVar[Kind]
    KIND_FILE: _ClassVar[Kind]
    KIND_CONSTANTS: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_UPDATE: Kind
KIND_DELTA: Kind
KIND_SNAPSHOT: Kind
KIND_REPORT: Kind
KIND_FILE: Kind
KIND_CONSTANTS: Kind

class Header(_message.Message):
    __slots__ = ("kind", "run", "site", "round", "version", "base_digest", "result_digest", "layout_digest", "base_fingerprint", "adapter_digest", "codec", "examples", "metrics", "sections", "init_seed", "metric_codes", "metric_values")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RESULT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    INIT_SEED_FIELD_NUMBER: _ClassVar[int]
    METRIC_CODES_FIELD_NUMBER: _ClassVar[int]
    METRIC_VALUES_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    run: str
    site: str
    round: int
    version: int
    base_digest: bytes
    result_digest: bytes
    layout_digest: bytes
    base_fingerprint: bytes
    adapter_digest: bytes
    codec: str
    examples: int
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    sections: _containers.RepeatedCompositeFieldContainer[Section]
    init_seed: int
    metric_codes: _containers.RepeatedScalarFieldContainer[int]
    metric_values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., run: _Optional[str] = ..., site: _Optional[str] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., base_digest: _Optional[bytes] = ..., result_digest: _Optional[bytes] = ..., layout_digest: _Optional[bytes] = ..., base_fingerprint: _Optional[bytes] = ..., adapter_digest: _Optional[bytes] = ..., codec: _Optional[str] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ..., init_seed: _Optional[int] = ..., metric_codes: _Optional[_Iterable[int]] = ..., metric_values: _Optional[_Iterable[float]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Section(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...
