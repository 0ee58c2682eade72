# One image for the four services and the migration commands; what runs is the command. No build step: Node runs the source.
FROM node:26-slim
WORKDIR /deputy
COPY package.json package-lock.json .npmrc ./
# Embedded Postgres and the pinned Node are optional packages, for machines without either.
RUN npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund
COPY proto/gen proto/gen
COPY libs libs
COPY services services
COPY migrations migrations
COPY catalog catalog
USER node
ENV NODE_OPTIONS="--disable-proto=delete --disable-sigusr1 --max-semi-space-size=32 --expose-gc"
