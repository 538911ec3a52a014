# The image of every Tidegate process: gateway, router, storm. It needs BuildKit: Docker 23 or newer, or Docker 20.10
# with DOCKER_BUILDKIT=1; Podman and Buildah work too. For one platform or both:
#
#   docker build --tag tidegate .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag tidegate .
#
# The binary is stripped; its symbols, for a debugger or `perf`, are a target of their own:
#
#   docker build --target symbols --output symbols .
#
# The compiler runs on the architecture of the machine that builds and compiles for the other: nothing is emulated.

# That of rust-toolchain.toml; a test compares them.
ARG RUST_VERSION=1.95.0
# The images that this one is built from. A release gives them with their digests (`NAME@sha256:…`), and a machine
# without a way to the registries gives its mirror's.
ARG RUST_IMAGE=rust:${RUST_VERSION}-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS toolchain
ARG RUST_VERSION
# Before rust-toolchain.toml, which asks for components that a build does not need.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}
WORKDIR /src

# Both names of a linker exist on either machine: one is its own compiler, the other the cross-compiler.
FROM toolchain AS toolchain-amd64
ENV CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CROSS_COMPILER=gcc-x86-64-linux-gnu \
    CROSS_LIBC=libc6-dev-amd64-cross \
    OBJCOPY=x86_64-linux-gnu-objcopy

# Pages of arm64 machines may have 64 KiB (2^16), and jemalloc must know the largest when it is built.
FROM toolchain AS toolchain-arm64
ENV CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CROSS_COMPILER=gcc-aarch64-linux-gnu \
    CROSS_LIBC=libc6-dev-arm64-cross \
    OBJCOPY=aarch64-linux-gnu-objcopy \
    JEMALLOC_SYS_WITH_LG_PAGE=16

# The name of a stage above, not of an image.
# hadolint ignore=DL3006
FROM toolchain-${TARGETARCH} AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
# The versions are those of the base image's Debian release.
# hadolint ignore=DL3008
RUN if [ "$BUILDARCH" != "$TARGETARCH" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends "$CROSS_COMPILER" "$CROSS_LIBC" \
        && rm -rf /var/lib/apt/lists/* \
        && rustup target add "$CARGO_BUILD_TARGET"; \
    fi
COPY . .
# What was compiled stays in a cache of the builder, so that a change compiles only what it touches. Function names stay
# for the back-trace of a panic; line tables, most of the size, go beside.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --package tidegate --bin tidegate \
    && built="target/$CARGO_BUILD_TARGET/release/tidegate" \
    && install -d /out /symbols \
    && "$OBJCOPY" --only-keep-debug --compress-debug-sections "$built" /symbols/tidegate.debug \
    && "$OBJCOPY" --strip-debug --add-gnu-debuglink=/symbols/tidegate.debug "$built" /out/tidegate \
    && chmod 0555 /out/tidegate

FROM scratch AS symbols
COPY --from=build /symbols/tidegate.debug /

# glibc, the authorities of TLS, and no shell.
# hadolint ignore=DL3006
FROM ${RUNTIME_IMAGE}
ARG RUNTIME_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Tidegate" \
      org.opencontainers.image.description="A WebSocket gateway that scales out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${RUNTIME_IMAGE}"
COPY --from=build /out/tidegate /usr/local/bin/tidegate
# By number, so that Kubernetes can see that it is not root. Nothing is written: the root may be read-only.
USER 65532:65532
# Public and internal port of a gateway, and of a router.
EXPOSE 8000 9000 8080 9080
STOPSIGNAL SIGTERM
# Alive, not ready: some orchestrators end what is unhealthy, and a gateway whose Redis is away must live on. The port
# is that of whatever runs here, gateway or router.
HEALTHCHECK --interval=10s --timeout=4s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/tidegate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["gateway", "--listen", "0.0.0.0:8000", "--internal", "0.0.0.0:9000"]
