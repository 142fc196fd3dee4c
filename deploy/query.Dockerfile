# syntax=docker/dockerfile:1
# The light endpoint for queries: ONNX Runtime on a CPU, without PyTorch. With the model inside
# (target "baked", the default), converted while the image is built:
#     docker build -f deploy/query.Dockerfile -t unified-embeddings-query .
# or without (target "query"); then mount a folder that export-onnx wrote at /models/export:
#     docker build -f deploy/query.Dockerfile --target query -t unified-embeddings-query:bare .
# It runs with a read-only root file system, given a tmpfs at /tmp.
ARG PYTHON=3.11.14-slim-bookworm

# --- the model, converted -------------------------------------------------------------------------
FROM python:${PYTHON} AS export
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml README.md LICENSE constraints.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt --index-url "${TORCH_INDEX}" torch
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt '.[demo,onnx]'
ARG MODEL=bge-m3
ARG PRECISION=int8
RUN --mount=type=cache,target=/root/.cache/huggingface \
    unified-embeddings export-onnx "${MODEL}" /models/export --precision "${PRECISION}"

# --- the libraries --------------------------------------------------------------------------------
FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements/query.txt requirements/query.txt
# The lock file is complete, so nothing that these libraries name in addition comes along.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps -r requirements/query.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .

# --- running --------------------------------------------------------------------------------------
FROM python:${PYTHON} AS query
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin service
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    UNIFIED_EMBEDDINGS_HOST=0.0.0.0 \
    UNIFIED_EMBEDDINGS_PORT=8000
COPY --from=build /opt/venv /opt/venv
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"UNIFIED_EMBEDDINGS_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["unified-embeddings"]
CMD ["serve-query", "--model", "/models/export"]

FROM query AS baked
COPY --from=export --chown=10001:10001 /models/export /models/export
