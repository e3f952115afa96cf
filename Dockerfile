FROM python:3.11-slim

# What torch computes on: cpu, or a CUDA release such as cu130. The plain package brings several GB
# of CUDA libraries, which a page or a scheduler has no use for.
ARG TORCH=cpu

WORKDIR /head-catalog
# uv knows where each build of torch lies; pip would have to be told.
RUN pip install --no-cache-dir uv==0.13.9
# The packages first: a change to our own code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --system --no-cache --torch-backend "$TORCH" --constraint constraints.txt \
    --requirement pyproject.toml --extra service
COPY . .
RUN uv pip install --system --no-cache --no-deps .

# Files from the Hub come from others: what reads them owns nothing but these two folders, which
# hand their owner on to the volumes mounted there.
RUN useradd --create-home heads && install --directory --owner heads \
    /var/lib/heads/hub /var/lib/heads/work
ENV HF_HOME=/var/lib/heads/hub \
    HEADS_WORK_DIR=/var/lib/heads/work \
    PYTHONUNBUFFERED=1
USER heads
WORKDIR /home/heads
CMD ["heads", "--help"]
