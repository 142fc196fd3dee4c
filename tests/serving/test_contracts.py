"""The documents' wire formats: what is taken, what is refused and how, and what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.serving.contracts import (
    M3Request,
    QueryRequest,
    Usage,
    health_answer,
    m3_answer,
    parse_m3,
    parse_query,
    parse_query_input,
    query_answer,
)
from unified_embeddings.types import Embeddings, SparseVector

DENSE = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
SPARSE = [SparseVector.from_dict({7: 0.25, 42: 0.5}), SparseVector.from_dict({})]
COLBERT = [np.array([[0.0, 1.0], [0.6, 0.8]], np.float32), np.zeros((0, 2), np.float32)]
BOTH = Embeddings(dense=DENSE, sparse=SPARSE, colbert=COLBERT)
USAGE = Usage(prompt_tokens=9, truncated=1)


def answer_m3(**fields: Any) -> Any:
    request = parse_m3({"texts": ["a", "b"], **fields})
    answer = m3_answer(request, BOTH, model="mini", fingerprint="f" * 32, usage=USAGE)
    return json.loads(json.dumps(answer, allow_nan=False))


class TestM3Requests:
    def test_only_texts_is_required(self) -> None:
        assert parse_m3({"texts": ["a"]}) == M3Request(
            texts=("a",),
            role="query",
            heads=("dense", "sparse", "colbert"),
            encoding="float",
            colbert_dtype="float32",
        )

    def test_every_field_has_its_meaning(self) -> None:
        request = parse_m3(
            {
                "texts": [],
                "isPassage": True,
                "batchSize": 2,
                "heads": ["colbert", "dense", "dense"],
                "encoding": "base64",
                "colbert_dtype": "float32",
            }
        )
        assert request.texts == ()
        assert request.role == "document"
        assert request.heads == ("dense", "colbert")
        assert (request.encoding, request.colbert_dtype) == ("base64", "float32")

    def test_colbert_in_base64_is_float16_unless_asked_for(self) -> None:
        assert parse_m3({"texts": [], "encoding": "base64"}).colbert_dtype == "float16"

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            ([], "the request must be a JSON object, got a list"),
            (None, "the request must be a JSON object, got null"),
            ({}, "texts is missing; send a list of strings"),
            (
                {"texts": "a"},
                "texts must be a list of strings, got a string; put it into a list",
            ),
            ({"texts": {"0": "a"}}, "texts must be a list of strings, got an object"),
            ({"texts": None}, "texts must be a list of strings, got null"),
            ({"texts": ["a", 1]}, r"texts\[1\] must be a string, got a number"),
            ({"texts": ["a", True]}, r"texts\[1\] must be a string, got a boolean"),
            ({"texts": ["a", "b", None]}, r"texts\[2\] must be a string, got null"),
            ({"texts": ["a", "ab\ud83d"]}, r"texts\[1\] holds a lone surrogate at character 2"),
            ({"texts": [], "is_passage": True}, "the request has no field 'is_passage'; its fiel"),
            ({"texts": [], "isPassage": 1}, "isPassage must be true or false, got a number"),
            ({"texts": [], "isPassage": "no"}, "isPassage must be true or false, got a string"),
            ({"texts": [], "isPassage": None}, "isPassage must be true or false, got null"),
            ({"texts": [], "batchSize": True}, "batchSize must be a whole number >= 1, got a boo"),
            ({"texts": [], "batchSize": 0}, "batchSize must be a whole number >= 1, got 0"),
            ({"texts": [], "batchSize": 2.5}, "batchSize must be a whole number >= 1, got 2.5"),
            ({"texts": [], "batchSize": "8"}, "batchSize must be a whole number >= 1, got a str"),
            ({"texts": [], "batchSize": 10**30}, "batchSize must be a whole number <="),
            ({"texts": [], "heads": "dense"}, 'heads must be a list of "dense", "sparse", "colb'),
            ({"texts": [], "heads": []}, "heads asks for no vectors; name at least one"),
            ({"texts": [], "heads": ["dense", "x"]}, r"heads\[1\] must be one of .*, got 'x'"),
            ({"texts": [], "heads": [["dense"]]}, r"heads\[0\] must be one of .*, got a list"),
            ({"texts": [], "encoding": "hex"}, 'encoding must be "float" or "base64", got \'hex\''),
            ({"texts": [], "encoding": 1}, 'encoding must be "float" or "base64", got a number'),
            ({"texts": [], "encoding": {}}, 'encoding must be "float" or "base64", got an obj'),
            (
                {"texts": [], "encoding": "base64", "colbert_dtype": "int8"},
                'colbert_dtype must be "float16" or "float32"',
            ),
            (
                {"texts": [], "colbert_dtype": "float16"},
                'colbert_dtype "float16" needs "encoding": "base64"',
            ),
        ],
    )
    def test_what_breaks_the_contract_is_named(self, payload: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            parse_m3(payload)

    def test_the_bad_texts_position_is_an_attribute_too(self) -> None:
        with pytest.raises(InputError) as caught:
            parse_m3({"texts": ["a", "b", 3]})
        assert caught.value.index == 2

    def test_many_unknown_fields_make_a_short_message(self) -> None:
        with pytest.raises(InputError, match="and 95 more") as caught:
            parse_m3({"texts": [], **{"x" * 500 + str(i): 1 for i in range(100)}})
        assert len(str(caught.value)) < 700

    def test_a_head_that_the_model_lacks_is_refused_by_name(self) -> None:
        with pytest.raises(
            InputError, match="gives dense and sparse vectors, no colbert ones; "
        ) as c:
            parse_m3({"texts": []}, ("dense", "sparse"))
        assert '"heads": ["dense", "sparse"]' in str(c.value)
        assert parse_m3({"texts": [], "heads": ["dense"]}, iter(["dense"])).heads == ("dense",)


class TestM3Answers:
    def test_all_heads_as_lists(self) -> None:
        answer = answer_m3()
        first, second = answer["results"]
        assert list(first) == ["text", "dense", "sparse", "colbert"]
        assert first["text"] == "a"
        assert first["sparse"] == {"indices": [7, 42], "values": [0.25, 0.5]}
        assert second["sparse"] == {"indices": [], "values": []}
        assert second["colbert"] == []
        assert answer["model"] == "mini"
        assert answer["fingerprint"] == "f" * 32
        assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9, "truncated": 1}

    def test_numbers_read_back_as_the_same_float32(self) -> None:
        first = answer_m3()["results"][0]
        assert np.array_equal(np.array(first["dense"], np.float32), DENSE[0])
        assert np.array_equal(np.array(first["colbert"], np.float32), COLBERT[0])

    @pytest.mark.parametrize("head", ["dense", "sparse", "colbert"])
    def test_only_the_heads_asked_for_are_present(self, head: str) -> None:
        for result in answer_m3(heads=[head])["results"]:
            assert list(result) == ["text", head]

    def test_base64_is_little_endian(self) -> None:
        first, second = answer_m3(encoding="base64")["results"]
        dense = np.frombuffer(base64.b64decode(first["dense"]), "<f4")
        assert np.array_equal(dense, DENSE[0])
        assert base64.b64decode(second["dense"]) == b"\x00\x00\x80\x3f\x00\x00\x00\x00"
        assert first["sparse"] == {"indices": [7, 42], "values": [0.25, 0.5]}
        assert first["colbert"]["shape"] == [2, 2]
        assert first["colbert"]["dtype"] == "float16"
        halves = np.frombuffer(base64.b64decode(first["colbert"]["data"]), "<f2").reshape(2, 2)
        assert np.array_equal(halves, COLBERT[0].astype(np.float16))
        assert second["colbert"] == {"shape": [0, 2], "dtype": "float16", "data": ""}

    def test_colbert_in_base64_can_be_exact(self) -> None:
        colbert = answer_m3(encoding="base64", colbert_dtype="float32")["results"][0]["colbert"]
        assert colbert["dtype"] == "float32"
        rows = np.frombuffer(base64.b64decode(colbert["data"]), "<f4").reshape(colbert["shape"])
        assert np.array_equal(rows, COLBERT[0])

    def test_no_texts_give_no_results(self) -> None:
        request = parse_m3({"texts": [], "heads": ["dense"]})
        empty = Embeddings(dense=np.zeros((0, 2), np.float32))
        answer = m3_answer(request, empty, model="m", fingerprint="f", usage=Usage(0))
        assert answer["results"] == []

    def test_vectors_of_other_texts_are_not_passed_on(self) -> None:
        request = parse_m3({"texts": ["a"]})
        with pytest.raises(ValueError, match="1 texts, got 2"):
            m3_answer(request, BOTH, model="m", fingerprint="f", usage=Usage(0))
        lacking = Embeddings(dense=DENSE[:1], sparse=SPARSE[:1])
        with pytest.raises(ValueError, match="colbert was asked for"):
            m3_answer(request, lacking, model="m", fingerprint="f", usage=Usage(0))


class TestQueries:
    def test_a_query_is_the_default_action(self) -> None:
        request = parse_query({"input": {"query": "a"}})
        assert request == QueryRequest(
            action="embed_query", texts=("a",), role="query", is_single=True, heads=("dense",)
        )

    def test_lists_of_queries_and_of_texts(self) -> None:
        queries = parse_query_input({"action": "embed_query", "queries": ["a", "b"]})
        assert (queries.texts, queries.role, queries.is_single) == (("a", "b"), "query", False)
        texts = parse_query_input({"action": "embed_batch", "texts": []})
        assert (texts.texts, texts.role, texts.is_single) == ((), "document", False)

    def test_a_health_check_asks_for_nothing(self) -> None:
        assert parse_query({"input": {"action": "health_check"}}).is_health_check
        assert not parse_query({"input": {"query": "a"}}).is_health_check
        assert health_answer("onnx", "cpu") == {
            "status": "ok",
            "endpoint": "query",
            "runtime": "onnx-cpu",
        }

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            ("a", "the request must be a JSON object, got a string"),
            ({}, 'the request needs "input"'),
            ({"query": "a"}, 'the request needs "input"'),
            ({"input": {"query": "a"}, "webhook": "x"}, "the request has no field 'webhook'"),
            ({"input": None}, "input must be a JSON object, got null"),
            ({"input": {}}, "needs query .a string. or queries .a list of strings."),
            ({"input": {"query": ["a"]}}, "query must be a string, got a list"),
            ({"input": {"query": None}}, "query must be a string, got null"),
            ({"input": {"query": "\udc00"}}, "query holds a lone surrogate at character 0"),
            ({"input": {"queries": "a"}}, "queries must be a list of strings, got a string"),
            ({"input": {"queries": ["a", 5]}}, r"queries\[1\] must be a string, got a number"),
            ({"input": {"query": "a", "queries": []}}, "holds both query and queries"),
            ({"input": {"texts": ["a"]}}, 'texts need "action": "embed_batch"'),
            ({"input": {"action": "embed_batch", "query": "a"}}, '"embed_batch" has no field'),
            ({"input": {"action": "embed_batch"}}, "texts is missing"),
            ({"input": {"action": "health_check", "query": "a"}}, '"health_check" has no field'),
            ({"input": {"action": "drop"}}, "action must be .*, got 'drop'"),
            ({"input": {"action": None}}, "action must be .*, got null"),
            ({"input": {"query": "a", "heads": ["dense", "x"]}}, r"heads\[1\] must be one of"),
        ],
    )
    def test_what_breaks_the_contract_is_named(self, payload: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            parse_query(payload)

    def test_a_head_that_the_model_lacks_is_refused_by_name(self) -> None:
        with pytest.raises(InputError, match="no sparse ones"):
            parse_query({"input": {"query": "a", "heads": ["sparse"]}}, ("dense",))

    def test_answers_to_one_text_are_no_lists(self) -> None:
        heads = ["dense", "sparse", "colbert"]
        request = parse_query_input({"query": "a", "heads": heads})
        answer = query_answer(request, BOTH[:1])
        assert json.loads(json.dumps(answer)) == {
            "embedding": DENSE[0].tolist(),
            "sparse": {"indices": [7, 42], "values": [0.25, 0.5]},
            "colbert": COLBERT[0].tolist(),
        }

    def test_answers_to_lists_are_lists(self) -> None:
        request = parse_query_input({"queries": ["a", "b"], "heads": ["dense", "sparse"]})
        assert query_answer(request, BOTH) == {
            "embeddings": DENSE.tolist(),
            "sparse": [vector.to_qdrant() for vector in SPARSE],
        }

    def test_the_default_is_the_document_s_answer(self) -> None:
        assert query_answer(parse_query_input({"query": "a"}), BOTH[:1]) == {
            "embedding": DENSE[0].tolist()
        }
        request = parse_query_input({"action": "embed_batch", "texts": ["a", "b"]})
        assert query_answer(request, BOTH) == {"embeddings": DENSE.tolist()}
