"""Random checkpoints of the true architectures, small enough to make in every test run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram, WordPiece
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog while the band plays on and on.",
    "Retrieval finds documents; ranking orders them; fusion merges two rankings into one.",
    "Привет, мир! Быстрая коричневая лиса прыгает через ленивую собаку.",
    "你好,世界。敏捷的棕色狐狸跳过了懒狗。検索は文書を見つける。",
    "مرحبا بالعالم، الثعلب البني السريع يقفز فوق الكلب الكسول",
    "नमस्ते दुनिया, तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "Γειά σου Κόσμε. Η γρήγορη καφέ αλεπού πηδάει. 0123456789 !?.,;:-()[]{}'\"",
]
WIDTH = 32
XLMR_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def xlm_roberta(
    folder: Path,
    *,
    seed: int = 0,
    weights: str = "safetensors",
    layers: int = 2,
    width: int = WIDTH,
) -> Path:
    """A random XLM-RoBERTa with BGE-M3's heads; weights "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(Unigram(_pieces(), unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(XLMR_SPECIALS)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
            "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
            "model_max_length": 8192,
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=514,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False)
    config.architectures = ["XLMRobertaModel"]
    config.save_pretrained(folder)
    _save_weights(model, folder, weights)
    _save_heads(folder, width)
    return folder


def _pieces() -> list[tuple[str, float]]:
    """A Unigram vocabulary: the corpus' words and characters, the longer the likelier."""
    words = {f"▁{word}" for line in CORPUS for word in line.split()}
    characters = {"▁", *"".join(CORPUS)} - {" "}
    pieces = [(piece, -1.0 - 1.0 / len(piece)) for piece in sorted(words)]
    pieces += [(piece, -5.0) for piece in sorted(characters - words)]
    return [(special, 0.0) for special in XLMR_SPECIALS] + pieces


def bert(folder: Path, *, seed: int = 0) -> Path:
    """A random BERT with mean pooling and BGE-M3's heads, in sentence-transformers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for line in CORPUS for word in line.lower().split()})
    letters = sorted({*"".join(words)})
    vocabulary = [*BERT_SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary += [word for word in words if len(word) > 1]
    tokenizer = Tokenizer(
        WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(BERT_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # Padding and truncation in the file itself, as all-MiniLM-L6-v2 has them: to be overridden.
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
            "mask_token": "[MASK]", "model_max_length": 256,
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=300,
        pad_token_id=0,
        initializer_range=0.2,
    )
    config.architectures = ["BertModel"]
    config.save_pretrained(folder)
    _save_weights(BertModel(config, add_pooling_layer=False), folder, "safetensors")
    _save_heads(folder)
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True,
         "pooling_mode_cls_token": False},
    )  # fmt: skip
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    _write(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling",
             "type": "sentence_transformers.models.Pooling"},
        ],
    )  # fmt: skip
    return folder


def sentence_model(
    folder: Path, kind: str, *, pooling: str = "mean", normalise: bool = True, limit: int = 256
) -> Path:
    """A random model of another architecture in sentence-transformers' layout, without heads.

    kind: "bert", "bert-multilingual" (the XLM-R vocabulary), "xlmr", "mpnet", "nomic" (the one
    transformers has: without experts), "jina" (with two LoRA adapters), "splade".
    """
    base = xlm_roberta if kind in ("xlmr", "bert-multilingual", "jina") else bert
    base(folder)
    for name in ("sparse_linear.pt", "colbert_linear.pt", "model.safetensors"):
        (folder / name).unlink()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(3)
    shared = {
        "vocab_size": size, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "xlmr":
        config = XLMRobertaConfig.from_pretrained(folder)
        model = XLMRobertaModel(config)
    elif kind in ("bert", "bert-multilingual"):
        config = BertConfig(**shared, max_position_embeddings=300, pad_token_id=0)
        model = BertModel(config)
    elif kind == "mpnet":
        config = MPNetConfig(**shared, max_position_embeddings=300, pad_token_id=1)
        model = MPNetModel(config)
    elif kind == "nomic":
        config = NomicBertConfig(**shared, max_position_embeddings=300)
        model = NomicBertModel(config)
    elif kind == "jina":
        config = JinaEmbeddingsV3Config(**shared, max_position_embeddings=302)
        model = JinaEmbeddingsV3Model(config)
    else:
        assert kind == "splade"
        config = BertConfig(**shared, max_position_embeddings=300, pad_token_id=0)
        model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    if kind == "jina":
        for seed, name in enumerate(("retrieval_query", "retrieval_passage")):
            _save_adapter(JinaEmbeddingsV3Model.from_pretrained(folder), folder, name, seed)
    shutil.rmtree(folder / "1_Pooling", ignore_errors=True)
    if kind == "splade":
        for name in ("modules.json", "sentence_bert_config.json"):
            (folder / name).unlink()
        return folder
    types = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "",
             "type": f"sentence_transformers.models.{name}"}
            for i, name in enumerate(types)
        ],
    )  # fmt: skip
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": pooling == "mean",
         "pooling_mode_cls_token": pooling == "cls"},
    )  # fmt: skip
    _write(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    return folder


def clip(folder: Path, *, seed: int = 0) -> Path:
    """A tiny random CLIP with a byte-level vocabulary: 24 dimensions, images of 32 x 32."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokens = sorted(letters) + [f"{letter}</w>" for letter in sorted(letters)]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    size = len(tokens) + len(specials)
    vocabulary = {token: i for i, token in enumerate([*tokens, *specials])}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    torch.manual_seed(seed)
    ends = {
        "vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }  # fmt: skip
    tiny = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "initializer_range": 0.2, "initializer_factor": 10.0,
    }  # fmt: skip
    config = CLIPConfig(
        text_config={**tiny, **ends},
        vision_config={**tiny, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    CLIPModel(config).eval().save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A tiny random SigLIP with a byte-level vocabulary of CLIP's form."""
    clip(folder)
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    torch.manual_seed(2)
    tiny = {
        "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    config = SiglipConfig(
        text_config={**tiny, "vocab_size": size, "max_position_embeddings": 16,
                     "eos_token_id": size - 1, "bos_token_id": size - 2, "pad_token_id": size - 1},
        vision_config={**tiny, "image_size": 32, "patch_size": 8},
    )  # fmt: skip
    SiglipModel(config).save_pretrained(folder)
    size_of = {"height": 32, "width": 32}
    SiglipImageProcessorPil(size=size_of).save_pretrained(folder)
    return folder


def _save_adapter(model: torch.nn.Module, folder: Path, name: str, seed: int) -> None:
    from peft import LoraConfig, get_peft_model  # Here, since it takes two seconds.

    torch.manual_seed(10 + seed)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora, adapter_name="default").save_pretrained(folder / name)


def _save_weights(model: torch.nn.Module, folder: Path, form: str) -> None:
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _save_heads(folder: Path, width: int = WIDTH) -> None:
    sparse, colbert = torch.nn.Linear(width, 1), torch.nn.Linear(width, width)
    torch.nn.init.normal_(sparse.weight, std=0.3)
    torch.nn.init.constant_(sparse.bias, 1.0)  # most tokens get a weight, some get none
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
