# The simulator: a stand-in for Zoho Accounts and ServiceDesk Plus Cloud, for evaluation and tests only.
# For the two ways to build it see instance.Dockerfile.
ARG NODE_IMAGE=node:24-bookworm-slim

FROM ${NODE_IMAGE} AS base
COPY docker/root-file-system.sh /
RUN sh /root-file-system.sh /root-file-system

FROM base AS build
ARG SDP_PREBUILT=0
WORKDIR /source
COPY . .
RUN sh docker/bundle-inside.sh simulator /app

FROM scratch
COPY --from=base /root-file-system/ /
COPY --from=build /app/ /app/
ENV PATH=/usr/local/bin NODE_ENV=production
WORKDIR /app
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["node", "/app/main.mjs"]

ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sdp-mcp simulator" \
      org.opencontainers.image.description="Stand-in for Zoho Accounts and ServiceDesk Plus Cloud; never for production" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
