"""The notation of systems: what each text means, and what is said of those that mean nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.fusion_choices import list_choices
from unified_embeddings.evaluation.systems import (
    CollectionSystem,
    ModelSystem,
    RunSystem,
    Search,
    parse_system,
    parse_systems,
)
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.options import choose_fusion


@pytest.mark.parametrize(
    ("text", "model", "search"),
    [
        ("mini-m3", "mini-m3", Search()),
        ("mini-m3:dense", "mini-m3", Search(mode="dense")),
        ("BAAI/bge-m3:hybrid+colbert", "BAAI/bge-m3", Search(mode="hybrid", rerank=True)),
        ("mini-m3:+colbert", "mini-m3", Search(rerank=True)),
        (
            "mini-m3:hybrid, k=60, weights=1/0.3, candidates=30",
            "mini-m3",
            Search(mode="hybrid", k=60, weights=(1.0, 0.3), candidates=30),
        ),
        ("mini-m3,k=0", "mini-m3", Search(k=0)),
        (r"C:\models\mine", r"C:\models\mine", Search()),
        (r"C:\models\mine:dense", r"C:\models\mine", Search(mode="dense")),
        ("./export/int8:sparse", "./export/int8", Search(mode="sparse")),
    ],
)
def test_models(text: str, model: str, search: Search) -> None:
    assert parse_system(text) == ModelSystem(name=text, model=model, search=search)


def test_a_second_model_and_a_name() -> None:
    assert parse_system("bge-large:hybrid,sparse=splade,name=old set-up") == ModelSystem(
        name="old set-up",
        model="bge-large",
        sparse_model="splade",
        search=Search(mode="hybrid"),
    )


def test_live_collections() -> None:
    assert parse_system("path=store,collection=docs,model=mini-m3,mode=hybrid") == CollectionSystem(
        name="docs:hybrid",
        collection="docs",
        path=Path("store"),
        model="mini-m3",
        search=Search(mode="hybrid"),
    )
    assert parse_system(
        "url=http://localhost:6333/,collection=docs,rerank=colbert,weights=1/1,field=paper,"
        "adopt=trust,sparse=splade"
    ) == CollectionSystem(
        name="docs:+colbert,weights=1/1",
        collection="docs",
        url="http://localhost:6333/",
        sparse_model="splade",
        search=Search(rerank=True, weights=(1.0, 1.0)),
        document_field="paper",
        adopt="trust",
    )


def test_runs() -> None:
    assert parse_system("run=out/bm25.run") == RunSystem(name="bm25", file=Path("out/bm25.run"))
    assert parse_system("run=a.run,name=BM25") == RunSystem(name="BM25", file=Path("a.run"))


def test_the_retrievers_options() -> None:
    assert Search().options() == {}
    assert Search("hybrid", rerank=True, k=0, weights=(1, 0), candidates=5).options() == {
        "mode": "hybrid",
        "rerank": "colbert",
        "rrf_k": 0,
        "weights": (1, 0),
        "candidates": 5,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no model"),
        (":dense", "names no model"),
        ("mini-m3:fancy", "the mode must be hybrid, dense, sparse, not 'fancy'"),
        ("mini-m3:hybrid+bm25", "only colbert can rerank, not 'bm25'"),
        ("mini-m3:hybrid+", "only colbert can rerank, not ''"),
        ("mini-m3,fast", "expected KEY=VALUE between commas, got 'fast'"),
        ("mini-m3,speed=1", "has no option 'speed'; known here: name, sparse, k"),
        ("mini-m3,path=store", "has no option 'path'"),
        ("mini-m3,k=1,k=2", "gives k twice"),
        ("mini-m3,name=", "gives no value for 'name'"),
        ("mini-m3,k=-1", "k must be a whole number >= 0"),
        ("mini-m3,k=1.5", "k must be a whole number >= 0"),
        ("mini-m3,candidates=0", "candidates must be a whole number >= 1"),
        ("mini-m3,weights=1", "weights should be DENSE/SPARSE"),
        ("mini-m3,weights=a/b", "weights should be DENSE/SPARSE"),
        ("mini-m3,weights=0/0", "weights must be two numbers >= 0"),
        ("mini-m3,weights=nan/1", "weights must be two numbers >= 0"),
        ("mini-m3:dense,k=60", "k is about fusing two rankings; the mode dense has one"),
        ("mini-m3:sparse,weights=1/1", "weights is about fusing"),
        ("collection=docs", "should name one place"),
        ("path=a,url=b,collection=docs", "should name one place"),
        ("path=a", "lacks collection="),
        ("path=a,collection=docs,mode=both", "the mode must be"),
        ("path=a,collection=docs,rerank=yes", "only colbert can rerank"),
        ("path=a,collection=docs,adopt=yes", "adopt must be trust"),
        ("run=a,model=b", "has no option 'model'; known here: name, run"),
        ("run=", "gives no value for 'run'"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_system(text)
    assert problem in str(raised.value)
    assert repr(text) in str(raised.value)


def test_several_systems_have_different_names() -> None:
    assert [system.name for system in parse_systems(["a:dense", "a", "run=a.run,name=b"])] == [
        "a:dense",
        "a",
        "b",
    ]
    with pytest.raises(InputError, match="two systems are called 'bm25'"):
        parse_systems(["run=a/bm25.run", "run=b/bm25.run"])
    with pytest.raises(InputError, match="at least one system"):
        parse_systems([])


def test_whatever_tune_can_choose_can_be_evaluated() -> None:
    choices = list_choices(Fusion(weights=(1.0, 0.5)))
    for choice in choices:
        notation = f"mini-m3,weights={choice.weights[0]}/{choice.weights[1]}"
        notation += f",candidates={choice.candidates}"
        notation += ",fusion=dbsf" if choice.method == "dbsf" else f",k={choice.k}"
        system = parse_system(notation)
        options = system.search.options()
        fused = choose_fusion(
            Fusion(weights=(1.0, 0.7)),
            candidates=options.get("candidates", "auto"),
            rrf_k=options.get("rrf_k", "auto"),
            weights=options.get("weights", "auto"),
            fusion=options.get("fusion", "auto"),
        )
        assert replace(fused, source="") == replace(choice, source="")


def test_the_models_own_fusion_of_a_collection() -> None:
    system = parse_system("path=store,collection=docs,fusion=model,candidates=30")
    assert system.name == "docs,candidates=30,fusion=model"
    assert system.search.options() == {"fusion": "model", "candidates": 30}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mini-m3,fusion=rrf", "fusion must be dbsf, model, not 'rrf'"),
        ("mini-m3,fusion=dbsf,k=3", "fusion=dbsf has no k to be given"),
        ("mini-m3,fusion=model,k=3,weights=1/1", "fusion=model has no k, weights to be given"),
        ("mini-m3:dense,fusion=dbsf", "fusion is about fusing two rankings"),
    ],
)
def test_fusions_that_contradict_themselves_are_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_system(text)
