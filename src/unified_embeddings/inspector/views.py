"""The pages, one method each: from the address to the answer.

What lives here: which values a template gets. What does not: errors and addresses (`app`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from unified_embeddings._version import __version__
from unified_embeddings.inspector import pages, python_code
from unified_embeddings.inspector.arithmetic import Sum, write_sum
from unified_embeddings.inspector.collection import view_collection
from unified_embeddings.inspector.comparing import (
    DEFAULT_QUESTIONS,
    DEPTH,
    MOST_QUESTIONS,
    QuestionSet,
    Side,
    compare_answers,
    compare_on_set,
    require_set,
)
from unified_embeddings.inspector.library import Library, UnknownCollectionError
from unified_embeddings.inspector.lines import join_lists
from unified_embeddings.inspector.parameters import (
    Question,
    SearchOptions,
    read_number,
    read_options,
    read_question,
    read_text,
)
from unified_embeddings.inspector.passage import view_passage
from unified_embeddings.inspector.searching import Found, choose_mode, run_search
from unified_embeddings.inspector.stages import Stages
from unified_embeddings.models.fusion import PLAIN_CANDIDATES


class Views:
    """What each address shows.

    Args:
        library: The collections.
        collection: The one that is shown first; None takes the first by name.
        questions: For the page that compares.
    """

    def __init__(
        self, library: Library, *, collection: str | None, questions: QuestionSet | None
    ) -> None:
        self._library = library
        self._first = collection
        self._questions = questions
        self._environment = pages.make_environment()
        # Pages may be kept by nobody, but a new version's style must not meet an old page.
        self._style = secrets.token_hex(4)

    # --- the pages ------------------------------------------------------------------------------

    def search(self, request: Request) -> Response:
        """Show the lists of a search side by side."""
        names = self._names()
        question = read_question(request.query_params, collection=self._choose(names))
        opened = self._library.open(question.options.collection)
        found = run_search(opened, question) if question.text else None
        values: dict[str, object] = {
            "opened": opened,
            "question": question,
            "found": found,
            "rerankable": question.options.candidates or PLAIN_CANDIDATES,
            "with_rerank": _with_rerank(question),
            "mode": choose_mode(opened, question.options),
            "python": python_code.write_search(opened, question) if found else None,
        }
        if found is not None:
            keys = [[hit.point_id for hit in ranked.hits] for ranked in found.lists]
            values["drawing"] = join_lists(keys)
            values["sums"] = _write_sums(found)
        stages = found.stages if found else None
        return self._answer(request, "search.html", names, question, values, stages)

    def passage(self, request: Request) -> Response:
        """Show one passage, and why it has its score."""
        names = self._names()
        question = read_question(request.query_params, collection=self._choose(names))
        opened = self._library.open(question.options.collection)
        point_id = request.query_params.get("id", "")
        view = view_passage(opened, question, point_id)
        values: dict[str, object] = {
            "opened": opened,
            "question": question,
            "view": view,
            "python": python_code.write_passage(opened, question, view.point_id),
        }
        return self._answer(request, "passage.html", names, question, values, view.stages)

    def collection(self, request: Request) -> Response:
        """Show what a collection holds."""
        names = self._names()
        question = read_question(request.query_params, collection=self._choose(names))
        opened = self._library.open(question.options.collection)
        view = view_collection(opened, colour=request.query_params.get("colour", ""))
        values: dict[str, object] = {
            "opened": opened,
            "question": question,
            "view": view,
            "python": python_code.write_collection(opened),
        }
        return self._answer(request, "collection.html", names, question, values, view.stages)

    def compare(self, request: Request) -> Response:
        """Show two ways to search side by side, on one question or on a set of them."""
        names, params = self._names(), request.query_params
        text = read_text(params, "q")
        first_name = self._choose(names)
        both = self._read_sides(params, first_name)
        on_set = params.get("set", "") == "1"
        limit = read_number(params.get("limit", ""), "limit", most=MOST_QUESTIONS)
        question = Question(text=text, options=both[0].options)
        values: dict[str, object] = {
            "question": question,
            "sides": both,
            "modes": [choose_mode(side.opened, side.options) for side in both],
            "set": self._questions,
            "on_set": on_set,
            "limit": limit or DEFAULT_QUESTIONS,
            "depth": DEPTH,
            "pair": None,
            "answer": None,
            "python": None,
            "compare_pairs": [
                *both[0].options.to_pairs("a."),
                *both[1].options.to_pairs("b."),
            ],
        }
        stages = None
        if on_set:
            answer = compare_on_set(
                both[0], both[1], require_set(self._questions), limit=limit or DEFAULT_QUESTIONS
            )
            values["answer"], stages = answer, answer.stages
        elif text:
            values |= self._compare_pair(request, both, text)
        if on_set or text:
            first, second = ((side.opened, side.options) for side in both)
            values["python"] = python_code.write_comparison(first, second, text or "your question")
        return self._answer(request, "compare.html", names, question, values, stages)

    def _compare_pair(
        self, request: Request, both: tuple[Side, Side], text: str
    ) -> dict[str, object]:
        """Return what the page shows of two answers to one question."""
        pair = compare_answers(both[0], both[1], text)
        root = request.scope.get("root_path", "")
        return {
            "pair": pair,
            "drawing": join_lists([[hit.key for hit in side] for side in pair.sides]),
            "urls": [
                Question(text=text, options=side.options).url(f"{root}/passage") for side in both
            ],
        }

    def tell(self, request: Request, status: int, message: str) -> Response:
        """Show an error as a page."""
        values = self._shared(request, [], None)
        values |= {"status": status, "message": message}
        page = pages.render(self._environment, "error.html", values)
        return HTMLResponse(page, status_code=status, headers={"cache-control": "no-store"})

    # --- what they share ------------------------------------------------------------------------

    def _names(self) -> list[str]:
        """Return the collections' names.

        Raises:
            UnknownCollectionError: If there are none.
        """
        names = self._library.names()
        if not names:
            raise UnknownCollectionError(
                f"{self._library.place} holds no collection yet; index some files first: "
                "unified-embeddings index PATH"
            )
        return names

    def _choose(self, names: Sequence[str]) -> str:
        return self._first or names[0]

    def _read_sides(self, params: QueryParams, first_name: str) -> tuple[Side, Side]:
        """Return what is compared: all lists with the dense one alone, unless the address tells."""
        first = read_options(params, first_name, prefix="a.")
        second = read_options(params, first.collection, prefix="b.")
        if not any(name.startswith(("a.mode", "b.")) for name in params):
            second = SearchOptions(collection=first.collection, mode="dense")
        return (
            Side(self._library.open(first.collection), first),
            Side(self._library.open(second.collection), second),
        )

    def _answer(
        self,
        request: Request,
        template: str,
        names: Sequence[str],
        question: Question,
        values: Mapping[str, object],
        stages: Stages | None,
    ) -> Response:
        shared = self._shared(request, names, question)
        page = pages.render(self._environment, template, {**shared, **values, "stages": stages})
        headers = {"cache-control": "no-store"}
        if stages is not None:
            headers["server-timing"] = stages.header()
        return HTMLResponse(page, headers=headers)

    def _shared(
        self, request: Request, names: Sequence[str], question: Question | None
    ) -> dict[str, object]:
        root = request.scope.get("root_path", "")
        links = {}
        for name in ("search", "collection", "compare"):
            pairs = []
            if question is not None:
                pairs.append(("collection", question.options.collection))
                if question.text and name != "collection":
                    pairs.insert(0, ("q", question.text))
            if name == "compare":
                pairs = [(f"a.{key}" if key == "collection" else key, text) for key, text in pairs]
            links[name] = f"{root}/{name}?{urlencode(pairs)}" if pairs else f"{root}/{name}"
        return {
            "root": root,
            "page": request.url.path.rpartition("/")[2],
            "names": names,
            "links": links,
            "place": str(self._library.place),
            "version": __version__,
            "style": self._style,
        }


def _with_rerank(question: Question) -> list[tuple[str, str]]:
    """Return the parameters of the same search, reranked."""
    pairs = [("q", question.text), *question.options.to_pairs()]
    return [pair for pair in pairs if pair[0] != "rerank"] + [("rerank", "1")]


def _write_sums(found: Found) -> dict[str, Sum]:
    """Return how the fused score of each passage comes about."""
    return {
        point_id: write_sum(passage.fused)
        for point_id, passage in found.passages.items()
        if passage.fused is not None
    }
