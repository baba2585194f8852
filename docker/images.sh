#!/usr/bin/env bash
# Builds the images of this product: sdp-mcp/instance, sdp-mcp/control-plane, and on request sdp-mcp/simulator.
# Works with and without an image registry or an npm registry for containers: the programs are bundled on the host when
# it has Node.js, and base images that can neither be found nor pulled are replaced by stand-ins (base-images.sh).
# Usage: docker/images.sh [instance] [control-plane] [simulator]     (default: instance control-plane)
#        docker/images.sh --print-env      prints SDP_NODE_IMAGE=... and SDP_POSTGRES_IMAGE=..., builds nothing of ours
# Environment:
#   SDP_IMAGE_TAG             tag of the images (default: dev)
#   SDP_NODE_IMAGE            base of the images (default: node:24-bookworm-slim, else the stand-in)
#   SDP_POSTGRES_IMAGE        database image to report (default: postgres:17, else the stand-in)
#   SDP_PULL_TIMEOUT_SECONDS  how long a registry may take to answer (default: 15)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tag=${SDP_IMAGE_TAG:-dev}

step() { printf '%s images: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() {
  printf 'images: %s\n' "$*" >&2
  exit 1
}

print_env=no
wanted=()
for argument; do
  case $argument in
    --print-env) print_env=yes ;;
    instance | control-plane | simulator) wanted+=("$argument") ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown argument \"$argument\". Use: docker/images.sh [--print-env] [instance] [control-plane] [simulator]" ;;
  esac
done
[[ ${#wanted[@]} -gt 0 ]] || wanted=(instance control-plane)

command -v docker >/dev/null || fail 'the docker command is missing. Install Docker Engine, then run this again.'
problem=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) || fail "the Docker engine does not answer:
$problem
Start it (systemctl start docker), or point DOCKER_HOST at the socket of a running one, then run this again."

work=$(mktemp -d)
pull_pid=
trap '[[ -z $pull_pid ]] || kill "$pull_pid" 2>/dev/null || true; rm -rf "$work"' EXIT

# Pulls an image when its registry answers in time. Only the answer is timed: a slow download may take as long as it needs.
pull() {
  local image=$1 log=$work/pull.log deadline=$((SECONDS + ${SDP_PULL_TIMEOUT_SECONDS:-15}))
  docker pull "$image" >"$log" 2>&1 &
  pull_pid=$!
  while kill -0 "$pull_pid" 2>/dev/null && ! grep -qE 'Pulling|Digest' "$log"; do
    if ((SECONDS >= deadline)); then
      kill "$pull_pid" 2>/dev/null || true
      break
    fi
    sleep 0.2
  done
  local result=0
  wait "$pull_pid" || result=$?
  pull_pid=
  return "$result"
}

# Prints the base image to use: base_image <chosen by the user> <official> <stand-in> <name for base-images.sh>
base_image() {
  local chosen=$1 official=$2 stand_in=$3 name=$4 image=${1:-$2}
  if docker image inspect "$image" >/dev/null 2>&1; then
    printf '%s' "$image"
  elif [[ -z $chosen ]] && docker image inspect "$stand_in" >/dev/null 2>&1; then
    printf '%s' "$stand_in"
  elif pull "$image"; then
    printf '%s' "$image"
  elif [[ -n $chosen ]]; then
    tail -n 3 "$work/pull.log" >&2
    fail "this engine has no image $chosen and cannot pull it. Check the name, docker login and the network, or unset the
variable that names it to use $official or its stand-in."
  else
    step "$official is not here and cannot be pulled; making the stand-in $stand_in"
    "$root/docker/base-images.sh" "$name" || exit 1
    printf '%s' "$stand_in"
  fi
}

node_image=$(base_image "${SDP_NODE_IMAGE:-}" node:24-bookworm-slim sdp-mcp/base-node:24 node)
if [[ $print_env == yes ]]; then
  postgres_image=$(base_image "${SDP_POSTGRES_IMAGE:-}" postgres:17 sdp-mcp/base-postgres:17 postgres)
  printf 'SDP_NODE_IMAGE=%s\nSDP_POSTGRES_IMAGE=%s\n' "$node_image" "$postgres_image"
  exit 0
fi

# Bundling on the host needs Node.js there; without it the build stage does it, from the registries.
prebuilt=1
if [[ -f $root/bootstrap.mjs ]] && command -v node >/dev/null; then
  bundle=(node "$root/bootstrap.mjs" docker/bundle.ts)
elif command -v node >/dev/null && [[ $(node --version) =~ ^v(2[4-9]|[3-9][0-9])\. ]] && [[ -d $root/node_modules ]]; then
  bundle=(node docker/bundle.ts)
else
  prebuilt=0
  step 'no Node.js on this machine: the images are built from source inside'
fi
if [[ $prebuilt == 1 ]]; then
  step "bundling ${wanted[*]}"
  (cd "$root" && "${bundle[@]}" "${wanted[@]}") >&2 || fail 'bundling failed; the reason is above.'
fi

version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' "$root/package.json")
revision=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
for package in "${wanted[@]}"; do
  step "building sdp-mcp/$package:$tag from $node_image"
  docker build --quiet --file "$root/docker/$package.Dockerfile" --tag "sdp-mcp/$package:$tag" \
    --build-arg NODE_IMAGE="$node_image" --build-arg SDP_PREBUILT="$prebuilt" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" "$root" >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log" >&2
    fail "sdp-mcp/$package:$tag could not be built; the end of the log is above. For the whole of it:
docker build --file docker/$package.Dockerfile --build-arg NODE_IMAGE=$node_image --build-arg SDP_PREBUILT=$prebuilt ."
  }
  printf 'sdp-mcp/%s:%s\n' "$package" "$tag"
done
