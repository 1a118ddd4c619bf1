# docker build --target cpu -t lorikeet:cpu .               a CPU, no compiler in the image
# docker build --target cpu-compiler -t lorikeet:cpu .      a CPU, with g++: torch.compile gives 1.7 times the tokens per second
# docker build --target gpu -t lorikeet:gpu .               a CUDA GPU, with gcc, which Triton calls at run time
# Never built where it was written (no Docker engine there): docs/operate.md says what was checked.
#
# The volume holds the prepared bases, the adapters and the API keys, without which the server answers nobody from outside
# its container. Fill it with the same image:
#   docker run -v lorikeet:/app/var lorikeet:cpu lorikeet base prepare
#   docker run --rm -v lorikeet:/app/var lorikeet:cpu lorikeet keys create me
#   docker run --read-only --tmpfs /tmp --shm-size 1g -p 127.0.0.1:8000:8000 -v lorikeet:/app/var lorikeet:cpu
# Bill of materials, of Debian's packages and Python's (CycloneDX):
#   docker run --rm -v /var/run/docker.sock:/var/run/docker.sock anchore/syft:v1.20.0 lorikeet:cpu -o cyclonedx-json > sbom.json
# Instructions are ordered by what changes least: system packages, locked packages, our code.

FROM python:3.11.14-slim-bookworm AS base
# libgomp1: our operators; libnuma1: vLLM's; wget: the health checks that KubeRay adds.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home lorikeet \
    && echo 'PATH=/app/.venv/bin:$PATH' > /etc/profile.d/lorikeet.sh
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH LORIKEET_HOME=/app/var HOME=/tmp \
    TORCH_EXTENSIONS_DIR=/app/kernels VLLM_CACHE_ROOT=/app/var/cache TRITON_CACHE_DIR=/app/var/cache/triton

FROM base AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1
COPY scripts scripts
COPY pyproject.toml ./
COPY requirements requirements

FROM build AS build-cpu
ENV LORIKEET_DEVICE=cpu
RUN scripts/setup.sh packages
COPY . .
# Our operators are compiled here, for every kind of CPU; then what only tests need goes.
RUN scripts/setup.sh && .venv/bin/python -m pip uninstall --yes $(.venv/bin/python requirements/unneeded.py cpu)

FROM build AS build-gpu
ENV LORIKEET_DEVICE=gpu
RUN scripts/setup.sh packages
COPY . .
RUN scripts/setup.sh && .venv/bin/python -m pip uninstall --yes $(.venv/bin/python requirements/unneeded.py gpu)

# Of each image: /app belongs to root, so the server's user writes to the volume and to /tmp alone.
FROM base AS gpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /app /app
RUN install --directory --owner lorikeet --group lorikeet --mode 700 /app/var
VOLUME /app/var
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=3)"]
CMD ["lorikeet", "serve", "config/serve.yaml", "--host", "0.0.0.0"]

FROM base AS cpu
COPY --from=build-cpu /app /app
RUN install --directory --owner lorikeet --group lorikeet --mode 700 /app/var
VOLUME /app/var
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=3)"]
CMD ["lorikeet", "serve", "config/serve.yaml", "--host", "0.0.0.0"]

FROM cpu AS cpu-compiler
USER root
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
USER 10001
