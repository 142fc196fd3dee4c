"""A loaded CLIP or SigLIP: network, image processor and tokenizer, through transformers."""

from __future__ import annotations

import threading
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from unified_embeddings import heads
from unified_embeddings.embedders.tokenization import start_of
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.quiet import quiet_loading
from unified_embeddings.engines.torch_device import DTYPES
from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import FloatArray

_SQUARES = 64
"""How many times as long as wide an image may be whatever `max_pixels` is."""


class ClipModel:
    """One loaded checkpoint: network, image processor, tokenizer.

    Raises:
        ModelLoadError: If transformers cannot load it, or a tensor is missing from its files.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: Any, runtime: Runtime, max_length: int
    ) -> None:
        self._device = torch.device(runtime.device)
        self._dtype = DTYPES[runtime.precision]
        self._max_length = max_length
        self._is_siglip = config.model_type.startswith("siglip")
        options = {"local_files_only": True, **checkpoint.code_options}
        try:
            with quiet_loading():  # what it reports is checked here, and more strictly
                network, report = AutoModel.from_pretrained(
                    checkpoint.folder, dtype=self._dtype, output_loading_info=True, **options
                )
            # Pillow's, also where torchvision is installed: the two resize differently.
            self._processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                checkpoint.folder, backend="pil", **options
            )
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **options)
        except Exception as error:  # of whatever kind the libraries raise
            raise checkpoint.problem(f"transformers cannot load it: {error}") from error
        if missing := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise checkpoint.problem(
                f"{len(missing)} tensors are missing from its files or of another shape, the first "
                f"{missing[0]}"
            )
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise checkpoint.problem(f"{type(network).__name__} embeds no images beside texts")
        self.network: torch.nn.Module = network.to(self._device).eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # truncation is a setting of the Rust tokenizer
        try:
            self.dimension = self._probed()
        except Exception as error:
            raise checkpoint.problem(f"its parts do not fit together: {error}") from error

    def _probed(self) -> int:
        """The width of the vectors, after one text and two images have gone through.

        Raises:
            ValueError: If texts and images differ in width, images in size, or words in nothing.
        """
        if self.split("fox") == self.split("dog"):
            raise ValueError("its tokenizer knows no words")
        shapes = [Image.new("RGB", size) for size in ((48, 32), (32, 48))]
        images = self.images([self.prepare(image, 10**9, "a probe") for image in shapes])
        texts, _ = self.texts(["fox"])
        if images.shape[1] != texts.shape[1]:
            raise ValueError(f"images get {images.shape[1]} dimensions, texts {texts.shape[1]}")
        return int(texts.shape[1])

    def prepare(self, image: Image.Image, max_pixels: int, name: str) -> dict[str, torch.Tensor]:
        """What the network takes of one RGB image, each tensor (1, ...).

        CLIP scales the whole image before it crops: a small file of 1 x 60,000 pixels would become
        one of 224 x 13 million.

        Raises:
            InputError: If the image is so long and narrow that scaling its short side up to the
                model's size would take more than `max_pixels`.
        """
        edge = (getattr(self._processor, "size", None) or {}).get("shortest_edge")
        if edge:
            scaled = image.width * image.height * (edge / min(image.size)) ** 2
            if scaled > max(max_pixels, _SQUARES * edge**2):
                raise InputError(
                    f"{name} is too long and narrow ({image.width:,} x {image.height:,}): with its "
                    f"short side scaled to {edge}, as the model needs it, it would have "
                    f"{scaled:,.0f} pixels, of {max_pixels:,} allowed. Crop it"
                )
        return dict(self._processor(images=[image], return_tensors="pt"))

    def images(self, prepared: list[dict[str, torch.Tensor]]) -> FloatArray:
        """Vectors of prepared images, float32 (n, d)."""
        inputs = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        return self._run("get_image_features", inputs)

    def texts(self, texts: list[str]) -> tuple[FloatArray, int]:
        """Vectors of texts, float32 (n, d), and how many of them were cut."""
        with self._tokenizer_lock:
            starts = [start_of(text, self._max_length) for text in texts]
            lengths = [len(ids) for ids in self._tokenizer(starts, verbose=False)["input_ids"]]
            for i, text in enumerate(texts):
                if lengths[i] <= self._max_length and len(starts[i]) < len(text):
                    starts[i] = text
                    lengths[i] = len(self._tokenizer(text, verbose=False)["input_ids"])
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
        return self._run("get_text_features", inputs), truncated

    def split(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens."""
        with self._tokenizer_lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
        return ids

    def _run(self, method: str, inputs: Any) -> FloatArray:
        moved = {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        with self._lock, torch.inference_mode():
            out = getattr(self.network, method)(**moved)
            vectors = getattr(out, "pooler_output", out)
            return heads.normalise(vectors.float().cpu().numpy())
