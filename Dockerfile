# The images of fewstep, one target each; build from the top of the repository:
#   serve      the server with ONNX Runtime on the CPU        docker build --target serve -t fewstep/serve .
#   serve-gpu  the server with TensorRT on an NVIDIA GPU
#   serve-ray  the server as a Ray Serve application
#   distill    the trainer with PyTorch, and what runs jobs
# They run as user 10001, write under /data and /tmp only, and so work with a read-only root file system.

# Pin it with its digest: --build-arg PYTHON_IMAGE=python:3.11-slim@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim

# ---- what all images are installed with; nothing of it is in them
FROM ${PYTHON_IMAGE} AS installer
# Addresses of a package mirror. One that needs a password goes into a pip.conf, and that into
# --secret id=pip,src=pip.conf: build arguments can be read from the build's history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    python -m venv --without-pip /opt/fewstep \
    && python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --quiet cyclonedx-bom==7.5.0
COPY --chmod=0755 deploy/image/add-fewstep.sh /usr/local/bin/add-fewstep
COPY pyproject.toml constraints.txt ./
# An empty package with the same dependencies: a changed source file leaves their layers as they are.
RUN touch README.md LICENSE && mkdir distill engines fewstep service

FROM installer AS wheel
COPY README.md LICENSE ./
COPY distill distill
COPY engines engines
COPY fewstep fewstep
COPY service service
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip wheel --quiet --no-deps --wheel-dir /wheel .

# ---- an environment for each image, with a list of what is in it
FROM installer AS serve-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/fewstep install --quiet --constraint constraints.txt '.[otel,postgresql,s3]'
RUN --mount=from=wheel,source=/wheel,target=/wheel add-fewstep

FROM installer AS serve-gpu-environment
# tensorrt for data-centre GPUs; tensorrt-rtx for GeForce RTX and RTX PRO.
ARG GPU_EXTRA=tensorrt
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/fewstep install --quiet --constraint constraints.txt ".[otel,postgresql,s3,${GPU_EXTRA}]"
RUN --mount=from=wheel,source=/wheel,target=/wheel add-fewstep

FROM installer AS serve-ray-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/fewstep install --quiet --constraint constraints.txt '.[otel,postgresql,s3,ray]'
RUN --mount=from=wheel,source=/wheel,target=/wheel add-fewstep

FROM installer AS distill-environment
# torch first and on its own: an index that has a CPU build then is not asked for anything larger.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/fewstep install --quiet --constraint constraints.txt torch
# hadolint ignore=DL3059
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip --python /opt/fewstep install --quiet --constraint constraints.txt '.[distill,ray,postgresql,s3]'
RUN --mount=from=wheel,source=/wheel,target=/wheel add-fewstep

# ---- what all images run on
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 fewstep \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin fewstep \
    && install --directory --owner=10001 --group=10001 --mode=0750 /data
COPY --chmod=0755 deploy/image/ready.py /usr/local/bin/fewstep-ready
# Login shells set PATH anew; KubeRay may be told to use one.
RUN echo 'PATH=/opt/fewstep/bin:$PATH' >/etc/profile.d/fewstep.sh
ENV PATH=/opt/fewstep/bin:$PATH \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FEWSTEP_HOST=0.0.0.0 \
    FEWSTEP_PORT=8000 \
    FEWSTEP_DATA_DIR=/data \
    FEWSTEP_LOG_FORMAT=json
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="fewstep" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      fewstep.sbom="/opt/fewstep/share/sbom.cdx.json"
WORKDIR /data
VOLUME /data
USER 10001:10001
ENTRYPOINT ["fewstep"]

FROM runtime AS server
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --start-interval=1s --retries=3 CMD ["fewstep-ready"]
CMD ["serve"]

FROM server AS serve-gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.description="Few-step image generation behind the OpenAI Images API, with TensorRT"
COPY --from=serve-gpu-environment /opt/fewstep /opt/fewstep

FROM runtime AS serve-ray
COPY --chmod=0755 deploy/image/ray_head.py /usr/local/bin/fewstep-ray-head
LABEL org.opencontainers.image.description="Few-step image generation as a Ray Serve application"
COPY --from=serve-ray-environment /opt/fewstep /opt/fewstep

FROM runtime AS distill
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.description="Turns flow-matching teachers into few-step students"
COPY --from=distill-environment /opt/fewstep /opt/fewstep
CMD ["--help"]

# The last one is what a build without --target makes.
FROM server AS serve
LABEL org.opencontainers.image.description="Few-step image generation behind the OpenAI Images API"
COPY --from=serve-environment /opt/fewstep /opt/fewstep
