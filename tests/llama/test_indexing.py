"""Files into a collection: whatever happens to the files or to a run, the next run puts it right.

The yardstick throughout is a run from scratch: after any history, the collection must hold the
chunks that a fresh collection would.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient, models

from unified_embeddings import BGE_M3_Embedder, InputError, TextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR

COLLECTION = "notes"


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    """Takes texts of up to 512 tokens."""
    return FakeEmbedder(max_length=512)


@pytest.fixture(scope="module")
def short_embedder() -> TextEmbedder:
    """Takes texts of up to 256 tokens."""
    return FakeEmbedder(max_length=256)


class Library:
    """A folder of files and a collection to bring in line with it."""

    def __init__(
        self, folder: Path, embedder: TextEmbedder, client: QdrantClient | None = None
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.embedder = embedder
        self.client = client or QdrantClient(":memory:")
        self.store = build_vector_store(embedder, COLLECTION, client=self.client)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def index(self, *paths: Path, **options: Any) -> IndexReport:
        return index_paths(list(paths) or [self.folder], self.store, self.embedder, **options)

    def points(self) -> list[models.Record]:
        found, _ = self.client.scroll(COLLECTION, limit=100_000, with_vectors=True)
        return found

    def count(self) -> int:
        return self.client.count(COLLECTION).count

    def chunks(self) -> Counter[tuple[str, str]]:
        """Count the points by file and text."""
        points = self.points()
        nodes = self.store.parse_to_query_result(points).nodes or []
        assert len(nodes) == len(points)
        return Counter((node.metadata["file_path"], node.get_content()) for node in nodes)

    def texts(self, path: Path) -> list[str]:
        return sorted(text for file, text in self.chunks().elements() if file == str(path))

    def files(self) -> set[str]:
        return {file for file, _ in self.chunks()}

    def from_scratch(self, *paths: Path, **options: Any) -> Counter[tuple[str, str]]:
        fresh = Library(self.folder, self.embedder)
        fresh.index(*paths, **options)
        return fresh.chunks()


@pytest.fixture
def library(tmp_path: Path, embedder: TextEmbedder) -> Library:
    return Library(tmp_path / "notes", embedder)


def prose(sentences: int, topic: str = "fox") -> str:
    """Return distinct sentences of 11 words."""
    notes = [f"Note {i} says that the quick brown {topic} jumps over it." for i in range(sentences)]
    return " ".join(notes)


def pdf(*pages: str) -> bytes:
    """Return a PDF with one line on each page."""
    first = 4  # after catalogue, page tree and font: a page and its content in turn
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {first + 2 * i + 1} 0 R >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    out = "%PDF-1.4\n"
    offsets = []
    for number, item in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{item}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}"
    return out.encode("ascii")


def is_idle(report: IndexReport) -> bool:
    """Tell whether a run changed nothing."""
    return not (report.indexed or report.removed or report.chunks_added or report.chunks_removed)


class TestFirstRun:
    def test_every_file_becomes_chunks_that_name_it(self, library: Library) -> None:
        one = library.write("one.txt", "The quick brown fox.")
        two = library.write("deep/er/two.md", "Ranking orders documents.")
        report = library.index()
        assert report == IndexReport(indexed=2, chunks_added=2)
        assert library.chunks() == {
            (str(one), "The quick brown fox."): 1,
            (str(two), "Ranking orders documents."): 1,
        }

    def test_stored_vectors_are_those_of_the_chunks_text(self, library: Library) -> None:
        library.write("one.txt", prose(60))
        library.write("two.txt", "Retrieval finds documents.")
        library.index()
        points = library.points()
        nodes = library.store.parse_to_query_result(points).nodes or []
        assert len(points) > 2
        expected = library.embedder.encode_documents([node.get_content() for node in nodes])
        assert expected.dense is not None
        assert expected.sparse is not None
        for i, point in enumerate(points):
            vectors: Any = point.vector
            np.testing.assert_allclose(vectors[DENSE_VECTOR], expected.dense[i], atol=1e-6)
            stored = dict(
                zip(vectors[SPARSE_VECTOR].indices, vectors[SPARSE_VECTOR].values, strict=True)
            )
            assert stored == pytest.approx(dict(expected.sparse[i]), abs=1e-6)

    def test_progress_is_told_the_total_once_and_each_file_once(self, library: Library) -> None:
        paths = {library.write(f"{i}.txt", f"note {i}") for i in range(3)}
        paths.add(library.write("photo.png", b"\x89PNG"))
        paths.add(library.write("latin.txt", "café".encode("latin-1")))
        totals: list[int] = []
        done: list[Path] = []
        library.index(on_files=totals.append, on_file=done.append)
        assert totals == [5]
        assert sorted(done) == sorted(paths)

    def test_an_empty_folder_is_no_error(self, library: Library) -> None:
        assert library.index() == IndexReport()
        assert library.count() == 0

    def test_one_file_can_be_given_alone(self, library: Library) -> None:
        one = library.write("one.txt", "one")
        library.write("two.txt", "two")
        assert library.index(one).indexed == 1
        assert library.files() == {str(one)}


class TestSecondRun:
    def test_without_a_change_adds_and_drops_nothing(self, library: Library) -> None:
        library.write("one.txt", prose(100))
        library.write("two.txt", "short")
        library.index()
        before = library.chunks()
        forwards = library.embedder.stats().forwards
        assert library.index() == IndexReport(unchanged=2)
        assert library.chunks() == before
        assert library.embedder.stats().forwards == forwards

    def test_a_touched_file_with_the_same_content_is_unchanged(self, library: Library) -> None:
        path = library.write("one.txt", "the same")
        library.index()
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert library.index() == IndexReport(unchanged=1)

    def test_a_relative_path_means_the_same_file(
        self, library: Library, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library.write("one.txt", "one")
        library.index()
        monkeypatch.chdir(library.folder.parent)
        assert library.index(Path("notes")) == IndexReport(unchanged=1)
        assert library.index(Path("notes/../notes/one.txt")) == IndexReport(unchanged=1)

    def test_a_new_file_is_added_beside_the_old(self, library: Library) -> None:
        library.write("one.txt", "one")
        library.index()
        library.write("two.txt", "two")
        assert library.index() == IndexReport(unchanged=1, indexed=1, chunks_added=1)
        assert library.chunks() == library.from_scratch()

    def test_a_changed_files_old_chunks_give_way_to_the_new(self, library: Library) -> None:
        changed = library.write("one.txt", prose(100))
        kept = library.write("two.txt", prose(40, "cat"))
        library.index()
        old = library.texts(changed)
        kept_texts = library.texts(kept)
        assert len(old) > 1
        library.write("one.txt", "An entirely new text.")
        report = library.index()
        assert report == IndexReport(
            unchanged=1, indexed=1, chunks_added=1, chunks_removed=len(old)
        )
        assert library.texts(changed) == ["An entirely new text."]
        assert library.texts(kept) == kept_texts

    def test_a_change_at_the_end_of_a_long_file_loses_and_doubles_nothing(
        self, library: Library
    ) -> None:
        library.write("one.txt", prose(200))
        library.index()
        library.write("one.txt", prose(200) + " And one more.")
        report = library.index()
        assert report.indexed == 1
        assert library.chunks() == library.from_scratch()

    def test_changed_and_changed_back(self, library: Library) -> None:
        library.write("one.txt", "first")
        library.index()
        library.write("one.txt", "second")
        library.index()
        path = library.write("one.txt", "first")
        library.index()
        assert library.texts(path) == ["first"]

    def test_another_chunk_size_indexes_again(self, library: Library) -> None:
        library.write("one.txt", prose(100))
        first = library.index(chunk_tokens=400)
        again = library.index(chunk_tokens=200)
        assert again.indexed == 1
        assert again.chunks_removed == first.chunks_added
        assert again.chunks_added > first.chunks_added
        assert library.chunks() == library.from_scratch(chunk_tokens=200)
        assert is_idle(library.index(chunk_tokens=200))

    def test_sizes_beyond_the_model_are_all_the_same(self, library: Library) -> None:
        library.write("one.txt", prose(100))
        library.index(chunk_tokens=1000)
        assert library.index(chunk_tokens=8000) == IndexReport(unchanged=1)

    def test_chunks_that_came_another_way_stay(self, library: Library) -> None:
        path = library.write("one.txt", "one")
        library.index()
        vector = [1.0] * library.embedder.dimension
        library.store.add(
            [
                TextNode(text="by hand", metadata={"file_path": str(path)}, embedding=vector),
                TextNode(text="without a file", metadata={"file_path": ""}, embedding=vector),
            ]
        )
        path.unlink()
        report = library.index(prune=True)
        assert (report.removed, report.chunks_removed) == (1, 1)
        assert {text for _, text in library.chunks()} == {"by hand", "without a file"}

    def test_a_collection_on_disk_remembers_across_reopening(
        self, tmp_path: Path, embedder: BGE_M3_Embedder
    ) -> None:
        first = Library(tmp_path / "notes", embedder, QdrantClient(path=str(tmp_path / "db")))
        first.write("one.txt", prose(60))
        first.write("two.txt", "two")
        first.index()
        before = first.chunks()
        first.client.close()
        again = Library(tmp_path / "notes", embedder, QdrantClient(path=str(tmp_path / "db")))
        assert again.index() == IndexReport(unchanged=2)
        assert again.chunks() == before
        again.client.close()


class TestGoneFiles:
    def test_a_deleted_file_is_dropped_and_files_elsewhere_stay(
        self, library: Library, tmp_path: Path
    ) -> None:
        gone = library.write("a/gone.txt", prose(60))
        stays = library.write("a/stays.txt", "stays")
        sibling = library.write("ab/like.txt", "a folder whose name begins the same")
        elsewhere = tmp_path / "elsewhere" / "far.txt"
        elsewhere.parent.mkdir()
        elsewhere.write_text("far away")
        library.index(library.folder, elsewhere)
        chunks = len(library.texts(gone))
        for path in (gone, sibling, elsewhere):
            path.unlink()
        report = library.index(library.folder / "a")
        assert report == IndexReport(unchanged=1, removed=1, chunks_removed=chunks)
        assert library.files() == {str(stays), str(sibling), str(elsewhere)}

    def test_a_deleted_file_given_by_name_is_dropped(self, library: Library) -> None:
        gone = library.write("gone.txt", "gone")
        stays = library.write("stays.txt", "stays")
        library.index(gone, stays)
        gone.unlink()
        assert library.index(gone, prune=True) == IndexReport(removed=1, chunks_removed=1)
        assert library.files() == {str(stays)}

    def test_a_deleted_folder_given_by_name_is_dropped(self, library: Library) -> None:
        library.write("sub/one.txt", "one")
        library.write("sub/deep/two.txt", "two")
        stays = library.write("stays.txt", "stays")
        library.index()
        shutil.rmtree(library.folder / "sub")
        sub = library.folder / "sub"
        assert library.index(sub, prune=True) == IndexReport(removed=2, chunks_removed=2)
        assert library.files() == {str(stays)}

    def test_a_renamed_file_moves(self, library: Library) -> None:
        old = library.write("old.txt", prose(60))
        library.index()
        new = old.rename(old.with_name("new.txt"))
        report = library.index()
        assert (report.indexed, report.removed) == (1, 1)
        assert library.files() == {str(new)}
        assert library.chunks() == library.from_scratch()

    def test_a_folder_that_became_a_file(self, library: Library) -> None:
        library.write("thing/one.txt", "inside")
        library.index()
        shutil.rmtree(library.folder / "thing")
        path = library.write("thing", "now a file")
        library.index()
        assert library.chunks() == {(str(path), "now a file"): 1}

    def test_a_path_never_indexed_is_refused_and_nothing_is_done(self, library: Library) -> None:
        library.write("one.txt", "one")
        with pytest.raises(InputError, match=r"nowhere.*does not exist"):
            library.index(library.folder, library.folder / "nowhere")
        assert library.count() == 0

    def test_dropped_paths_are_refused_from_then_on(self, library: Library) -> None:
        gone = library.write("gone.txt", "gone")
        library.index(gone)
        gone.unlink()
        library.index(gone, prune=True)
        with pytest.raises(InputError, match=r"gone\.txt"):
            library.index(gone, prune=True)


class TestWhichFiles:
    def test_hidden_files_and_folders_are_left_out(self, library: Library) -> None:
        seen = library.write("seen.txt", "seen")
        library.write(".secret.txt", "secret")
        library.write(".git/config", "secret")
        library.write("sub/.venv/lib/module.py", "secret")
        library.write("sub/.env", "secret")
        library.write("~$report.docx", "Office has the report open")
        assert library.index() == IndexReport(indexed=1, chunks_added=1)
        assert library.files() == {str(seen)}

    def test_what_is_named_outright_is_taken_though_hidden(
        self, tmp_path: Path, embedder: BGE_M3_Embedder
    ) -> None:
        library = Library(tmp_path / ".config" / "notes", embedder)
        inside = library.write("one.txt", "in a hidden folder")
        hidden = library.write(".two.txt", "a hidden file")
        library.index()
        assert library.files() == {str(inside)}
        library.index(hidden)
        assert library.files() == {str(inside), str(hidden)}

    def test_folders_to_exclude_are_left_out_and_dropped_if_they_were_in(
        self, library: Library
    ) -> None:
        seen = library.write("seen.txt", "seen")
        library.write("database/meta.json", "{}")
        library.write("database/deep/er.txt", "inside")
        also = library.write("database2.txt", "a name that begins the same")
        assert library.index().indexed == 4
        report = library.index(exclude=[library.folder / "database"])
        assert (report.unchanged, report.removed) == (2, 2)
        assert library.files() == {str(seen), str(also)}

    def test_images_and_binaries_are_skipped_and_named(self, library: Library) -> None:
        library.write("notes.txt", "text")
        names = ["photo.png", "PHOTO.JPG", "song.mp3", "archive.zip", "library.so"]
        paths = [library.write(name, b"\x89\x00\xff" * 50) for name in names]
        report = library.index()
        assert sorted(report.skipped) == sorted(map(str, paths))
        assert (report.indexed, report.failed) == (1, {})
        assert library.count() == 1

    def test_overlapping_roots_index_a_file_once(self, library: Library) -> None:
        one = library.write("sub/one.txt", prose(40))
        library.write("two.txt", "two")
        report = library.index(one, library.folder, library.folder / "sub", one, library.folder)
        assert report.indexed == 2
        assert library.chunks() == library.from_scratch()

    def test_a_root_reached_through_a_link_is_the_same_folder(
        self, library: Library, tmp_path: Path
    ) -> None:
        library.write("one.txt", "one")
        (tmp_path / "link").symlink_to(library.folder, target_is_directory=True)
        assert library.index(tmp_path / "link", library.folder).indexed == 1
        assert library.count() == 1

    def test_links_that_go_in_circles_or_nowhere_do_no_harm(self, library: Library) -> None:
        path = library.write("sub/one.txt", "one")
        (library.folder / "sub" / "up").symlink_to(library.folder, target_is_directory=True)
        (library.folder / "self").symlink_to(library.folder / "self")
        (library.folder / "dangling.txt").symlink_to(library.folder / "nothing.txt")
        assert library.index() == IndexReport(indexed=1, chunks_added=1)
        assert library.files() == {str(path)}

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
    def test_a_named_pipe_is_not_waited_for(self, library: Library) -> None:
        os.mkfifo(library.folder / "pipe.txt")
        library.write("one.txt", "one")
        assert library.index() == IndexReport(indexed=1, chunks_added=1)

    @pytest.mark.parametrize(
        "name",
        [
            "with spaces in it.txt",
            "日本語 – ünïcödé.txt",
            unicodedata.normalize("NFD", "café.txt"),
            "two\nlines.txt",
            "emoji 👩‍👩‍👧.txt",
            "'quoted' \"twice\" [x]*.txt",
            "-dash.txt",
            "no_suffix",
            "x" * 251 + ".txt",
        ],
    )
    def test_odd_file_names_are_stored_as_they_are(self, library: Library, name: str) -> None:
        path = library.write(name, "content of it")
        assert library.index() == IndexReport(indexed=1, chunks_added=1)
        assert library.chunks() == {(str(path), "content of it"): 1}
        assert is_idle(library.index())
        path.unlink()
        assert library.index(prune=True) == IndexReport(removed=1, chunks_removed=1)

    def test_a_name_that_is_no_valid_text_fails_alone(self, library: Library) -> None:
        raw = os.fsencode(library.folder) + b"/bad\xff.txt"
        try:
            Path(os.fsdecode(raw)).write_text("content")
        except (OSError, UnicodeError):
            pytest.skip("this file system takes no file names that are not UTF-8")
        good = library.write("good.txt", "good")
        report = library.index()
        assert list(report.failed) == [os.fsdecode(raw)]
        assert library.files() == {str(good)}


class TestUnreadableFiles:
    @pytest.mark.parametrize("name", ["letter.txt", "letter.md", "letter.py"])
    def test_text_of_another_encoding_is_reported_and_the_rest_goes_on(
        self, library: Library, name: str
    ) -> None:
        bad = library.write(name, "Größe und Maß".encode("latin-1"))
        good = library.write("good.txt", "good")
        report = library.index()
        assert list(report.failed) == [str(bad)]
        assert "UTF-8" in report.failed[str(bad)]
        assert report.indexed == 1
        assert library.files() == {str(good)}

    def test_what_was_stored_of_it_stays_until_it_can_be_read(self, library: Library) -> None:
        path = library.write("letter.txt", prose(60))
        library.index()
        before = library.chunks()
        library.write("letter.txt", "Größe".encode("latin-1"))
        report = library.index()
        assert list(report.failed) == [str(path)]
        assert (report.removed, report.chunks_removed) == (0, 0)
        assert library.chunks() == before
        library.write("letter.txt", "Größe")
        library.index()
        assert library.texts(path) == ["Größe"]

    def test_a_broken_pdf_is_reported(self, library: Library) -> None:
        bad = library.write("report.pdf", b"%PDF-1.7 and then nothing of the kind")
        library.write("good.txt", "good")
        report = library.index()
        assert list(report.failed) == [str(bad)]
        assert report.indexed == 1

    def test_a_pdf_gives_its_pages_text_and_numbers(self, library: Library) -> None:
        if importlib.util.find_spec("pypdf") is None:
            pytest.skip("the extra 'files', which reads PDF, is not installed")
        path = library.write("report.pdf", pdf("Page one is here.", "Page two follows."))
        report = library.index()
        assert (report.failed, report.indexed) == ({}, 1)
        nodes = library.store.parse_to_query_result(library.points()).nodes or []
        pages = {node.metadata["page_label"]: node.get_content().strip() for node in nodes}
        assert pages == {"1": "Page one is here.", "2": "Page two follows."}
        assert library.files() == {str(path)}
        assert library.index() == IndexReport(unchanged=1)

    def test_a_reader_that_is_not_installed_is_named_with_its_extra(
        self, library: Library, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pypdf", None)
        bad = library.write("report.pdf", pdf("Page one is here."))
        good = library.write("good.txt", "good")
        report = library.index()
        assert "pip install 'unified-embeddings[files]'" in report.failed[str(bad)]
        assert library.files() == {str(good)}


class TestContent:
    @pytest.mark.parametrize("content", ["", " \n\t\r\n "], ids=["empty", "blank"])
    def test_a_file_without_text_gives_no_chunk(self, library: Library, content: str) -> None:
        library.write("nothing.txt", content)
        library.write("one.txt", "one")
        report = library.index()
        assert (report.chunks_added, report.failed) == (1, {})
        again = library.index()
        assert is_idle(again), "an unchanged file was reported as indexed again"
        assert library.count() == 1

    def test_a_file_emptied_loses_its_chunks(self, library: Library) -> None:
        path = library.write("one.txt", prose(60))
        library.index()
        chunks = library.count()
        path.write_text("")
        assert library.index().chunks_removed == chunks
        assert library.count() == 0

    @pytest.mark.parametrize(
        "text",
        [
            "Families 👩‍👩‍👧‍👦, flags 🇩🇪 and skin 👍🏽.",
            "مرحبا بالعالم، الثعلب البني السريع. שלום עולם",
            "Zalgo: e\u0301\u0323\u0308\u0330 a\u0300\u0316.",
            "a\0b and \x01\x1b[31m control",
            "first line\r\nsecond line\r\n\r\nthird\rfourth",
            "zero\u200bwidth \u2028 separators \u2029 and \ufeff marks",
            "\ufeffstarts with a byte order mark",
            "specials </s> <s> <pad> <mask> [SEP]",
            "one letter of eighteen: \ufdfa",
            "beyond the first plane: 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎 \U0010fffd",
        ],
        ids=["emoji", "rtl", "combining", "nul", "crlf", "invisible", "bom", "specials",
             "ligature", "astral"],
    )  # fmt: skip
    def test_odd_text_comes_back_unharmed(self, library: Library, text: str) -> None:
        path = library.write("odd.txt", text)
        assert library.index().failed == {}
        assert library.texts(path) == [text.strip()]
        assert is_idle(library.index())

    def test_one_huge_line_of_words_is_stored_whole(self, library: Library) -> None:
        words = [f"w{i}" for i in range(5_000)]
        path = library.write("huge.txt", " ".join(words))
        report = library.index()
        assert report.failed == {}
        found = {word for text in library.texts(path) for word in text.split()}
        assert found == set(words)

    def test_one_huge_line_without_a_space_is_stored_whole(self, library: Library) -> None:
        text = "".join(f"{i:05d}" for i in range(3_000))
        path = library.write("huge.txt", text)
        report = library.index()
        assert report.failed == {}
        spans = sorted((text.index(chunk), len(chunk)) for chunk in library.texts(path))
        covered = 0
        for start, length in spans:
            assert start <= covered
            covered = max(covered, start + length)
        assert covered == len(text)


LONG_TEXTS = {
    "prose": prose(120),
    "one word": "abcdefghij" * 500,
    "chinese": "敏捷的棕色狐狸跳过了懒狗。検索は文書を見つける" * 100,
    "emoji": "👩‍👩‍👧‍👦🇩🇪👍🏽" * 200,
    "ligatures": "\ufdfa" * 400,
    "markdown": "# Title\n\n" + "| a | b |\n|---|---|\n| x | 1 |\n\n```py\nx = {}\n```\n" * 60,
    "json": '{"key":[1,2,3],"other":{"deep":null}},' * 150,
    "dot leaders": ("Chapter one " + "." * 70 + " 12\n") * 40,
}


class TestChunkSize:
    @pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS.keys())
    @pytest.mark.parametrize("model", ["xlmr", "bert"])
    def test_no_chunk_is_cut_by_the_model(
        self, tmp_path: Path, request: pytest.FixtureRequest, model: str, text: str
    ) -> None:
        embedder = BGE_M3_Embedder(request.getfixturevalue(model), precision="fp32", device="cpu")
        library = Library(tmp_path / "notes", embedder)
        library.write("long.txt", text)
        report = library.index(chunk_tokens=8192)
        assert report.failed == {}
        assert 0 < embedder.stats().tokenised <= report.chunks_added  # equal chunks run once
        assert embedder.stats().truncated == 0

    @pytest.mark.parametrize("chunk_tokens", [32, 64, 150])
    def test_chunks_are_as_small_as_asked_and_no_smaller_than_need_be(
        self, library: Library, capsys: pytest.CaptureFixture[str], chunk_tokens: int
    ) -> None:
        path = library.write("one.txt", prose(100))
        report = library.index(chunk_tokens=chunk_tokens)
        assert report.failed == {}
        sizes = [len(library.embedder.tokenise(text)) for text in library.texts(path)]
        assert max(sizes) <= chunk_tokens
        assert np.median(sizes) > chunk_tokens / 3
        assert capsys.readouterr().out == "", "the library prints, and so spoils --json"

    def test_chunks_do_not_depend_on_where_the_file_lies(
        self, tmp_path: Path, short_embedder: BGE_M3_Embedder
    ) -> None:
        near = Library(tmp_path / "n", short_embedder)
        far = Library(tmp_path.joinpath(*["a folder with a long name"] * 12), short_embedder)
        texts = []
        for library in (near, far):
            path = library.write("one.txt", prose(100))
            assert library.index().failed == {}
            texts.append(library.texts(path))
        assert texts[0] == texts[1]

    @pytest.mark.parametrize("chunk_tokens", [31, 0, -1])
    def test_sizes_too_small_are_refused(self, library: Library, chunk_tokens: int) -> None:
        library.write("one.txt", "one")
        with pytest.raises(InputError, match=f"at least 32.*{chunk_tokens}"):
            library.index(chunk_tokens=chunk_tokens)


class Killed(BaseException):
    """Stands for the end of the process."""


class TestInterruptedRuns:
    """Whatever point a run was killed at, the next one ends where a run from scratch would."""

    def test_between_two_batches(self, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of many batches, a file done before it and one never reached."""
        library.write("a.txt", "done before")
        library.write("b.txt", prose(1400))
        library.write("c.txt", "never reached")
        expected = library.from_scratch(chunk_tokens=64)
        assert sum(expected.values()) > 258

        def killed_at(self: FingerprintedStore, nodes: Any, **options: Any) -> Any:
            if library.count():
                raise Killed
            return add(self, nodes, **options)

        add = FingerprintedStore.add
        with monkeypatch.context() as patch:
            patch.setattr(FingerprintedStore, "add", killed_at)
            with pytest.raises(Killed):
                library.index(chunk_tokens=64)
        assert 0 < library.count() < sum(expected.values())
        library.index(chunk_tokens=64)
        assert library.chunks() == expected
        assert is_idle(library.index(chunk_tokens=64))

    @pytest.mark.parametrize("kept", [0, 1, -1], ids=["none", "first", "all but last"])
    def test_within_a_files_chunks(self, library: Library, kept: int) -> None:
        path = library.write("one.txt", prose(200))
        library.write("two.txt", "two")
        library.index()
        expected = library.chunks()
        ids = [p.id for p in library.points() if (p.payload or {})["file_path"] == str(path)]
        assert len(ids) > 2
        library.client.delete(COLLECTION, points_selector=models.PointIdsList(points=ids[kept:]))
        report = library.index()
        assert (report.unchanged, report.indexed) == (1, 1)
        assert library.chunks() == expected
        assert is_idle(library.index())

    def test_after_the_new_chunks_and_before_the_old_are_dropped(
        self, library: Library, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = library.write("one.txt", prose(60))
        library.index()
        library.write("one.txt", "An entirely new text.")
        _kill_at_delete(library, monkeypatch)
        report = library.index()
        assert library.texts(path) == ["An entirely new text."]
        assert report.chunks_removed > 0
        assert is_idle(library.index())

    def test_while_a_change_was_half_stored(self, library: Library) -> None:
        path = library.write("one.txt", prose(200))
        library.index()
        old = library.points()
        library.write("one.txt", prose(200, "cat"))
        library.index()
        new = library.points()
        library.client.delete(
            COLLECTION, points_selector=models.PointIdsList(points=[p.id for p in new[1:]])
        )
        _put_back(library, old)
        library.index()
        assert library.chunks() == library.from_scratch()
        assert all("cat" in text for text in library.texts(path))

    def test_while_a_change_was_half_stored_and_then_taken_back(self, library: Library) -> None:
        library.write("one.txt", prose(200, "cat"))
        library.index()
        half = library.points()[:2]
        library.write("one.txt", prose(200))
        library.index()
        _put_back(library, half)
        library.index()
        assert library.chunks() == library.from_scratch()

    def test_before_what_is_gone_was_dropped(
        self, library: Library, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = library.write("gone.txt", prose(60))
        stays = library.write("stays.txt", "stays")
        library.index()
        gone.unlink()
        _kill_at_delete(library, monkeypatch)
        assert library.index().removed == 1
        assert library.files() == {str(stays)}


def _kill_at_delete(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run die as it begins to remove chunks."""

    def killed(*args: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(library.client, "delete", killed)
        with pytest.raises(Killed):
            library.index()


def _put_back(library: Library, points: list[models.Record]) -> None:
    library.client.upsert(
        COLLECTION,
        [
            models.PointStruct(id=p.id, vector=p.vector, payload=p.payload)  # type: ignore[arg-type]
            for p in points
        ],
    )


def test_a_folder_that_cannot_be_listed_keeps_its_chunks_and_is_reported(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.write("one.txt", "one")
    inside = library.write("sub/two.txt", "two")
    library.index()
    scandir = os.scandir

    def forbidden(path: Any) -> Any:
        if str(path) == str(inside.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    report = library.index()
    assert list(report.failed) == [str(inside.parent)]
    assert (report.removed, report.chunks_removed, library.count()) == (0, 0, 2)


def test_a_binary_file_of_an_unknown_kind_is_skipped(library: Library) -> None:
    blob = library.write("blob.dat", b"SQLite format 3\0\x01\xff\xfe")
    library.write("one.txt", "one")
    report = library.index()
    assert (report.skipped, report.failed, report.indexed) == (
        {str(blob): "it is binary data"},
        {},
        1,
    )


def test_a_file_that_becomes_binary_loses_its_chunks(library: Library) -> None:
    file = library.write("one.txt", "one")
    library.write("two.txt", "two")
    library.index()
    file.write_bytes(b"\0\xff\xfe" * 100)
    outcomes: list[tuple[str, str]] = []
    report = library.index(on_outcome=lambda *outcome: outcomes.append(outcome))
    assert (list(report.skipped), report.chunks_removed, library.count()) == ([str(file)], 1, 1)
    assert (str(file), "skipped: it is binary data") in outcomes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blank.md", "it holds nothing but NUL bytes"),
        ("blank.txt", "it holds nothing but NUL bytes"),
        ("blank.html", "it is empty"),
        ("blank.csv", "it is empty"),
    ],
)
def test_a_file_of_nul_bytes_is_skipped_and_loses_its_chunks(
    library: Library, name: str, reason: str
) -> None:
    """A crash, or a copy to a full disk, leaves such a file."""
    file = library.write(name, "There was a text.")
    library.write("other.txt", "Another text.")
    assert library.index().indexed == 2
    file.write_bytes(b"\0" * 5000)
    report = library.index()
    assert (report.failed, report.chunks_removed, library.count()) == ({}, 1, 1)
    assert library.index().skipped == {str(file): reason}
