# Train, evaluate and serve on a CPU:
#   docker build -t penspin_style .
#   docker run --rm -v "$PWD/outputs:/data/outputs" penspin_style train task=panda_lift_cube
# With a GPU, give the container one: --gpus all.
FROM python:3.12-slim-bookworm

# OpenGL without a display, for videos
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MUJOCO_GL=egl
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY cfg cfg
COPY penspin_style penspin_style
COPY tasks tasks
COPY real real
COPY outputs/pretrained outputs/pretrained
# as the index of the CPU wheels of torch, which are a tenth of the others
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install ".[plot,viewer]"

RUN useradd --create-home user && mkdir /data && chown user /data
USER user
WORKDIR /data
ENTRYPOINT ["penspin"]
CMD ["--help"]
