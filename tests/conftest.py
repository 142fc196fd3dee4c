"""Checkpoints made once a test run, and an environment without network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of each would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import pytest
from hypothesis import settings

import checkpoints

settings.register_profile("without a clock", deadline=None)  # the machine may be busy
settings.load_profile("without a clock")

XQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "xquad_r" / "en"


@pytest.fixture(scope="session")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random XLM-RoBERTa in BGE-M3's layout, cls pooling."""
    return checkpoints.xlm_roberta(tmp_path_factory.mktemp("models") / "xlmr")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP: 24 dimensions, images of 32 x 32."""
    return checkpoints.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT in BGE-M3's layout, mean pooling."""
    return checkpoints.bert(tmp_path_factory.mktemp("models") / "bert")
