# Build and run stage are the same Python, or compiled packages would not load.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY requirements/server.txt requirements/server.txt
RUN python -m pip install --no-cache-dir --require-hashes --only-binary=:all: --target=/packages -r requirements/server.txt
COPY function/ /packages/function/
RUN python -m compileall -q -o 2 /packages

# No compiler and no pip in what runs.
FROM python:3.13-slim-bookworm
RUN python -m pip uninstall -qy pip \
    && rm -rf /usr/local/lib/python3.13/ensurepip
COPY --from=build /packages /packages
# Docstrings and the allocator's further arenas are 3 of 62 MiB.
ENV PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONOPTIMIZE=2 MALLOC_ARENA_MAX=1
# Python's own modules come compiled with their docstrings.
RUN PYTHONDONTWRITEBYTECODE= python -m function --help > /dev/null
USER 65532:65532
EXPOSE 9443
ENTRYPOINT ["python", "-m", "function"]
