"""`unified-embeddings ping`: try a running service, each of its contracts, with one short text."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.cli.ping_contracts import (
    TEXT,
    Contract,
    Disagreement,
    Reference,
    contracts,
    read_reference,
)
from unified_embeddings.embedders.remote_options import (
    require_key,
    require_seconds,
    require_url,
)
from unified_embeddings.errors import ServiceError

if TYPE_CHECKING:
    import httpx

_WIDTHS = (20, 22, 7, 8)
"""Characters of the columns before the last one."""
_ANSWER_WIDTH = 79 - sum(_WIDTHS)
"""Characters of an expected answer; what is wrong with another is shown in full."""


@dataclass(frozen=True)
class Result:
    """How one contract did.

    Attributes:
        contract: Whose contract it is.
        request: Method and path.
        status: The HTTP status; None without an answer.
        milliseconds: From the request to the end of its answer.
        ok: Whether the answer was as expected.
        note: What came: the width of a vector, or what is wrong.
    """

    contract: str
    request: str
    status: int | None
    milliseconds: float
    ok: bool
    note: str


def ping(
    url: Annotated[str, typer.Argument(help="The service's address: http://127.0.0.1:8000.")],
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="UNIFIED_EMBEDDINGS_API_KEY",
            help="The service's key. The environment is safer: other users can read a command.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each request.")] = 30.0,
    as_json: shared.AsJson = False,
) -> None:
    """Try each contract of a running service with one short text, and compare the answers.

    The same dense vector has to come through every contract, within 1e-6. Exit code 1 if an answer
    fails or differs.
    """
    import httpx

    address = require_url(url)
    key = require_key(api_key, name="--api-key")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=address,
        headers=headers,
        timeout=require_seconds("--timeout", timeout),
        trust_env=False,
    ) as client:
        results = _try_all(client, address)
    if as_json:
        ok = all(result.ok for result in results)
        rows = [asdict(result) for result in results]
        typer.echo(json.dumps({"url": address, "text": TEXT, "ok": ok, "results": rows}))
    else:
        _print_table(results)
    if not all(result.ok for result in results):
        raise typer.Exit(1)


def _try_all(client: httpx.Client, address: str) -> list[Result]:
    """Return how each contract did, the reference that the others are compared with first.

    Raises:
        ServiceError: If there is no service of ours at this address.
    """
    import httpx

    try:
        info = client.get("/info")
        if info.status_code != 200:
            raise ServiceError(
                address, "GET /info", _describe_refusal(info), status=info.status_code
            )
        reference = read_reference(_json_of(info), client)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = str(error) or type(error).__name__
        raise ServiceError(address, "GET /info", f"{problem}. Is the service running?") from error
    return [_try_contract(client, contract, reference) for contract in contracts(reference)]


def _try_contract(client: httpx.Client, contract: Contract, reference: Reference) -> Result:
    import httpx

    begun = time.perf_counter()
    status, seconds, note, ok = None, 0.0, "", False
    try:
        response, seconds = _send(client, contract)
        status = response.status_code
        if status != 200:
            note = _refusal(response)
        else:
            data = response.text if contract.is_text else _json_of(response)
            note, ok = contract.check(data, reference), True
    except httpx.HTTPError as error:
        seconds = time.perf_counter() - begun
        note = str(error) or type(error).__name__
    except Disagreement as error:
        note = str(error)
    return Result(
        contract=contract.name,
        request=f"{contract.method} {contract.path}",
        status=status,
        milliseconds=round(1000 * seconds, 2),
        ok=ok,
        note=note,
    )


def _send(client: httpx.Client, contract: Contract) -> tuple[httpx.Response, float]:
    """Return the answer to a contract's request, and the seconds it took.

    Once more if the connection fails: the service may have ended it after the answer before.
    """
    import httpx

    for may_repeat in (True, False):
        begun = time.perf_counter()
        try:
            response = client.request(contract.method, contract.path, json=contract.body)
        except (httpx.RemoteProtocolError, httpx.NetworkError):
            if not may_repeat:
                raise
        else:
            return response, time.perf_counter() - begun
    raise AssertionError  # the second try returns or raises


def _json_of(response: httpx.Response) -> object:
    """Return an answer's JSON; None where it is none, which no contract takes."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _describe_refusal(info: httpx.Response) -> str:
    """Return why a service does not say what it is, and what to do."""
    said = f"status {info.status_code}: {_refusal(info)}"
    if info.status_code in (401, 403):
        return f"{said}. Give its key as UNIFIED_EMBEDDINGS_API_KEY or --api-key"
    if info.status_code == 503:
        return f"{said}. Try again once it is ready"
    return f"{said}. Is this the address of a service started with `unified-embeddings serve`?"


def _refusal(response: httpx.Response) -> str:
    return shared.one_line(response.text, 160) or f"status {response.status_code}"


def _print_table(results: list[Result]) -> None:
    for result in results:
        if result.request == "GET /info":
            shared.print_line(shared.printable(result.note))
    _print_row("contract", "request", "status", "ms", "answer")
    for result in results:
        note = f"FAILED: {result.note}"
        if result.ok and result.request == "GET /info":
            note = "as above"
        elif result.ok:
            note = shared.one_line(result.note, _ANSWER_WIDTH)
        status = "-" if result.status is None else str(result.status)
        _print_row(result.contract, result.request, status, f"{result.milliseconds:.1f}", note)
    failed = sum(not result.ok for result in results)
    shared.print_line(f"{len(results) - failed} of {len(results)} contracts answer as they should")


def _print_row(*cells: str) -> None:
    *first, last = cells
    padded = [cell.ljust(width) for cell, width in zip(first, _WIDTHS, strict=True)]
    shared.print_line(shared.printable("".join(padded) + last))
