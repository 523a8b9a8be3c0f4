# syntax=docker/dockerfile:1
# For a CPU: docker build -t bertgpt .
# For an NVIDIA GPU: docker build -t bertgpt --build-arg EXTRA=cuda .   (or cuda13; CUDA comes with JAX's packages)
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY bertgpt bertgpt
COPY train train
COPY configs configs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.12-slim
ARG EXTRA=""
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --no-cache-dir "$(echo /dist/bertgpt-*.whl)[train,tasks${EXTRA:+,$EXTRA}]"
# Huge pages are faster on a CPU (docs/performance.md). With HOME, caches are in the mounted folder under any --user.
ENV GLIBC_TUNABLES=glibc.malloc.hugetlb=1 HOME=/work
RUN useradd --uid 1000 --home-dir /work --create-home bertgpt
USER 1000
WORKDIR /work
ENTRYPOINT ["bertgpt"]
CMD ["--help"]
