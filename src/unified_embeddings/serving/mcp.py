"""The Model Context Protocol: an assistant asks the collections through tools.

What lives here: the protocol, over standard input and output or over HTTP, and loading what a
search needs in the background. What does not: the tools (`mcp_tools`).

Over standard input and output the SDK gives the process's standard output to the protocol alone:
whatever a library prints goes to standard error. So nothing else is imported before that.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

import anyio
import anyio.to_thread
from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp.types import Tool as ToolDescription

from unified_embeddings._version import __version__
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.serving.listening import address_of, open_socket
from unified_embeddings.serving.mcp_place import Place
from unified_embeddings.serving.mcp_schemas import INSTRUCTIONS
from unified_embeddings.serving.mcp_tools import Arguments, Tool
from unified_embeddings.system.collector import paused_collector

_LOG = logging.getLogger(__name__)
HOST = "127.0.0.1"
PATH = "/mcp"
_CALLS_AT_ONCE = 8
_DRAIN_SECONDS = 5


class WarmUp:
    """Loads what a search needs in a thread of its own, while clients connect.

    Args:
        place: With the collections.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._imported = threading.Event()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._work, name="warm-up", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, *, for_model: bool) -> None:
        """Wait for the imports: two threads must not import LlamaIndex, with its cycles, at once.

        Args:
            for_model: Whether to wait for the model too. A call that needs it would else load it
                while it has the folder open, and other processes would wait. If it could not be
                loaded, the call will meet the error itself.
        """
        self._imported.wait()
        if for_model:
            self._finished.wait()

    def _work(self) -> None:
        try:
            with paused_collector():
                self._load()
                gc.freeze()  # what is in memory now stays, and need not be looked through
        except Exception as error:
            _LOG.warning("loading ahead failed: %s", error)
        finally:
            self._imported.set()
            self._finished.set()

    def _load(self) -> None:
        import unified_embeddings.llama.vector_store
        import unified_embeddings.retrievers.hybrid
        import unified_embeddings.serving.searching  # noqa: F401

        self._imported.set()
        with self._place.use() as opened:
            is_wanted = opened.expects_model()
        if is_wanted:
            self._place.config.embedder.encode_query("warm-up")


def make_server(tools: Sequence[Tool], warm_up: WarmUp) -> Server:
    """Return the protocol's server of some tools.

    Args:
        tools: What clients can ask for.
        warm_up: Waited for by each call.
    """
    by_name = {tool.name: tool for tool in tools}
    descriptions = [_describe(tool) for tool in tools]
    limiter = anyio.CapacityLimiter(_CALLS_AT_ONCE)

    def run(tool: Tool, arguments: Arguments) -> CallToolResult:
        warm_up.wait(for_model=tool.needs_model)
        return call_tool(tool, arguments)

    async def list_tools(
        _context: ServerRequestContext, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=descriptions)

    async def call(_context: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
        tool = by_name.get(params.name)
        if tool is None:
            names = ", ".join(by_name)
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name!r:.80}; it has {names}")
        # A cancelled call is abandoned: a forward pass cannot be interrupted.
        return await anyio.to_thread.run_sync(
            run, tool, params.arguments or {}, abandon_on_cancel=True, limiter=limiter
        )

    return Server(
        "unified-embeddings",
        version=__version__,
        title="Unified Embeddings",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call,
    )


def call_tool(tool: Tool, arguments: Arguments) -> CallToolResult:
    """Call a tool; whatever goes wrong is an answer too, which the model can read.

    Args:
        tool: The tool.
        arguments: As the client sent them.
    """
    try:
        answer = tool.call(arguments)
        text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
    except UnifiedEmbeddingsError as error:
        return _failed(str(error))
    except Exception as error:
        _LOG.error("%s failed", tool.name, exc_info=error)
        return _failed(f"unexpected {type(error).__name__}: {error}")
    return CallToolResult(content=[TextContent(text=text)], structured_content=answer)


def run_stdio(tools: Sequence[Tool], place: Place) -> None:
    """Serve one client over standard input and output, until it closes them.

    Args:
        tools: What the client can ask for.
        place: With the collections.
    """

    async def serve() -> None:
        warm_up = WarmUp(place)
        server = make_server(tools, warm_up)
        async with stdio_server() as (reading, writing):
            warm_up.start()
            await server.run(reading, writing, server.create_initialization_options())

    # The thread that waits for a line of input cannot be interrupted.
    _end_at_signals(place)
    anyio.run(serve)
    _end(place, 0)


def run_http(
    tools: Sequence[Tool], place: Place, port: int, *, note: Callable[[str], None]
) -> None:
    """Serve any number of clients over HTTP on this machine, until a signal.

    Requests for another host's name are refused, so that no web page can reach the server by
    pointing a name of its own at this machine.

    Args:
        tools: What clients can ask for.
        place: With the collections.
        port: To listen on; 0 takes a free one.
        note: Called with the address.

    Raises:
        InputError: If the port cannot be used.
    """
    import uvicorn

    listener = open_socket(HOST, port)
    _end_at_signals(place)  # uvicorn finishes what is in hand, and then hands the signal on

    async def serve() -> None:
        warm_up = WarmUp(place)
        app = make_server(tools, warm_up).streamable_http_app(streamable_http_path=PATH, host=HOST)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            # Clients keep a stream open for as long as they run.
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
        warm_up.start()
        note(f"MCP at {address_of(listener)}{PATH}")
        await uvicorn.Server(config).serve(sockets=[listener])

    anyio.run(serve)
    _end(place, 0)


def _describe(tool: Tool) -> ToolDescription:
    return ToolDescription(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.schema,
        annotations=ToolAnnotations(
            read_only_hint=tool.is_read_only,
            destructive_hint=not tool.is_read_only,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    )


def _failed(problem: str) -> CallToolResult:
    printable = problem.encode(errors="replace").decode()
    return CallToolResult(content=[TextContent(text=printable)], is_error=True)


def _end_at_signals(place: Place) -> None:
    """End the process at SIGINT and SIGTERM."""

    def end(number: int, _frame: FrameType | None) -> None:
        _end(place, 130 if number == signal.SIGINT else 0)

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, end)


def _end(place: Place, code: int) -> None:
    """Release the place and end the process, although a thread may still work."""
    place.close()
    sys.stderr.flush()
    os._exit(code)
