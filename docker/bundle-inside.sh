#!/bin/sh
# Runs in the build stage of an image: puts a package's bundle into a folder, made here, or taken as it came with the
# build context when SDP_PREBUILT=1. Usage: sh docker/bundle-inside.sh <package> <folder>
set -eu
package=$1
target=$2

fail() {
  printf 'build: %s\n' "$@" >&2
  exit 1
}

if [ "${SDP_PREBUILT:-0}" = 1 ]; then
  [ -f "$package/dist/main.mjs" ] || [ -f "$package/dist/main.cjs" ] ||
    fail "SDP_PREBUILT=1, but $package/dist holds no bundle in the build context." \
      "Make it first: node docker/bundle.ts $package"
else
  if ! npm install --global --no-fund --no-audit pnpm@10.34.8 ||
    ! pnpm install --frozen-lockfile --filter sdp-mcp --filter "@sdp-mcp/$package..."; then
    fail 'the packages could not be installed. Where containers reach no npm registry, run docker/images.sh:' \
      'it bundles on the host and hands the result in with --build-arg SDP_PREBUILT=1.'
  fi
  node docker/bundle.ts "$package"
fi

mkdir -p "$target"
cp -R "$package/dist/." "$target"
# the instance's program is two files; without the second it would start, and no tool would run
if [ "$package" = instance ] && [ ! -f "$target/later.cjs" ]; then
  fail "$package/dist holds no later.cjs, the second file of the program. Make both: node docker/bundle.ts $package"
fi
# only somebody who debugs wants it, and Node.js would hold it parsed in memory
rm -f "$target"/*.map
# The program after its modules have run, to start from; the final image has this very Node.js. Whoever starts from it has the
# functions that exist here: gc, for example, only with --expose-gc.
if [ -f "$target/snapshot.json" ]; then
  (cd "$target" && node --expose-gc --snapshot-blob main.blob --build-snapshot-config snapshot.json) ||
    fail 'Node.js could not make the snapshot of the program; its reason is above.' \
      'docs/adr/0023-start-from-a-snapshot.md says what modules of an instance must not do when they are loaded.'
else
  # for the cache of compiled functions, which the final stage fills as this user
  install -d -o 10001 -g 10001 "$target/compile-cache"
fi
