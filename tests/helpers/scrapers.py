"""What pprof, Parca, Pyroscope and Alloy demand of a profile, checked without our code.

The bytes are parsed by protobuf's own runtime from a description of profile.proto.
Source: google/pprof CheckValid, Parca's validate.go, Pyroscope's validate.go and
Alloy's fastdelta, as of 2026.
"""

import re
import zlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELDS = {
    "ValueType": "1 type int64;2 unit int64",
    "Sample": "1 location_id uint64*;2 value int64*;3 label Label*",
    "Label": "1 key int64;2 str int64;3 num int64;4 num_unit int64",
    "Mapping": (
        "1 id uint64;2 memory_start uint64;3 memory_limit uint64;4 file_offset uint64;"
        "5 filename int64;6 build_id int64;7 has_functions bool;8 has_filenames bool;"
        "9 has_line_numbers bool;10 has_inline_frames bool"
    ),
    "Location": (
        "1 id uint64;2 mapping_id uint64;3 address uint64;4 line Line*;5 is_folded bool"
    ),
    "Line": "1 function_id uint64;2 line int64;3 column int64",
    "Function": (
        "1 id uint64;2 name int64;3 system_name int64;4 filename int64;"
        "5 start_line int64"
    ),
    "Profile": (
        "1 sample_type ValueType*;2 sample Sample*;3 mapping Mapping*;"
        "4 location Location*;5 function Function*;6 string_table string*;"
        "7 drop_frames int64;8 keep_frames int64;9 time_nanos int64;"
        "10 duration_nanos int64;11 period_type ValueType;12 period int64;"
        "13 comment int64*;14 default_sample_type int64;15 doc_url int64"
    ),
}
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_TYPE = descriptor_pb2.FieldDescriptorProto
_CUMULATIVE = {"inuse_space", "delay"}


def _profile_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="profile.proto", package="perftools.profiles", syntax="proto3"
    )
    for name, text in _FIELDS.items():
        message = file.message_type.add(name=name)
        for part in text.split(";"):
            number, field, kind = part.split()
            made = message.field.add(name=field, number=int(number))
            repeated = kind.endswith("*")
            made.label = _TYPE.LABEL_REPEATED if repeated else _TYPE.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in _FIELDS:
                made.type = _TYPE.TYPE_MESSAGE
                made.type_name = f".perftools.profiles.{kind}"
            else:
                made.type = getattr(_TYPE, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("perftools.profiles.Profile")
    return message_factory.GetMessageClass(found)


PROFILE = _profile_class()


def check(body: bytes, *, is_delta: bool = False) -> Any:
    """Assert every rule; returns the parsed message."""
    inflate = zlib.decompressobj(31)
    raw = inflate.decompress(body)
    assert inflate.eof
    assert not inflate.unused_data, "more than one gzip member"
    assert not raw.startswith(b"\x1f\x8b"), "gzip in gzip"
    assert len(raw) <= 4 << 20
    profile = PROFILE.FromString(raw)
    strings = profile.string_table
    assert strings[0] == ""
    assert len(set(strings)) == len(strings)
    assert raw, "an empty body"
    _check_ids(profile)
    types = [strings[one.type] for one in profile.sample_type]
    assert types
    assert all(types)
    assert not [one for one in types if "-" in one]
    assert len(types) <= 4, "Alloy's delta holds four"
    assert len(profile.sample) <= 16_000
    seen = set()
    for sample in profile.sample:
        assert len(sample.value) == len(types)
        assert is_delta or min(sample.value) >= 0
        assert sample.location_id
        assert len(sample.location_id) <= 1000
        assert 0 not in sample.location_id
        labels = [(strings[one.key], strings[one.str]) for one in sample.label]
        keys = [key for key, _ in labels]
        assert len(set(keys)) == len(keys) <= 30
        for key, value in labels:
            assert _KEY.fullmatch(key), key
            assert len(key) <= 1024
            assert len(value.encode()) <= 2048
            assert not key.startswith("pprof::")
        same = (tuple(sample.location_id), tuple(sorted(labels)))
        assert same not in seen, "the same stack and labels twice"
        seen.add(same)
    if _CUMULATIVE & set(types) and not is_delta:
        assert profile.duration_nanos == 0
    assert not [c for c in profile.comment if strings[c].startswith("executableInfo=")]
    return profile


def _check_ids(profile: Any) -> None:
    for table in (profile.mapping, profile.location, profile.function):
        assert [one.id for one in table] == list(range(1, len(table) + 1))
    assert len(profile.mapping) == 1
    mapping = profile.mapping[0]
    assert mapping.has_functions
    assert mapping.has_filenames
    assert mapping.has_line_numbers
    assert "/" not in profile.string_table[mapping.filename]
    addresses = [one.address for one in profile.location]
    assert 0 not in addresses
    assert len(set(addresses)) == len(addresses)
    for location in profile.location:
        assert location.mapping_id == 1
        assert location.line
        for line in location.line:
            assert 1 <= line.function_id <= len(profile.function)
    locations = len(profile.location)
    assert all(i <= locations for s in profile.sample for i in s.location_id)
