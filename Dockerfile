# An image with the commands, for one kind of device:
#
#   docker build --tag fmboost --build-arg DEVICE=cpu .        cpu, cuda or tpu
#   docker run --rm --volume "$PWD:/work" fmboost sample photo.jpg
#   docker run --rm --publish 127.0.0.1:7860:7860 fmboost web --host 0.0.0.0
#   docker run --rm --gpus all …                               cuda
#   docker run --rm --privileged --net=host …                  tpu, on a TPU VM
FROM python:3.11-slim-bookworm
ARG DEVICE=cpu
COPY . /opt/fmboost_jax
RUN bash /opt/fmboost_jax/launch/install.sh "$DEVICE"
WORKDIR /work
ENTRYPOINT ["fmboost"]
CMD ["--help"]
