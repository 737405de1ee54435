# One image for both programs: `python -m receiver`, the default, and `python -m worker`.
# SECURITY.md says how to pin the base image by digest.

FROM python:3.13-slim AS build
WORKDIR /src
# What the project needs has a layer of its own: a change of code does not install it again.
COPY pyproject.toml .
# The base image's pip fills the environment from outside: a pip of its own would only be carried along.
RUN python -m venv --without-pip /venv && python -c 'import tomllib; \
    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >/requirements.txt && \
    pip --python /venv install --no-cache-dir -r /requirements.txt
COPY . .
RUN pip --python /venv install --no-cache-dir .

FROM python:3.13-slim
COPY --from=build /venv /venv
# A new named volume takes its owner from the directory it is mounted on: the user below can write to it.
RUN install --directory --owner=10006 --group=10006 /journal
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PRESENCE_JOURNAL_DIR=/journal
# A number and not a name, since Kubernetes' runAsNonRoot cannot tell which user a name means.
USER 10006:10006
EXPOSE 10006
CMD ["python", "-m", "receiver"]
