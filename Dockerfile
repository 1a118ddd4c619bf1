# docker build --target cpu -t lorikeet:cpu .     docker run -p 8000:8000 -v lorikeet:/app/var lorikeet:cpu
# docker build --target gpu -t lorikeet:gpu .     docker run --gpus all -p 8000:8000 -v lorikeet:/app/var lorikeet:gpu
#
# The volume holds the prepared bases, the adapters and the API keys, without which the server answers nobody from outside
# its container. Fill it with the same image, for instance
#   docker run -v lorikeet:/app/var lorikeet:cpu lorikeet demo
#   docker run -v lorikeet:/app/var lorikeet:cpu lorikeet keys create me
# Prometheus needs an admin key, or a `metrics_port` with `metrics_host: 0.0.0.0` in serve.yaml and a network for it alone: docs/metrics.md

FROM python:3.11-slim AS source
# g++: our LoRA operator is compiled on a CPU, and torch.compile builds C++ where vLLM uses it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home lorikeet && mkdir -p /app/var && chown -R lorikeet /app
USER lorikeet
WORKDIR /app
COPY --chown=lorikeet . .
ENV PATH=/app/.venv/bin:$PATH LORIKEET_HOME=/app/var VLLM_CACHE_ROOT=/app/var/cache PIP_NO_CACHE_DIR=1
VOLUME /app/var
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
CMD ["lorikeet", "serve", "config/serve.yaml", "--host", "0.0.0.0"]

FROM source AS gpu
RUN LORIKEET_DEVICE=gpu scripts/setup.sh

FROM source AS cpu
RUN LORIKEET_DEVICE=cpu scripts/setup.sh
