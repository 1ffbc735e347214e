# Two images; recipes, prompt lists and the toy world come with the package.
#
#     docker build --target cpu -t directalign:cpu .        docker build -t directalign .
#     docker run --rm -v "$PWD:/data" directalign:cpu demo --quick
#     docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" directalign train flux_srpo_lora_24gb
#
# Models are downloaded into /data/.cache; for gated ones add -e HF_TOKEN.
FROM python:3.12-slim AS base
RUN pip install --no-cache-dir uv
ENV PATH=/opt/venv/bin:$PATH UV_PROJECT_ENVIRONMENT=/opt/venv UV_LINK_MODE=copy UV_NO_CACHE=1 \
    PYTHONUNBUFFERED=1 HF_HOME=/data/.cache/huggingface XDG_CACHE_HOME=/data/.cache
WORKDIR /source
COPY pyproject.toml uv.lock constraints-cpu.txt README.md LICENSE NOTICE ./
COPY src src

# Without CUDA's libraries: a tenth of the size.
FROM base AS cpu
RUN uv venv /opt/venv \
    && uv pip install --python /opt/venv --torch-backend cpu -c constraints-cpu.txt '.[arena,data]'
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["directalign"]

# The locked versions. CUDA's runtime libraries are those of PyTorch's own wheels; the driver is the host's (--gpus all).
FROM base AS cuda
# a C compiler, for the kernels of model.compile
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN uv sync --locked --no-editable --extra arena --extra data --extra quantize
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["directalign"]
