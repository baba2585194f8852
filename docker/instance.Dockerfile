# The MCP server of one user. Built from source by default; with SDP_PREBUILT=1 it takes instance/dist as made on the
# host by `node docker/bundle.ts instance`, for machines whose containers reach no package registry (docker/images.sh).
ARG NODE_IMAGE=node:24-bookworm-slim

FROM ${NODE_IMAGE} AS base
COPY docker/root-file-system.sh /
RUN sh /root-file-system.sh /root-file-system

FROM base AS build
ARG SDP_PREBUILT=0
WORKDIR /source
COPY . .
RUN sh docker/bundle-inside.sh instance /app

FROM scratch
COPY --from=base /root-file-system/ /
COPY --from=build /app/ /app/
# The heap limit follows the container's memory limit and leaves room for buffers, stacks and code; room for young objects,
# too, is bounded for its sake. The rest is about memory while nobody works: garbage collected once the instance is quiet,
# which gives the room for young objects back as well (trim.ts), and one arena of the C library whose free end goes back
# to the kernel. Measured in docs/performance-instance.md.
ENV PATH=/usr/local/bin NODE_ENV=production \
    NODE_OPTIONS="--max-old-space-size-percentage=65 --max-semi-space-size=8 --expose-gc" \
    MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=65536
WORKDIR /app
USER 10001:10001
# Proves that the program starts from its snapshot, and that its second file can be read.
RUN ["node", "--snapshot-blob", "/app/main.blob", "/app/main.cjs", "--version"]
RUN ["node", "-e", "require('/app/later.cjs')"]
ENTRYPOINT ["node", "--snapshot-blob", "/app/main.blob", "/app/main.cjs"]

ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sdp-mcp instance" \
      org.opencontainers.image.description="MCP server for ServiceDesk Plus Cloud, one per user" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
