"""ClipEmbedder: exact, whole, cached, thread-safe, and closed to what it was not asked to fetch."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoints
import full_size
from image_files import IMAGES, no_network, noise, png
from unified_embeddings import (
    ClipEmbedder,
    EmbeddingCache,
    InputError,
    ModelLoadError,
    ModelSpec,
    UnifiedEmbeddingsError,
)
from unified_embeddings.embedders.clip_text import ClipTextEmbedder

LONG = "fox " * 100


TEXTS = ["a fox", "A Fox!", "", LONG, "狐 🦊", "http://127.0.0.1:9/fox.png"]


def oracle(folder: Path, images: list[Image.Image], texts: list[str]) -> tuple[Any, Any]:
    """Transformers' own model and preprocessing, normalised."""
    from transformers import (
        AutoModel,
        AutoTokenizer,
        CLIPImageProcessorPil,
        SiglipImageProcessorPil,
    )

    model = AutoModel.from_pretrained(folder).eval()
    is_siglip = model.config.model_type == "siglip"
    kind = SiglipImageProcessorPil if is_siglip else CLIPImageProcessorPil
    processor, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    limit = model.config.text_config.max_position_embeddings
    with torch.inference_mode():
        seen = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        padding = "max_length" if is_siglip else True
        words = tokenizer(
            texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt"
        )
        if is_siglip:  # trained without a mask
            del words["attention_mask"]
        read = model.get_text_features(**words).pooler_output
    return tuple(torch.nn.functional.normalize(vectors).numpy() for vectors in (seen, read))


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = getattr(checkpoints, request.param)
    return make(tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture
def embedder(clip: Path) -> ClipEmbedder:
    return ClipEmbedder(clip, precision="fp32", device="cpu", batch_size=3)


class TestVectors:
    def test_they_equal_transformers_own(self, folder: Path) -> None:
        ours = ClipEmbedder(folder, precision="fp32", device="cpu")
        images, texts = oracle(folder, IMAGES, TEXTS)
        np.testing.assert_allclose(ours.encode_images(IMAGES).dense, images, atol=1e-5)
        np.testing.assert_allclose(ours.encode_texts(TEXTS), texts, atol=1e-5)
        assert ours.dimension == images.shape[1] == texts.shape[1]
        assert ours.max_length == (16 if folder.name == "siglip" else 77)

    def test_a_batch_equals_singles(self, folder: Path) -> None:
        ours = ClipEmbedder(folder, precision="fp32", cache=None, batch_size=4)
        together = ours.encode_images(IMAGES).dense
        alone = np.concatenate([ours.encode_images([image]).dense for image in IMAGES])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        alone = np.concatenate([ours.encode_texts([text]) for text in TEXTS])
        np.testing.assert_allclose(ours.encode_texts(TEXTS), alone, atol=1e-5)

    def test_rows_have_unit_length_and_float32(self, embedder: ClipEmbedder) -> None:
        for rows in (embedder.encode_images(IMAGES).dense, embedder.encode_texts(TEXTS)):
            assert rows.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)

    def test_bf16_is_close(self, clip: Path) -> None:
        full = ClipEmbedder(clip, precision="fp32").encode_images(IMAGES).dense
        half = ClipEmbedder(clip, precision="bf16").encode_images(IMAGES).dense
        assert np.sum(full * half, axis=1).min() > 0.99

    def test_the_hardware_rule_is_the_text_models(self, clip: Path) -> None:
        with pytest.raises(InputError, match="fp16 does not run well on a CPU"):
            _ = ClipEmbedder(clip, precision="fp16", device="cpu").runtime

    @pytest.mark.parametrize("kind", ["path", "str", "bytes", "BytesIO", "base64", "data URI"])
    def test_one_image_in_any_form_gives_one_vector(
        self, kind: str, embedder: ClipEmbedder, tmp_path: Path
    ) -> None:
        encoded = png(IMAGES[0])
        path = tmp_path / "fox.png"
        path.write_bytes(encoded)
        text = base64.b64encode(encoded).decode()
        given = {
            "path": path, "str": str(path), "bytes": encoded, "BytesIO": io.BytesIO(encoded),
            "base64": text, "data URI": f"data:image/png;base64,{text}",
        }[kind]  # fmt: skip
        expected = embedder.encode_images([IMAGES[0]]).dense
        np.testing.assert_allclose(embedder.encode_images([given]).dense, expected, atol=1e-6)

    @pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "I;16", "CMYK", "LA", "YCbCr"])
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "WEBP", "JPEG"])
    def test_every_mode_and_format_is_embedded(
        self, mode: str, form: str, embedder: ClipEmbedder
    ) -> None:
        image = noise(20, 30)
        if mode == "I;16":
            image = Image.fromarray(np.full((30, 20), 40_000, dtype=np.uint16))
        else:
            image = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
        out = io.BytesIO()
        try:
            image.save(out, form)
        except (OSError, ValueError, KeyError):
            pytest.skip(f"Pillow writes no {mode} as {form}")
        assert embedder.encode_images([out.getvalue()]).dense.shape == (1, 24)

    def test_exif_rotation_is_applied(self, embedder: ClipEmbedder) -> None:
        image = noise(20, 30)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        out = io.BytesIO()
        image.save(out, "PNG", exif=exif)
        upright = embedder.encode_images([image.transpose(Image.Transpose.ROTATE_270)]).dense
        np.testing.assert_allclose(
            embedder.encode_images([out.getvalue()]).dense, upright, atol=1e-6
        )

    def test_nothing_gives_an_empty_result(self, embedder: ClipEmbedder) -> None:
        empty = embedder.encode_images([])
        assert empty.dense.shape == (0, 24)
        assert (len(empty), empty.indices, empty.errors) == (0, (), ())
        assert embedder.encode_texts([]).shape == (0, 24)

    def test_long_texts_are_cut_counted_and_logged_once(
        self, clip: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        embedder = ClipEmbedder(clip)
        embedder.encode_texts([LONG, "short", LONG + "tail", "x" * 200_000, " " * 200_000])
        assert len([message for message in caplog.messages if "was cut" in message]) == 1
        assert embedder.stats().truncated == 3
        vectors = embedder.encode_texts([LONG, LONG + "tail"])
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)

    @pytest.mark.parametrize(
        "text",
        ["Fox" * 50_000, "!" * 100_000, "狐狸" * 50_000, "É\n" * 50_000, "<|endoftext|>" * 9_000,
         "<|endoftext|>fox" + "x" * 100_000, "a " * 9 + "\u3000" * 100_000 + "z"],
        ids=["letters", "marks", "ideographs", "lines", "special", "after special", "spaces"],
    )  # fmt: skip
    def test_of_a_very_long_text_little_is_tokenised(
        self, text: str, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = ClipEmbedder(clip, precision="fp32", device="cpu", cache=None)
        model = embedder._load()
        lengths: list[int] = []
        call = type(model._tokenizer).__call__

        def count(tokenizer: Any, texts: list[str], **options: Any) -> Any:
            lengths.extend(map(len, texts))
            return call(tokenizer, texts, **options)

        monkeypatch.setattr(type(model._tokenizer), "__call__", count)
        vectors = embedder.encode_texts([text, "a fox"])
        monkeypatch.undo()
        np.testing.assert_allclose(
            vectors, oracle(clip, [IMAGES[0]], [text, "a fox"])[1], atol=1e-5
        )
        assert lengths
        assert max(lengths) < 100 * 77


def corrupt(tmp_path: Path) -> dict[str, Any]:
    from image_files import BOMB  # the header of an image that nobody could hold

    whole = png(noise(64, 64))
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("these are words")
    return {
        "truncated": whole[: len(whole) // 2],
        "zero bytes": b"",
        "empty file": empty,
        "a text named .png": text,
        "a bomb": BOMB,
        "missing": tmp_path / "missing.png",
        "a folder": tmp_path,
        "no image": 5,
        "None": None,
    }


class TestBadImages:
    @pytest.mark.parametrize(
        "kind",
        ["truncated", "zero bytes", "empty file", "a text named .png", "a bomb", "missing",
         "a folder", "no image", "None"],
    )  # fmt: skip
    def test_the_index_is_named_and_the_rest_is_not_lost(
        self, kind: str, clip: Path, tmp_path: Path
    ) -> None:
        bad = corrupt(tmp_path)[kind]
        images: list[Any] = [*IMAGES[:4], bad, IMAGES[4]]
        for cache in ("auto", None):
            embedder = ClipEmbedder(clip, batch_size=3, cache=cache)
            with pytest.raises(InputError, match="item 4: ") as caught:
                embedder.encode_images(images)
            assert caught.value.index == 4
            result = embedder.encode_images(images, skip_bad=True)
            assert result.indices == (0, 1, 2, 3, 5)
            assert [error.index for error in result.errors] == [4]
            expected = embedder.encode_images(IMAGES).dense
            np.testing.assert_allclose(result.dense, expected, atol=1e-6)

    def test_many_of_them_cost_no_second_forward(self, clip: Path, tmp_path: Path) -> None:
        bad = corrupt(tmp_path)
        embedder = ClipEmbedder(clip, batch_size=32, cache=None)
        result = embedder.encode_images([*bad.values(), *IMAGES], skip_bad=True)
        assert len(result.errors) == len(bad)
        assert len(result) == len(IMAGES)
        assert embedder.stats().forwards == 1

    def test_all_bad_gives_no_rows(self, embedder: ClipEmbedder) -> None:
        result = embedder.encode_images([b"", b"x"], skip_bad=True)
        assert result.dense.shape == (0, 24)
        assert len(result.errors) == 2

    def test_what_came_before_is_in_the_cache(self, embedder: ClipEmbedder) -> None:
        with pytest.raises(InputError, match="item 3"):
            embedder.encode_images([*IMAGES[:3], b"bad"])
        before = embedder.stats().forwards
        embedder.encode_images(IMAGES[:3])
        assert embedder.stats().forwards == before

    def test_one_image_is_no_list(self, embedder: ClipEmbedder) -> None:
        for one in ("fox.png", b"x", Path("fox.png"), 3):
            with pytest.raises(InputError, match="put one image into a list"):
                embedder.encode_images(one)  # type: ignore[arg-type]

    def test_the_pixel_limit_is_the_callers(self, clip: Path) -> None:
        embedder = ClipEmbedder(clip, max_pixels=999)
        assert len(embedder.encode_images([noise(33, 30)])) == 1
        with pytest.raises(InputError, match="item 0"):
            embedder.encode_images([noise(40, 25)])

    @pytest.mark.parametrize("option", ["batch_size", "max_pixels"])
    @pytest.mark.parametrize("value", [0, -1, True, "5"])
    def test_options_in_range(self, option: str, value: Any) -> None:
        with pytest.raises(InputError, match=option):
            ClipEmbedder("clip", **{option: value})
        with pytest.raises(InputError, match="precision must be"):
            _ = ClipEmbedder("clip", precision="fp7").runtime

    @pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
    def test_a_thin_strip_is_refused_before_it_is_scaled(
        self, size: tuple[int, int], embedder: ClipEmbedder
    ) -> None:
        """CLIP would scale it to 32 x 6,400,000 pixels; the file has a few hundred bytes."""
        strip = png(Image.new("RGB", size))
        result = embedder.encode_images([IMAGES[0], strip], skip_bad=True)
        assert result.indices == (0,)
        assert "too long and narrow" in str(result.errors[0])

    def test_a_pil_image_is_checked_before_it_is_loaded(self, clip: Path) -> None:
        lazy = Image.open(io.BytesIO(png(Image.new("RGB", (300, 300)))))
        with pytest.raises(InputError, match="300 x 300"):
            ClipEmbedder(clip, max_pixels=1000).encode_images([lazy])
        assert getattr(lazy, "_im", None) is None

    def test_a_bad_image_costs_no_second_decoding(
        self, embedder: ClipEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unified_embeddings.images.decoding import Picture

        decoded = []
        real = Picture.decode

        def counted(self: Picture, max_pixels: int) -> Image.Image:
            decoded.append(self.name)
            return real(self, max_pixels)

        monkeypatch.setattr(Picture, "decode", counted)
        embedder.encode_images([IMAGES[0], b"bad", IMAGES[1]], skip_bad=True)
        assert len(decoded) == 3

    def test_a_generators_images_are_taken_a_batch_at_a_time(self, clip: Path) -> None:
        embedder = ClipEmbedder(clip, batch_size=2)
        forwards = []

        def images() -> Any:
            for image in IMAGES:
                forwards.append(embedder.stats().forwards)
                yield image

        assert len(embedder.encode_images(images())) == 5
        assert forwards == [0, 0, 1, 1, 2]

    def test_no_list_either(self, embedder: ClipEmbedder) -> None:
        from llama_index.core.schema import ImageNode

        for one in (io.BytesIO(b"x"), {"a.png": 1}, ImageNode(image_path="a.png"), bytearray(b"x")):
            with pytest.raises(InputError, match="put one image into a list"):
                embedder.encode_images(one)  # type: ignore[arg-type]

    def test_a_node_whose_image_cannot_be_had(self, embedder: ClipEmbedder) -> None:
        class Broken:
            @property
            def image(self) -> str:
                raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no")

        result = embedder.encode_images([Broken(), IMAGES[0]], skip_bad=True)  # type: ignore[list-item]
        assert result.indices == (1,)

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1/a.png?token=SECRET", "http://user:SECRET@127.0.0.1/a.png"]
    )
    def test_messages_keep_a_urls_secrets(self, url: str, clip: Path) -> None:
        with pytest.raises(InputError) as caught:
            ClipEmbedder(clip, allow_urls=True).encode_images([url])
        assert "SECRET" not in str(caught.value)

    def test_each_error_names_its_own_file(self, embedder: ClipEmbedder, tmp_path: Path) -> None:
        for name in ("one.png", "two.png"):
            (tmp_path / name).write_bytes(png(IMAGES[0])[:60])
        paths = [tmp_path / "one.png", tmp_path / "two.png"]
        errors = embedder.encode_images(paths, skip_bad=True).errors
        assert [error.index for error in errors] == [0, 1]
        for error, path in zip(errors, paths, strict=True):
            assert path.name in str(error)


class TestUrls:
    def test_they_are_off(self, embedder: ClipEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
        no_network(monkeypatch)
        for url in ("http://example.com/a.png", "HTTPS://example.com/a.png"):
            with pytest.raises(InputError, match=r"item 1: .*allow_urls") as caught:
                embedder.encode_images([IMAGES[0], url])
            assert caught.value.index == 1

    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1/a.png", "http://10.1.2.3/a.png", "http://169.254.169.254/latest",
         "http://[::1]/a.png", "http://localhost/a.png", "http://192.168.0.1/a.png"],
    )  # fmt: skip
    def test_private_addresses_are_refused_where_they_are_on(self, url: str, clip: Path) -> None:
        embedder = ClipEmbedder(clip, allow_urls=True)
        with pytest.raises(InputError, match="item 0"):
            embedder.encode_images([url])

    def test_a_fetched_image_is_embedded(self, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder = ClipEmbedder(clip, allow_urls=True)
        monkeypatch.setattr(
            "unified_embeddings.embedders.clip.fetch_image", lambda url: png(IMAGES[0])
        )
        result = embedder.encode_images(["https://example.com/fox.png"]).dense
        np.testing.assert_allclose(result, embedder.encode_images([IMAGES[0]]).dense, atol=1e-6)

    def test_a_text_never_triggers_a_request(
        self, clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = ClipEmbedder(clip, allow_urls=True)
        embedder.encode_texts(["warm"])
        no_network(monkeypatch)
        texts = ["http://example.com/a.png", "see https://example.com/b.jpg", "file:///etc/passwd"]
        assert embedder.encode_texts(texts).shape == (3, 24)


class TestCache:
    def test_known_images_cost_no_forward(self, embedder: ClipEmbedder) -> None:
        embedder.encode_images([IMAGES[0], IMAGES[1], IMAGES[0]])
        assert embedder.stats().forwards == 1
        embedder.encode_images([IMAGES[1], IMAGES[0].copy()])
        stats = embedder.stats()
        assert (stats.forwards, stats.images) == (1, 5)

    def test_the_key_is_the_content_not_the_name(
        self, embedder: ClipEmbedder, tmp_path: Path
    ) -> None:
        path = tmp_path / "it.png"
        path.write_bytes(png(IMAGES[0]))
        first = embedder.encode_images([path]).dense
        path.write_bytes(png(IMAGES[1]))
        assert np.abs(embedder.encode_images([path]).dense - first).max() > 1e-3

    def test_a_text_and_an_image_never_collide(self, clip: Path) -> None:
        cache = EmbeddingCache()
        one, other = ClipEmbedder(clip, cache=cache), ClipEmbedder(clip, cache=cache)
        one.encode_texts(["fox"])
        other.encode_images([IMAGES[0]])
        other.encode_texts(["fox"])
        assert other.stats().forwards == 1

    def test_other_weights_have_other_keys(self, clip: Path, tmp_path: Path) -> None:
        cache = EmbeddingCache()
        twin = checkpoints.clip(tmp_path / "twin", seed=9)
        one = ClipEmbedder(clip, cache=cache).encode_images([IMAGES[0]]).dense
        other = ClipEmbedder(twin, cache=cache).encode_images([IMAGES[0]]).dense
        assert np.abs(one - other).max() > 1e-3
        assert ClipEmbedder(clip).fingerprint != ClipEmbedder(twin).fingerprint

    def test_another_crop_is_another_model(self, clip: Path, tmp_path: Path) -> None:
        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        settings = json.loads((twin / "preprocessor_config.json").read_text())
        settings["image_mean"] = [0, 0, 0]
        (twin / "preprocessor_config.json").write_text(json.dumps(settings))
        assert ClipEmbedder(clip).fingerprint != ClipEmbedder(twin).fingerprint


def test_sixteen_threads_load_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unified_embeddings.embedders import clip as images

    loads = []
    real = images.ClipModel

    def counted(*args: Any) -> Any:
        loads.append(threading.get_ident())
        return real(*args)

    monkeypatch.setattr(images, "ClipModel", counted)
    embedder = ClipEmbedder(clip, precision="fp32")
    with ThreadPoolExecutor(16) as pool:
        pictures = list(pool.map(lambda _: embedder.encode_images(IMAGES).dense, range(16)))
        texts = list(pool.map(lambda i: embedder.encode_texts([LONG, f"a {i}"]), range(16)))
    assert len(loads) == 1
    assert embedder.stats().cache.misses == len(IMAGES) + 17
    expected, words = oracle(clip, IMAGES, [LONG, "a 7"])
    for rows in pictures:
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(texts[7], words, atol=1e-5)


class TestLoading:
    def test_a_model_that_is_not_there(self) -> None:
        with pytest.raises(ModelLoadError, match="hf download openai/clip-vit-base-patch32"):
            ClipEmbedder(local_files_only=True).encode_texts(["fox"])

    @pytest.mark.parametrize(
        "name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
    )
    def test_a_file_is_missing(self, name: str, clip: Path, tmp_path: Path) -> None:
        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        (twin / name).unlink()
        with pytest.raises(ModelLoadError, match=name):
            ClipEmbedder(twin).encode_images(IMAGES)

    def test_settings_in_the_newer_file(self, clip: Path, tmp_path: Path) -> None:
        """As transformers 5's own CLIPProcessor saves them."""
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPProcessor

        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        parts = CLIPImageProcessorPil.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
        (twin / "preprocessor_config.json").unlink()
        CLIPProcessor(*parts).save_pretrained(twin)
        (twin / "preprocessor_config.json").unlink(missing_ok=True)
        np.testing.assert_allclose(
            ClipEmbedder(twin, precision="fp32").encode_images(IMAGES).dense,
            ClipEmbedder(clip, precision="fp32").encode_images(IMAGES).dense,
            atol=1e-6,
        )

    def test_an_empty_vocabulary_is_refused(self, clip: Path, tmp_path: Path) -> None:
        """Transformers builds a tokenizer of nothing that gives all words the same ids."""
        from transformers import CLIPTokenizer

        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        CLIPTokenizer().save_pretrained(twin)
        with pytest.raises(ModelLoadError, match="knows no words"):
            ClipEmbedder(twin).encode_texts(["fox"])

    @pytest.mark.parametrize("change", [{"do_center_crop": False}, {"crop_size": 64}])
    def test_a_preprocessor_that_does_not_fit(
        self, change: dict[str, Any], clip: Path, tmp_path: Path
    ) -> None:
        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        path = twin / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ModelLoadError, match="do not fit together"):
            ClipEmbedder(twin).encode_images(IMAGES)

    def test_other_words_are_another_model(self, clip: Path, tmp_path: Path) -> None:
        prints = set()
        for swapped in (False, True):
            twin = tmp_path / str(swapped)
            shutil.copytree(clip, twin)
            vocabulary = json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"]
            if swapped:
                a, x = "a</w>", "x</w>"
                vocabulary[a], vocabulary[x] = vocabulary[x], vocabulary[a]
            (twin / "tokenizer.json").unlink()
            (twin / "vocab.json").write_text(json.dumps(vocabulary))
            (twin / "merges.txt").write_text("#version: 0.2\n")
            prints.add(ClipEmbedder(twin).fingerprint)
        assert len(prints) == 2

    def test_pillow_resizes_also_where_torchvision_is(self, embedder: ClipEmbedder) -> None:
        assert type(embedder._load()._processor).__name__ == "CLIPImageProcessorPil"

    def test_a_missing_tensor_is_not_made_up(self, clip: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        state = load_file(twin / "model.safetensors")
        del state["visual_projection.weight"]
        save_file(state, twin / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelLoadError, match=r"visual_projection\.weight"):
            ClipEmbedder(twin).encode_images(IMAGES)

    def test_a_truncated_weight_file(self, clip: Path, tmp_path: Path) -> None:
        twin = tmp_path / "twin"
        shutil.copytree(clip, twin)
        weights = (twin / "model.safetensors").read_bytes()
        (twin / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(ModelLoadError, match="cannot load it"):
            ClipEmbedder(twin).encode_images(IMAGES)

    def test_a_text_model_embeds_no_images(self, bert: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"embeds no images; clip, mini-clip, jina-clip do"):
            ClipEmbedder("bge-m3")
        twin = tmp_path / "twin"
        shutil.copytree(bert, twin)
        (twin / "preprocessor_config.json").write_text("{}")
        with pytest.raises(ModelLoadError, match="no model of images and texts"):
            ClipEmbedder(twin).encode_texts(["fox"])

    def test_the_spec_has_the_wrong_dimension(self, clip: Path) -> None:
        spec = ModelSpec("mine", str(clip), dimension=512, images=True)
        with pytest.raises(ModelLoadError, match=r"24 dimensions.* says 512"):
            ClipEmbedder(spec).encode_texts(["fox"])

    def test_remote_code_needs_consent_and_a_commit(self) -> None:
        with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
            ClipEmbedder("jina-clip").encode_texts(["fox"])
        with pytest.raises(ModelLoadError, match="has to be pinned"):
            ClipEmbedder("jina-clip", trust_remote_code=True).encode_texts(["fox"])
        with pytest.raises(ModelLoadError, match="downloads are off"):
            ClipEmbedder("jina-clip", trust_remote_code=True, revision="a" * 40).encode_texts(["x"])

    def test_closed(self, embedder: ClipEmbedder) -> None:
        with embedder:
            embedder.encode_texts(["fox"])
        with pytest.raises(UnifiedEmbeddingsError, match="closed"):
            embedder.encode_texts(["dog"])

    def test_a_pickled_one_loads_anew(self, embedder: ClipEmbedder, clip: Path) -> None:
        copy = pickle.loads(pickle.dumps(embedder))
        np.testing.assert_array_equal(copy.encode_texts(["fox"]), embedder.encode_texts(["fox"]))
        spec = ModelSpec("mine", str(clip), images=True)
        assert pickle.loads(pickle.dumps(ClipEmbedder(spec))).spec == spec


def test_the_text_half_is_an_embedder_of_texts(clip: Path) -> None:
    spec = ModelSpec("mine", str(clip), images=True, query_prefix="find: ")
    embedder = ClipEmbedder(spec, precision="fp32")
    texts = ClipTextEmbedder(embedder)
    assert (texts.heads, texts.dimension, texts.max_length) == (("dense",), 24, 77)
    expected = embedder.encode_texts(["find: fox", "fox"])
    np.testing.assert_array_equal(texts.encode_query("fox").dense, expected[:1])
    np.testing.assert_array_equal(texts.encode_documents(["fox"]).dense, expected[1:])
    with pytest.raises(InputError, match="no sparse ones"):
        texts.encode_documents(["fox"], sparse=True)
    assert texts.fingerprint == embedder.fingerprint
    assert len(texts.tokenise("fox")) == 3


@pytest.mark.full_size
def test_a_full_size_clip_equals_transformers(tmp_path: Path) -> None:
    """ViT-B/32's own sizes with random weights: 151M parameters, half a minute."""
    folder = full_size.make_clip(tmp_path / "clip")
    spec = dataclasses.replace(ClipEmbedder("clip").spec, model_id=str(folder))
    ours = ClipEmbedder(spec, precision="fp32", device="cpu", cache=None)
    pictures = [noise(w, h, w) for w, h in ((640, 480), (224, 224), (33, 900), (1200, 800))]
    images, texts = oracle(folder, pictures, TEXTS)
    result = ours.encode_images(pictures).dense
    np.testing.assert_allclose(result, images, atol=1e-5)
    np.testing.assert_allclose(ours.encode_texts(TEXTS), texts, atol=1e-5)
    alone = np.concatenate([ours.encode_images([one]).dense for one in pictures])
    np.testing.assert_allclose(result, alone, atol=1e-5)
    assert (ours.dimension, ours.max_length) == (512, 77)
    print(f"images {np.abs(result - images).max():.1e}")
