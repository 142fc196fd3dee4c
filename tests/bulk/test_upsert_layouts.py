"""What becomes of ids, metadata and vectors on their way into another store."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moving_texts import move, read_batches, rows_of, vectors_of

from unified_embeddings.bulk.layout_choice import LAYOUT_NAMES, LayoutName, make_layout
from unified_embeddings.bulk.upsert_layouts import LayoutRow, RowVectors, stable_uuid
from unified_embeddings.errors import InputError

VECTORS = RowVectors(dense=np.array([0.5, -1.0], np.float32), sparse=None)


def row(fields: dict[str, Any], text: str | None = None, *, own_id: Any = "a") -> LayoutRow:
    return LayoutRow(
        number=7, fields={"id": own_id, **fields}, text=text, place="a.json, line 8", id_field="id"
    )


def encode(name: LayoutName, one: LayoutRow, vectors: RowVectors = VECTORS) -> Any:
    layout = make_layout(name)
    layout.check(one)
    return json.loads(layout.join([layout.encode(one, vectors)]))


def metadata_of(name: LayoutName, fields: dict[str, Any], **more: Any) -> Any:
    batch = encode(name, row(fields, **more))
    if name == "chroma":
        return batch.get("metadatas", [None])[0]
    if name == "pinecone":
        return batch["vectors"][0].get("metadata")
    (document,) = batch["documents"]
    return {key: value for key, value in document.items() if key not in ("_id", "dense")}


class TestLayouts:
    """Each batch is what the store's own documentation shows."""

    def test_chroma(self) -> None:
        assert encode("chroma", row({"year": 1990}, "Foxes.")) == {
            "ids": ["a"],
            "embeddings": [[0.5, -1.0]],
            "documents": ["Foxes."],
            "metadatas": [{"year": 1990}],
        }
        assert encode("chroma", row({})) == {"ids": ["a"], "embeddings": [[0.5, -1.0]]}

    def test_pinecone(self) -> None:
        sparse = (np.array([3, 9], np.int32), np.array([0.25, 2.0], np.float32))
        both = RowVectors(dense=VECTORS.dense, sparse=sparse)
        assert encode("pinecone", row({"year": 1990}, "Foxes."), both) == {
            "vectors": [
                {
                    "id": "a",
                    "values": [0.5, -1.0],
                    "sparse_values": {"indices": [3, 9], "values": [0.25, 2.0]},
                    "metadata": {"year": 1990, "text": "Foxes."},
                }
            ]
        }
        assert encode("pinecone", row({})) == {"vectors": [{"id": "a", "values": [0.5, -1.0]}]}
        assert encode("pinecone-documents", row({"year": 1990}, "Foxes."), both) == {
            "documents": [
                {
                    "_id": "a",
                    "dense": [0.5, -1.0],
                    "sparse": {"indices": [3, 9], "values": [0.25, 2.0]},
                    "year": 1990,
                    "text": "Foxes.",
                }
            ]
        }

    def test_qdrant(self) -> None:
        sparse = (np.array([3, 9], np.int32), np.array([0.25, 2.0], np.float32))
        both = RowVectors(dense=VECTORS.dense, sparse=sparse)
        (point,) = encode("qdrant", row({"year": 1990}, "Foxes."), both)["points"]
        assert point["id"] == stable_uuid("a")
        assert point["vector"] == {
            "text-dense": [0.5, -1.0],
            "text-sparse-new": {"indices": [3, 9], "values": [0.25, 2.0]},
        }
        assert (point["payload"]["id"], point["payload"]["year"]) == ("a", 1990)
        assert json.loads(point["payload"]["_node_content"])["text"] == "Foxes."

    def test_an_empty_sparse_vector_is_left_out_in_pinecone_and_the_largest_weights_stay(
        self,
    ) -> None:
        nothing = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        empty = RowVectors(dense=VECTORS.dense, sparse=nothing)
        assert "sparse_values" not in encode("pinecone", row({}), empty)["vectors"][0]
        values = np.arange(1, 1501, dtype=np.float32)
        many = RowVectors(dense=VECTORS.dense, sparse=(np.arange(1500, dtype=np.int32), values))
        kept = encode("pinecone", row({}), many)["vectors"][0]["sparse_values"]
        assert kept["indices"] == list(range(500, 1500))
        assert kept["values"] == list(range(501, 1501))


class TestIds:
    @pytest.mark.parametrize("name", LAYOUT_NAMES)
    def test_what_is_neither_a_text_nor_a_whole_number_is_refused(self, name: LayoutName) -> None:
        for own_id in (1.5, True, ["a"], None):
            with pytest.raises(
                InputError, match=r"^a.json, line 8: the id .* is neither a text nor"
            ):
                make_layout(name).final_id(row({}, own_id=own_id))

    @pytest.mark.parametrize(
        ("own_id", "chroma", "pinecone", "qdrant"),
        [
            ("a", "a", "a", None),
            (5, "5", "5", 5),
            (2**64 - 1, str(2**64 - 1), str(2**64 - 1), 2**64 - 1),
            (2**64, str(2**64), str(2**64), None),
            (-1, "-1", "-1", None),
            ("", None, None, None),
            ("fuchs-ä", "fuchs-ä", None, None),
            ("x" * 512, "x" * 512, "x" * 512, None),
            ("x" * 513, "x" * 513, None, None),
            ("a\0b", "a\0b", None, None),
            (
                "936DA01F9ABD4d9d80C702AF85C822A8",
                "936DA01F9ABD4d9d80C702AF85C822A8",
                "936DA01F9ABD4d9d80C702AF85C822A8",
                "936da01f-9abd-4d9d-80c7-02af85c822a8",
            ),
        ],
    )
    def test_an_id_stays_or_becomes_a_uuid(
        self, own_id: Any, chroma: Any, pinecone: Any, qdrant: Any
    ) -> None:
        expected = {"chroma": chroma, "pinecone": pinecone, "qdrant": qdrant}
        for name, final_id in expected.items():
            one = row({}, own_id=own_id)
            found = make_layout(name).final_id(one)  # type: ignore[arg-type]
            if final_id is None:
                assert uuid.UUID(str(found)).version == 5
                assert found == stable_uuid(own_id)
            else:
                assert found == final_id

    def test_an_id_that_became_a_uuid_is_kept_in_the_metadata(self) -> None:
        assert metadata_of("pinecone", {}, own_id="fuchs-ä") == {"id": "fuchs-ä"}
        assert metadata_of("pinecone", {}, own_id="fuchs") is None
        assert metadata_of("chroma", {}, own_id=5) is None

    def test_uuids_do_not_change_from_version_to_version(self) -> None:
        assert stable_uuid("a") == str(
            uuid.uuid5(uuid.UUID("5a4f1a1e-5d0c-5b53-9d0e-6f2f0c6b7a11"), 'id "a"')
        )

    def test_rows_without_ids_have_their_numbers(self) -> None:
        one = LayoutRow(number=7, fields={}, text=None, place="", id_field=None)
        assert [make_layout(name).final_id(one) for name in ("chroma", "pinecone", "qdrant")] == [
            "7",
            "7",
            7,
        ]


class TestMetadata:
    @pytest.mark.parametrize(
        ("value", "chroma", "pinecone"),
        [
            ("x", "x", "x"),
            (True, True, True),
            (1.5, 1.5, 1.5),
            (3, 3, 3),
            (2**53, 2**53, 2**53),
            (2**53 + 1, 2**53 + 1, str(2**53 + 1)),
            (2**63, str(2**63), str(2**63)),
            (None, None, None),
            ([], None, None),
            (["a", "b"], ["a", "b"], ["a", "b"]),
            ([1, 2], [1, 2], "[1, 2]"),
            ([True, False], [True, False], "[true, false]"),
            ([1, 2.5], "[1, 2.5]", "[1, 2.5]"),
            ([1, True], "[1, true]", "[1, true]"),
            (["a", None], '["a", null]', '["a", null]'),
            ([2**63], f"[{2**63}]", f"[{2**63}]"),
            ({"x": {"y": 1}}, '{"x": {"y": 1}}', '{"x": {"y": 1}}'),
        ],
    )
    def test_values_stay_or_become_texts(self, value: Any, chroma: Any, pinecone: Any) -> None:
        for name, expected in (("chroma", chroma), ("pinecone", pinecone)):
            found = metadata_of(name, {"k": value})  # type: ignore[arg-type]
            assert found == (None if expected is None else {"k": expected})
            if expected is not None:
                assert type(found["k"]) is type(expected)

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("chroma", ""),
            ("chroma", "#a"),
            ("chroma", "$a"),
            ("chroma", "chroma:document"),
            ("pinecone", ""),
            ("pinecone", "$a"),
            ("pinecone-documents", "_a"),
            ("pinecone-documents", "dense"),
        ],
    )
    def test_keys_that_a_store_refuses_are_refused_here(self, name: LayoutName, key: str) -> None:
        with pytest.raises(InputError, match=r"^a.json, line 8: the field .*--keep-fields"):
            make_layout(name).check(row({key: 1}))

    def test_the_text_does_not_replace_a_field_of_its_name(self) -> None:
        fields = {"text": "a field", "input_text": 1}
        assert metadata_of("pinecone", fields, text="Foxes.") == {
            "text": "Foxes.",
            "input_text": 1,
            "input_input_text": "a field",
        }

    @pytest.mark.parametrize("name", LAYOUT_NAMES)
    def test_half_characters_are_refused(self, name: LayoutName) -> None:
        for value in ("\ud800", ["a\udfff"]):
            with pytest.raises(InputError, match=r"^a.json, line 8: .*valid Unicode"):
                make_layout(name).check(row({"k": value}))
        make_layout(name).check(row({"k": "\\ud800 \U0001f98a"}))

    def test_the_most_metadata_in_pinecone(self) -> None:
        fits = "ä" * ((40_000 - len('{"text": ""}')) // 2)
        make_layout("pinecone").check(row({}, fits))
        with pytest.raises(InputError, match=r"the metadata are 40,00[1-9] bytes"):
            make_layout("pinecone").check(row({}, fits + "ää"))


class TestBatches:
    @pytest.mark.parametrize(
        ("name", "key", "most"),
        [("chroma", "ids", 300), ("pinecone", "vectors", 1000), ("qdrant", "points", 256)],
    )
    def test_batches_have_at_most_so_many_rows(
        self, tmp_path: Path, name: Any, key: str, most: int
    ) -> None:
        rows = rows_of(2 * most + 50)
        move(rows, tmp_path / "a", name, with_texts=False)
        assert [len(batch[key]) for batch in read_batches(tmp_path / "a")] == [most, most, 50]

    def test_batches_have_at_most_two_megabytes_in_pinecone(self, tmp_path: Path) -> None:
        rows = [
            {"id": number, "text": f"{number} " + "ä" * (10 * (number % 900) + 9000)}
            for number in range(300)
        ]
        move(rows, tmp_path / "a", "pinecone")
        lines = (tmp_path / "a").read_bytes().splitlines()
        sizes = [len(line) for line in lines]
        assert max(sizes) <= 2_000_000
        assert min(sizes[:-1]) > 1_900_000  # as full as they can be
        ids = [each["id"] for line in lines for each in json.loads(line)["vectors"]]
        assert ids == [str(number) for number in range(300)]

    @pytest.mark.parametrize("name", ["chroma", "pinecone", "pinecone-documents", "qdrant"])
    def test_the_numbers_are_the_models_to_the_last_bit(self, tmp_path: Path, name: Any) -> None:
        rows = rows_of(30)
        rows += [{**each, "id": f"again {each['id']}"} for each in rows[:7]]  # repeated texts
        move(rows, tmp_path / "a", name)
        (batch,) = read_batches(tmp_path / "a")
        if name == "chroma":
            found = batch["embeddings"]
        elif name == "pinecone":
            found = [each["values"] for each in batch["vectors"]]
        elif name == "qdrant":
            found = [each["vector"]["text-dense"] for each in batch["points"]]
        else:
            found = [each["dense"] for each in batch["documents"]]
        np.testing.assert_array_equal(np.float32(found), vectors_of(rows))
