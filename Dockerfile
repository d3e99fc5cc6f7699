# syntax=docker/dockerfile:1
# Everything that the project needs, for a checkout mounted at /project (docs/scaling.md).
#   CPU:   docker build -t gpt-pipeline .
#   CUDA:  docker build -t gpt-pipeline --build-arg TORCH_INDEX= .
# BASE may be any image of Debian or Ubuntu with Python 3.11 or later, such as one of nvidia/cuda.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# Where torch comes from: the index of PyTorch's CPU build; empty for PyPI, whose build brings the CUDA libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=huggingface,parquet,zstd,documents
# The user that owns the mounted files: --build-arg UID=$(id -u).
ARG UID=1000

# git for DVC, g++ and Python's headers for torch.compile.
# hadolint ignore=DL3008,SC2046
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
       $(command -v python3 > /dev/null || echo python3-dev python3-venv) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --non-unique --uid "${UID}" --create-home --shell /bin/bash pipeline \
    && install --directory --owner pipeline /project /venv

USER ${UID}
WORKDIR /project
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

COPY --chown=pipeline constraints.txt pyproject.toml README.md LICENSE ./
COPY --chown=pipeline pipeline pipeline
RUN --mount=type=cache,target=/tmp/.cache/pip,mode=0777 \
    export PIP_CACHE_DIR=/tmp/.cache/pip \
    && python3 -m venv /venv \
    && pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch \
    && pip install --constraint constraints.txt --editable ".[${EXTRAS}]"

CMD ["bash"]
