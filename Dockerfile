# The experiment container. It holds tools only: the checkout is mounted at /workspace, and `poetry install` builds the
# environment from poetry.lock in a named volume. Build and start it with env_shell/start_experiment_container.sh.
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends git curl build-essential \
    && rm -rf /var/lib/apt/lists/*

# Poetry in an environment of its own, apart from the base image's Python packages and from the project's.
ARG POETRY_VERSION=2.5.1
RUN curl -sSL https://install.python-poetry.org | POETRY_HOME=/opt/poetry POETRY_VERSION=${POETRY_VERSION} python3 - \
    && ln -s /opt/poetry/bin/poetry /usr/local/bin/poetry

# The container runs as whoever calls it (files in the checkout stay theirs), so its home is writable for everyone.
# A named volume mounted here takes over this mode when it is first used.
RUN mkdir -p /home/anyo /hf-cache && chmod 1777 /home/anyo /hf-cache \
    && git config --system --add safe.directory /workspace

# in-project false: a .venv of the host, which lies in the mounted checkout, is never picked up.
ENV ANYO_IN_CONTAINER=1 \
    HOME=/home/anyo \
    HF_HOME=/hf-cache \
    LANG=C.UTF-8 \
    POETRY_NO_INTERACTION=1 \
    POETRY_VIRTUALENVS_IN_PROJECT=false \
    POETRY_VIRTUALENVS_PATH=/home/anyo/virtualenvs \
    ANYO_DASHBOARD_HOST=0.0.0.0

WORKDIR /workspace
CMD ["bash"]
