#!/usr/bin/env bash
# Makes local stand-ins for node:24-bookworm-slim and postgres:17 where those cannot be pulled. Everything comes from
# the Debian mirror this machine already uses and from the Node.js binary the start command fetched through npm:
#   sdp-mcp/base-node:24       Debian, Node.js 24 in /usr/local/bin, user node (1000)
#   sdp-mcp/base-postgres:17   Debian with its own PostgreSQL and an entry point that follows the official image
# Usage: docker/base-images.sh [--force] [node] [postgres]
#   --force             make them anew although they exist (to take in Debian's security updates)
# Environment:
#   SDP_NODE_BINARY     a Node.js executable for Linux to put into base-node (default: the one under .node, else npm's)
#   SDP_NODE_VERSION    version to fetch from npm when there is none under .node (default: 24)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
node_tag=sdp-mcp/base-node:24
postgres_tag=sdp-mcp/base-postgres:17
packages_hint='apt-get update && apt-get install -y --no-install-recommends mmdebstrap'

step() { printf '%s base-images: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
fail() {
  printf 'base-images: %s\n' "$*" >&2
  exit 1
}

force=no
wanted=()
for argument; do
  case $argument in
    --force) force=yes ;;
    node | postgres) wanted+=("$argument") ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown argument \"$argument\". Use: docker/base-images.sh [--force] [node] [postgres]" ;;
  esac
done
[[ ${#wanted[@]} -gt 0 ]] || wanted=(node postgres)

# --- what must be there first: all of it is checked before anything is made -------------------------------------

command -v docker >/dev/null || fail 'the docker command is missing. Install it: apt-get install -y docker.io'
problem=$(docker version --format '{{.Server.Version}}' 2>&1 >/dev/null) || fail "the Docker engine does not answer:
$problem
Start it (systemctl start docker), or point DOCKER_HOST at the socket of a running one, then run this again."

missing=()
for image in "${wanted[@]}"; do
  tag=$node_tag
  [[ $image != postgres ]] || tag=$postgres_tag
  if [[ $force == no ]] && docker image inspect "$tag" >/dev/null 2>&1; then
    step "$tag exists; --force makes it anew"
  else
    missing+=("$image")
  fi
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing. As root: $packages_hint"
[[ $(id -u) == 0 ]] || fail "making a Debian root file system needs root. Run: sudo --preserve-env=DOCKER_HOST $0 $*
Where that is not possible, set SDP_NODE_IMAGE and SDP_POSTGRES_IMAGE to images this engine has or can pull."

# shellcheck source=/dev/null
release=$(. /etc/os-release && [[ ${ID:-} == debian ]] && printf '%s' "${VERSION_CODENAME:-}") || true
[[ -n $release ]] || fail 'this machine does not run a Debian release, so it has no Debian mirror to build from.
Pull node:24-bookworm-slim and postgres:17 on a machine that can, carry them over with docker save and docker load,
or set SDP_NODE_IMAGE and SDP_POSTGRES_IMAGE to images this engine has.'

case $(uname -m) in
  x86_64) npm_arch=x64 ;;
  aarch64 | arm64) npm_arch=arm64 ;;
  *) fail "no Node.js binary is published for $(uname -m). Set SDP_NODE_IMAGE to an image that has one." ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- pieces -----------------------------------------------------------------------------------------------------

# Prints Debian's own entries of this machine's apt sources, as one-line entries for the component main. Entries of other
# vendors are left out: they are signed by other keys, or name other suites.
debian_sources() {
  local file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -f $file ]] || continue
    awk -v release="$release" '
      $1 == "deb" {
        line = $0; sub(/#.*/, "", line); options = ""
        if (match(line, /\[[^]]*\]/)) { options = substr(line, RSTART, RLENGTH); sub(/\[[^]]*\]/, "", line) }
        if (options ~ /signed-by/ && options !~ /debian-archive/) next
        n = split(line, word, " "); main = 0
        for (i = 4; i <= n; i++) if (word[i] == "main") main = 1
        if (main && word[3] ~ "^" release "(-updates|-security)?$") print "deb", options, word[2], word[3], "main"
      }' "$file"
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ -f $file ]] || continue
    awk -v release="$release" '
      function flush_stanza(   i, j, n, m, uri, suite) {
        if (field["types"] ~ /(^| )deb( |$)/ && field["enabled"] !~ /^no/ && field["components"] ~ /(^| )main( |$)/ &&
            (field["signed-by"] == "" || field["signed-by"] ~ /debian-archive/)) {
          n = split(field["uris"], uri, " "); m = split(field["suites"], suite, " ")
          for (i = 1; i <= n; i++) for (j = 1; j <= m; j++)
            if (suite[j] ~ "^" release "(-updates|-security)?$")
              print "deb", (field["signed-by"] == "" ? "" : "[signed-by=" field["signed-by"] "]"), uri[i], suite[j], "main"
        }
        split("", field); name = ""
      }
      /^#/ { next }
      /^[ \t]*$/ { flush_stanza(); next }
      /^[ \t]/ { if (name != "") { sub(/^[ \t]+/, ""); field[name] = field[name] " " $0 } next }
      { name = tolower($0); sub(/:.*/, "", name); value = $0; sub(/^[^:]*:[ \t]*/, "", value); field[name] = value }
      END { flush_stanza() }' "$file"
  done
}

# Makes a root file system: root_file_system <tar file> <mmdebstrap options...>
# The machine's apt sources and package lists stay out of it, as do documents nobody reads in a container.
root_file_system() {
  local tar=$1 log="$work/mmdebstrap.log"
  shift
  [[ -s $work/sources.list ]] || debian_sources | sort -u >"$work/sources.list"
  [[ -s $work/sources.list ]] || fail "found no entry for Debian $release main in /etc/apt/sources.list or
/etc/apt/sources.list.d. Add your Debian mirror there, check it with apt-get update, then run this again."
  # shellcheck disable=SC2016 # $1 is for the hook's shell: the root file system being made
  if ! mmdebstrap --variant=minbase --format=tar "$@" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap' \
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf; : >"$1"/etc/machine-id' \
    "$release" "$tar" - <"$work/sources.list" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "mmdebstrap failed; its last lines are above. Usual causes: the mirror cannot be reached (try apt-get update),
or the disk is full (df -h ${TMPDIR:-/tmp}). Then run this again: what is complete is kept."
  fi
}

# Prints the path of a Linux Node.js 24 executable.
node_binary() {
  local candidate version=${SDP_NODE_VERSION:-24}
  for candidate in "${SDP_NODE_BINARY:-}" "$root/.node/node_modules/node-linux-$npm_arch/bin/node"; do
    [[ -n $candidate ]] || continue
    if [[ -x $candidate && $("$candidate" --version) == v24.* ]]; then
      printf '%s' "$candidate"
      return
    fi
    [[ $candidate != "${SDP_NODE_BINARY:-}" ]] || fail "SDP_NODE_BINARY=$candidate is not an executable Node.js 24."
  done
  step "fetching Node.js $version from the npm registry"
  command -v npm >/dev/null || fail "found no Node.js 24 under $root/.node, and no npm to fetch it with.
Run the start command once (npm start), or set SDP_NODE_BINARY to a Node.js 24 executable."
  (cd "$work" && npm pack --silent "node-linux-$npm_arch@$version" >pack.log 2>&1 &&
    mkdir node && tar -xzf node-linux-"$npm_arch"-*.tgz -C node --strip-components=1) || {
    tail -n 5 "$work/pack.log" >&2
    fail "npm could not fetch node-linux-$npm_arch@$version. Check npm's registry setting, or set SDP_NODE_BINARY."
  }
  printf '%s' "$work/node/bin/node"
}

# Makes an image of a root file system and of the Dockerfile instructions on standard input: add_image <tar file> <tag>
add_image() {
  local tar=$1 tag=$2 previous
  previous=$(docker image inspect --format '{{.Id}}' "$tag" 2>/dev/null || true)
  step "adding $tag to the engine"
  { docker import "$tar" "$tag" && { printf 'FROM %s\nLABEL com.sdp-mcp.stand-in=true\n' "$tag"; cat; } |
    docker build --quiet --tag "$tag" -; } >"$work/add.log" 2>&1 || {
    cat "$work/add.log" >&2
    fail "the engine did not take $tag; its reason is above. If its disk is full: docker system df, docker system prune."
  }
  rm -f "$tar"
  # the one it replaces, unless containers still use it
  [[ -z $previous ]] || docker image rm "$previous" >/dev/null 2>&1 || true
}

make_node() {
  local binary version
  binary=$(node_binary)
  version=$("$binary" --version)
  step "making $node_tag: Debian $release with Node.js ${version#v}"
  # shellcheck disable=SC2016 # as above
  root_file_system "$work/node.tar" --include=ca-certificates \
    --customize-hook="upload $binary /usr/local/bin/node" \
    --customize-hook='chmod 0755 "$1"/usr/local/bin/node && ln -s node "$1"/usr/local/bin/nodejs' \
    --customize-hook='chroot "$1" groupadd --gid 1000 node' \
    --customize-hook='chroot "$1" useradd --uid 1000 --gid node --shell /bin/bash --create-home node' \
    --customize-hook='chroot "$1" node --version'
  add_image "$work/node.tar" "$node_tag" <<END
ENV NODE_VERSION=${version#v}
CMD ["node"]
END
}

make_postgres() {
  step "making $postgres_tag: Debian $release with its own PostgreSQL"
  # Users and paths are those of the official image, so that a volume's owner and the settings in compose.yaml fit both.
  # shellcheck disable=SC2016 # as above
  root_file_system "$work/postgres.tar" --include=postgresql --aptopt='APT::Install-Recommends "false"' \
    --essential-hook='echo "postgres:x:999:" >>"$1"/etc/group' \
    --essential-hook='echo "postgres:x:999:999::/var/lib/postgresql:/bin/bash" >>"$1"/etc/passwd' \
    --essential-hook='mkdir -p "$1"/etc/postgresql-common && echo "create_main_cluster = false" >"$1"/etc/postgresql-common/createcluster.conf' \
    --customize-hook='ls -d "$1"/usr/lib/postgresql/*/bin >/dev/null && ln -s "$(cd "$1" && ls -d usr/lib/postgresql/*/bin | sed s,^,/, | tail -n 1)" "$1"/usr/lib/postgresql/bin' \
    --customize-hook='sed -i "s/^#listen_addresses = .*/listen_addresses = '"'*'"'/" "$1"/usr/share/postgresql/*/postgresql.conf.sample' \
    --customize-hook="upload $root/docker/postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh" \
    --customize-hook='chmod 0755 "$1"/usr/local/bin/docker-entrypoint.sh && mkdir -p "$1"/docker-entrypoint-initdb.d' \
    --customize-hook='chroot "$1" install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data' \
    --customize-hook='chroot "$1" install -d -o postgres -g postgres -m 3777 /var/run/postgresql' \
    --customize-hook='chroot "$1" /usr/lib/postgresql/bin/postgres --version'
  add_image "$work/postgres.tar" "$postgres_tag" <<'END'
ENV PATH=/usr/lib/postgresql/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
VOLUME /var/lib/postgresql/data
EXPOSE 5432
# fast shutdown: PostgreSQL waits for its clients on SIGTERM
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
END
}

for image in "${missing[@]}"; do "make_$image"; done
step 'done'
