"""Ask the team's index. It needs Python alone, no package.

python examples/team-index/ask.py "how do I resume a copy?"
TEAM_KEY=… python ask.py --server http://index.example:8000 "how do I resume a copy?"
"""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

KEYS = Path("team-index-data") / "api-keys.txt"


def search(server: str, key: str, question: str, number: int) -> list[dict[str, Any]]:
    """Return the best passages for a question.

    Raises:
        SystemExit: If the service cannot be reached or refuses.
    """
    if not server.startswith(("http://", "https://")):
        raise SystemExit(f"error: --server takes an address like http://host:8000, got {server!r}")
    request = urllib.request.Request(  # noqa: S310 - its scheme was checked
        f"{server}/search",
        data=json.dumps({"query": question, "top_k": number}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found: list[dict[str, Any]] = json.load(answer)["results"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"error: {server} answers {error.code}: {error.read().decode()}") from None
    except OSError as error:
        raise SystemExit(f"error: {server} cannot be reached: {error}") from None
    return found


def main() -> None:
    """Print the passages for one question."""
    parser = argparse.ArgumentParser(description="Ask the team's index.")
    parser.add_argument("question")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--number", type=int, default=3)
    arguments = parser.parse_args()
    key = os.environ.get("TEAM_KEY") or (KEYS.read_text("utf-8").strip() if KEYS.exists() else "")
    if not key:
        raise SystemExit(f"error: put the key into TEAM_KEY; on the server it is in {KEYS}")
    found = search(arguments.server, key, arguments.question, arguments.number)
    for rank, hit in enumerate(found, 1):
        print(f"{rank}. {hit['metadata'].get('file_name', '')}")
        print(f"   {' '.join(hit['text'].split())[:200]}")


if __name__ == "__main__":
    main()
