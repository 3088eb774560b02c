# An image for every node of a cluster: the same code, at the same path. docs/cluster.md says how it is used.
FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist

FROM python:3.11-slim
# wget: KubeRay's health probes ask with it. g++, with gcc: torch compiles losses, also for a GPU
RUN apt-get update && apt-get install --no-install-recommends -y g++ wget && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/requirements.lock
COPY --from=build /dist /dist
RUN pip install --no-cache-dir -c /tmp/requirements.lock /dist/*.whl && rm -rf /dist /tmp/requirements.lock
RUN useradd --create-home ray
USER ray
WORKDIR /home/ray
# Decoded images of a node: mount a local disk here, so that they outlive a pod.
ENV KDBENCH_CACHE=/home/ray/cache
CMD ["kdbench", "--help"]
