# syntax=docker/dockerfile:1
# The service, on a CPU (target "service", the default) or on an NVIDIA GPU (target "gpu"):
#     docker build -f deploy/service.Dockerfile -t unified-embeddings .
#     docker build -f deploy/service.Dockerfile --target gpu -t unified-embeddings:gpu .
# It runs with a read-only root file system, given a volume at /cache and a tmpfs at /tmp.
ARG PYTHON=3.11.14-slim-bookworm

# --- building -------------------------------------------------------------------------------------
FROM python:${PYTHON} AS sources
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml README.md LICENSE constraints.txt ./

# PyTorch first: it is most of the image, and seldom changes.
FROM sources AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt --index-url "${TORCH_INDEX}" torch
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt '.[demo,onnx,serve]'

# PyTorch for CUDA brings NVIDIA's libraries with it; the driver is the host's.
FROM sources AS build-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt torch
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt '.[demo,onnx,serve]'

# --- running --------------------------------------------------------------------------------------
FROM python:${PYTHON} AS runtime
RUN useradd --uid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin service \
    && install -d -o service -g service /cache
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    UNIFIED_EMBEDDINGS_HOST=0.0.0.0 \
    UNIFIED_EMBEDDINGS_PORT=8000
WORKDIR /cache
USER 10001:10001
VOLUME ["/cache"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"UNIFIED_EMBEDDINGS_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["unified-embeddings"]
CMD ["serve"]

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/venv /opt/venv

FROM runtime AS service
COPY --from=build-cpu /opt/venv /opt/venv
