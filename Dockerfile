# The image of the chart: the release that stasis-node puts on the node, and what the pods run.
#
#   docker build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) -t REGISTRY/stasis/node:0.1.0 .

FROM debian:bookworm AS build
# What the programs are built from; the tests need more, see e2e/setup.sh.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++ cmake ninja-build pkgconf file patchelf \
    libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev libnghttp2-dev \
    libcpprest-dev libarchive-dev libseccomp-dev libssl-dev libzstd-dev libxxhash-dev libcap-dev \
    nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev
WORKDIR /src
COPY . .
ARG SOURCE_DATE_EPOCH=0
RUN cmake --preset release -DSTASIS_TESTS=OFF && cmake --build --preset release && \
    mkdir -p /opt/stasis/releases && release=$(deploy/bundle.sh build/bin /opt/stasis/releases) && \
    ln -s "releases/${release##*/}" /opt/stasis/current

FROM debian:bookworm-slim
# systemctl speaks to the node's systemd; curl and the certificates are for uninstall-nodes.
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends systemd curl ca-certificates && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /opt/stasis /opt/stasis
COPY deploy/image/uninstall-nodes /usr/local/bin/uninstall-nodes
ENTRYPOINT ["/opt/stasis/current/bin/stasis-node"]
CMD ["--help"]
