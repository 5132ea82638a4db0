"""Which model a path means, and what of a body is looked at."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.inference import Operation
from headrace.kernel.errors import InvalidRequest
from headrace.wire.prediction import Prediction, read_prediction

PATHS = [
    ("half", "half", "", "/v1/models/half"),
    ("half/versions/12", "half", "versions/12", "/v1/models/half/versions/12"),
    ("half/labels/stable one", "half", "labels/stable one", "/v1/models/half/labels/stable%20one"),
    ("org/half:7b", "org/half:7b", "", "/v1/models/org%2Fhalf%3A7b"),
    ("a/versions/2/versions/3", "a/versions/2", "versions/3", "/v1/models/a%2Fversions%2F2/versions/3"),
    ("a/versions/x", "a/versions/x", "", "/v1/models/a%2Fversions%2Fx"),
    ("a/labels/b/c", "a/labels/b/c", "", "/v1/models/a%2Flabels%2Fb%2Fc"),
    ("versions/3", "versions/3", "", "/v1/models/versions%2F3"),
    ("{model}", "{model}", "", "/v1/models/%7Bmodel%7D"),
    ("../../etc", "../../etc", "", "/v1/models/..%2F..%2Fetc"),
    ("a\r\nb?c#d", "a\r\nb?c#d", "", "/v1/models/a%0D%0Ab%3Fc%23d"),
    ("é", "é", "", "/v1/models/%C3%A9"),
]
VERBS = {
    Operation.PREDICT: ("POST", ":predict"),
    Operation.CLASSIFY: ("POST", ":classify"),
    Operation.REGRESS: ("POST", ":regress"),
    Operation.METADATA: ("GET", "/metadata"),
    Operation.STATUS: ("GET", ""),
}


@pytest.mark.req("B02")
@pytest.mark.parametrize("operation", VERBS)
@pytest.mark.parametrize(("target", "model", "part", "path"), PATHS)
def test_the_model_of_a_path_and_the_path_of_a_model(
    operation: Operation, target: str, model: str, part: str, path: str
) -> None:
    asked = read_prediction(operation, target, b"{}")
    method, verb = VERBS[operation]
    assert (asked.model, asked.part, asked.method) == (model, part, method)
    assert asked.path(model) == path + verb
    assert asked.path("other") == asked.path(model).replace(
        path, f"/v1/models/other{path[len(own(model)) :]}"
    )


def own(model: str) -> str:
    return Prediction(Operation.STATUS, model).path(model)


@given(st.text(min_size=1, max_size=50))
def test_whatever_a_model_is_called_its_path_is_one_line_of_ascii(model: str) -> None:
    path = Prediction(Operation.PREDICT, model.encode("utf-8", "replace").decode()).path("x")
    assert path == "/v1/models/x:predict"
    try:
        path = Prediction(Operation.PREDICT, "x").path(model)
    except UnicodeEncodeError:
        return  # a lone surrogate: it doesn't come out of a path
    assert path.isascii()
    assert path.isprintable()
    assert not set(" /:?#") & set(path[len("/v1/models/") : -len(":predict")])


@pytest.mark.parametrize(
    "raw", [b'{"instances":[1]}', b' {"a": NaN, "b": [-Infinity, "NaN"]}\n', b'{"a":1,"a":2}', b"{}"]
)
def test_a_body_is_kept_as_it_came(raw: bytes) -> None:
    asked = read_prediction(Operation.PREDICT, "m", raw)
    assert asked.raw == raw
    assert set(asked.members) == set(json.loads(raw))


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"1", b"NaN", b"{", b'{"a":}', b'{"a": Inf}', b'{"\xff":1}', b"{}{}"]
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_prediction(Operation.PREDICT, "m", raw)
    assert caught.value.code == "invalid_json"


def test_a_name_has_an_end() -> None:
    with pytest.raises(InvalidRequest):
        read_prediction(Operation.METADATA, "m" * 513)
