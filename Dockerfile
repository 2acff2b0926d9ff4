FROM python:3.13-slim
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /app
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --no-cache
COPY shared shared
COPY gateway gateway
COPY worker worker
RUN useradd --system --no-create-home inkwell
USER inkwell
CMD ["python", "-m", "gateway"]
