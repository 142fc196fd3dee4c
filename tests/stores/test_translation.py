"""What qdrant-client's models become for Qdrant's core, where the contract's tests draw none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient, InputError
from unified_embeddings.stores.edge.translation import convert_fields, to_core_member

ENUMS = {
    "BinaryQuantizationEncoding": qm.BinaryQuantizationEncoding,
    "BinaryQuantizationQueryEncoding": qm.BinaryQuantizationQueryEncoding,
    "CompressionRatio": qm.CompressionRatio,
    "Direction": qm.Direction,
    "Distance": qm.Distance,
    "Language": qm.Language,
    "Memory": qm.Memory,
    "Modifier": qm.Modifier,
    "MultiVectorComparator": qm.MultiVectorComparator,
    "PayloadSchemaType": qm.PayloadSchemaType,
    "ScalarType": qm.ScalarType,
    "SnowballLanguage": qm.SnowballLanguage,
    "TokenizerType": qm.TokenizerType,
    "TurboQuantBitSize": qm.TurboQuantBitSize,
    "UpdateMode": qm.UpdateMode,
    "VectorStorageDatatype": qm.Datatype,
}
"""Enum of the core → qdrant-client's enum of the same values."""

QUANTIZATIONS: dict[str, qm.QuantizationConfig] = {
    "scalar": qm.ScalarQuantization(
        scalar=qm.ScalarQuantizationConfig(
            type=qm.ScalarType.INT8, quantile=0.99, memory=qm.Memory.PINNED
        )
    ),
    "product": qm.ProductQuantization(
        product=qm.ProductQuantizationConfig(
            compression=qm.CompressionRatio.X16, memory=qm.Memory.COLD
        )
    ),
    "binary": qm.BinaryQuantization(
        binary=qm.BinaryQuantizationConfig(
            encoding=qm.BinaryQuantizationEncoding.ONE_AND_HALF_BITS,
            query_encoding=qm.BinaryQuantizationQueryEncoding.SCALAR8BITS,
        )
    ),
    "turbo": qm.TurboQuantization(
        turbo=qm.TurboQuantQuantizationConfig(bits=qm.TurboQuantBitSize.BITS1_5)
    ),
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeQdrantClient]:
    with EdgeQdrantClient(tmp_path / "store") as client:
        yield client


@pytest.mark.parametrize("name", ENUMS)
def test_every_value_of_an_enum_has_a_member_of_its_own_in_the_core(name: str) -> None:
    enum = getattr(core, name)
    for member in ENUMS[name]:
        found = str(to_core_member(enum, member)).rsplit(".", 1)[-1]
        assert found.replace("_", "").lower() == member.value.replace("_", "").lower()
        assert str(to_core_member(enum, member.value)).endswith(found), "given as a string"


@pytest.mark.parametrize("value", ["", "_", "__class__", "cosines", "max_sim", None, 3])
def test_a_value_that_the_core_lacks_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InputError, match=r"Distance .* is not supported"):
        to_core_member(core.Distance, value)


def test_fields_are_converted_and_those_not_set_are_left_out() -> None:
    params = qm.HnswConfigDiff(m=4, on_disk=False)
    assert convert_fields(params, m=lambda m: m + 1) == {"m": 5, "on_disk": False}
    assert convert_fields(None, m=lambda m: m + 1) == {}


def test_a_nested_model_without_a_converter_is_refused_by_name() -> None:
    params = qm.VectorParams(size=2, distance=qm.Distance.DOT, hnsw_config=qm.HnswConfigDiff(m=4))
    with pytest.raises(InputError, match="HnswConfigDiff here is not supported"):
        convert_fields(params)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_quantization_is_taken_and_reported(client: EdgeQdrantClient, name: str) -> None:
    quantization = QUANTIZATIONS[name]
    client.create_collection(
        "docs",
        vectors_config=qm.VectorParams(size=16, distance=qm.Distance.COSINE),
        quantization_config=quantization,
    )
    client.upsert("docs", [qm.PointStruct(id=1, vector=[1.0] * 16)])
    assert client.get_collection("docs").config.quantization_config == quantization
    assert client.query_points("docs", query=[1.0] * 16).points[0].id == 1


def square(size: float) -> list[qm.GeoPoint]:
    """Return the corners of a square around longitude 0, latitude 0."""
    corners = [(-size, -size), (size, -size), (size, size), (-size, size), (-size, -size)]
    return [qm.GeoPoint(lon=longitude, lat=latitude) for longitude, latitude in corners]


CENTRE = qm.GeoPoint(lon=0, lat=0)
PLACES = {1: (0.0, 0.0), 2: (2.0, 2.0), 3: (20.0, -20.0)}
"""Point id → longitude and latitude, in degrees."""
GEO_CONDITIONS: dict[str, tuple[dict[str, Any], set[int]]] = {
    "box": (
        {
            "geo_bounding_box": qm.GeoBoundingBox(
                top_left=qm.GeoPoint(lon=-3, lat=3), bottom_right=qm.GeoPoint(lon=3, lat=-3)
            )
        },
        {1, 2},
    ),
    "circle of 100 km": ({"geo_radius": qm.GeoRadius(center=CENTRE, radius=100_000)}, {1}),
    "circle of 400 km": ({"geo_radius": qm.GeoRadius(center=CENTRE, radius=400_000)}, {1, 2}),
    "polygon": (
        {"geo_polygon": qm.GeoPolygon(exterior=qm.GeoLineString(points=square(3)))},
        {1, 2},
    ),
    "polygon with a hole": (
        {
            "geo_polygon": qm.GeoPolygon(
                exterior=qm.GeoLineString(points=square(3)),
                interiors=[qm.GeoLineString(points=square(1))],
            )
        },
        {2},
    ),
}


@pytest.mark.parametrize("name", GEO_CONDITIONS)
def test_a_place_is_selected_by_where_it_is(client: EdgeQdrantClient, name: str) -> None:
    client.create_collection(
        "docs", vectors_config=qm.VectorParams(size=1, distance=qm.Distance.DOT)
    )
    for point_id, (longitude, latitude) in PLACES.items():
        payload = {"place": {"lon": longitude, "lat": latitude}}
        client.upsert("docs", [qm.PointStruct(id=point_id, vector=[1.0], payload=payload)])
    options, expected = GEO_CONDITIONS[name]
    condition = qm.Filter(must=[qm.FieldCondition(key="place", **options)])
    records, _ = client.scroll("docs", scroll_filter=condition)
    assert {record.id for record in records} == expected
