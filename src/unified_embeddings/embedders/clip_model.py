"""A loaded CLIP or SigLIP: network, image processor and tokenizer, through transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from unified_embeddings import heads
from unified_embeddings.embedders.first_tokens import CHARACTERS_PER_TOKEN, FirstTokens
from unified_embeddings.embedders.tokenization import cut_characters
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.quiet import quiet_loading
from unified_embeddings.engines.torch_device import DTYPES, host_weights
from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.weights import check_finite
from unified_embeddings.types import FloatArray

PreparedImage: TypeAlias = dict[str, torch.Tensor]
"""What the network takes of one image: name → tensor (1, ...)."""

_ALWAYS_ALLOWED_RATIO = 64
"""Ratio of an image's sides that is allowed whatever `max_pixels` is."""


def read_architecture(checkpoint: Checkpoint) -> Any:
    """Read a model's configuration, as transformers' own class for it.

    Raises:
        ModelLoadError: If `config.json` does not describe a model of images and texts.
    """
    with checkpoint.explain("config.json describes no model of images and texts"):
        config = AutoConfig.from_pretrained(
            checkpoint.folder, local_files_only=True, **checkpoint.code_options
        )
        _ = config.vision_config, config.text_config
    return config


class ClipModel:
    """One loaded checkpoint: network, image processor, tokenizer. Thread-safe.

    Args:
        checkpoint: Where the files are.
        config: What `read_architecture` returned.
        runtime: Device and precision.
        max_length: The most tokens of a text.

    Attributes:
        dimension: Width of the vectors.

    Raises:
        ModelLoadError: If transformers cannot load it, or a tensor is missing from its files.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: Any, runtime: Runtime, max_length: int
    ) -> None:
        self._checkpoint = checkpoint
        self._device = torch.device(runtime.device)
        self._dtype = DTYPES[runtime.precision]
        self._max_length = max_length
        self._is_siglip = config.model_type.startswith("siglip")
        options = {"local_files_only": True, **checkpoint.code_options}
        with checkpoint.explain("transformers cannot load it"):
            with quiet_loading():  # what it reports is checked here, and more strictly
                network, report = AutoModel.from_pretrained(
                    checkpoint.folder, dtype=self._dtype, output_loading_info=True, **options
                )
            # Pillow's, also where torchvision is installed: the two resize differently.
            self._processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                checkpoint.folder, backend="pil", **options
            )
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **options)
        # SigLIP's is not one of the Rust library: its texts are cut at white space alone.
        self._first_tokens: FirstTokens | None = None
        if self._tokenizer.is_fast:
            self._first_tokens = FirstTokens(self._tokenizer.backend_tokenizer)
        if missing := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise checkpoint.problem(
                f"{len(missing)} tensors are missing from its files or of another shape, the first "
                f"{missing[0]}"
            )
        for name, parameter in network.named_parameters():
            check_finite(checkpoint, name, parameter)
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise checkpoint.problem(f"{type(network).__name__} embeds no images beside texts")
        # Its class is transformers' own for the architecture, known only once it is loaded.
        self.network: Any = network.to(self._device).eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # truncation is a setting of the Rust tokenizer
        with checkpoint.explain("its parts do not fit together"):
            try:
                self.dimension = self._measure_dimension()
            except InputError as error:
                raise checkpoint.problem(f"its parts do not fit together: {error}") from error

    def _measure_dimension(self) -> int:
        """Run one text and two images, and return the width of their vectors.

        Raises:
            ValueError: If texts and images differ in width, or all words in nothing.
        """
        if self.split("fox") == self.split("dog"):
            raise ValueError("its tokenizer knows no words")
        shapes = [Image.new("RGB", size) for size in ((48, 32), (32, 48))]
        images = self.embed_images([self.prepare(image, 10**9, "a probe") for image in shapes])
        texts, _ = self.embed_texts(["fox"])
        if images.shape[1] != texts.shape[1]:
            raise ValueError(f"images get {images.shape[1]} dimensions, texts {texts.shape[1]}")
        return int(texts.shape[1])

    def prepare(self, image: Image.Image, max_pixels: int, name: str) -> PreparedImage:
        """Scale and normalise one RGB image for the network.

        CLIP scales the whole image before it crops: a small file of 1 x 60,000 pixels would become
        one of 224 x 13 million.

        Args:
            image: The image, of any size.
            max_pixels: The most pixels that the scaled image may have.
            name: What messages call it.

        Raises:
            InputError: If the image is so long and narrow that scaling its short side up to the
                model's size would take more than `max_pixels`.
        """
        edge = (getattr(self._processor, "size", None) or {}).get("shortest_edge")
        if edge:
            scaled = image.width * image.height * (edge / min(image.size)) ** 2
            if scaled > max(max_pixels, _ALWAYS_ALLOWED_RATIO * edge**2):
                raise InputError(
                    f"{name} is too long and narrow ({image.width:,} x {image.height:,}): with its "
                    f"short side scaled to {edge}, as the model needs it, it would have "
                    f"{scaled:,.0f} pixels, of {max_pixels:,} allowed. Crop it"
                )
        return dict(self._processor(images=[image], return_tensors="pt"))

    def embed_images(self, images: list[PreparedImage]) -> FloatArray:
        """Return the vectors of n prepared images, float32 (n, d), rows of unit length."""
        inputs = {name: torch.cat([image[name] for image in images]) for name in images[0]}
        return self._run("image", inputs)

    def embed_texts(self, texts: list[str]) -> tuple[FloatArray, int]:
        """Return the vectors of n texts, float32 (n, d), and how many of the texts were cut."""
        with self._tokenizer_lock:
            starts = [self._beginning_of(text) for text in texts]
            lengths = [len(ids) for ids in self._tokenizer(starts, verbose=False)["input_ids"]]
            inputs = self._tokenizer(
                starts,
                padding="max_length" if self._is_siglip else True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        if self._is_siglip:  # trained on texts padded to their full length, without a mask
            inputs.pop("attention_mask", None)
        truncated = sum(length > self._max_length for length in lengths)
        return self._run("text", inputs), truncated

    def _beginning_of(self, text: str) -> str:
        """Return as much of a very long text as decides its tokens, and whether it is cut.

        Called with the tokenizer's lock held.
        """
        if len(text) <= CHARACTERS_PER_TOKEN * self._max_length:
            return text
        wanted = self._max_length + 1  # one more than there is room for
        if self._first_tokens is not None:
            self._tokenizer.backend_tokenizer.no_truncation()
            self._tokenizer.backend_tokenizer.no_padding()
            return self._first_tokens.beginning_of(text, wanted)
        start = cut_characters(text, self._max_length)
        if len(self._tokenizer(start, verbose=False)["input_ids"]) < wanted:
            return text
        return start

    def split(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens."""
        with self._tokenizer_lock:
            encoding = self._tokenizer(text, add_special_tokens=False, verbose=False)
        token_ids: list[int] = encoding["input_ids"]
        return token_ids

    def _run(self, kind: Literal["image", "text"], inputs: dict[str, torch.Tensor]) -> FloatArray:
        moved = {}
        for name, tensor in inputs.items():
            dtype = self._dtype if tensor.is_floating_point() else None
            moved[name] = tensor.to(self._device, dtype)
        # One pass at a time: a second would only compete for the same cores and memory.
        with self._lock, torch.inference_mode():
            if kind == "image":
                output = self.network.get_image_features(**moved)
            else:
                output = self.network.get_text_features(**moved)
            # transformers 5 returns an object that holds the vectors, 4 returned the vectors.
            vectors = getattr(output, "pooler_output", output).float().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise self._checkpoint.problem(
                "its vectors hold NaN or infinity: its weights or its settings for images do; "
                "fetch it again"
            )
        return heads.normalise(vectors)


def weights_of(model: ClipModel | None) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of each region of a model's weights; none without a model."""
    return iter(()) if model is None else host_weights(model.network)
