#!/bin/sh
# Runs one person's MCP server without a control plane.
#
#   ./start-user-instance.sh alice            HTTP in a terminal, stdio when an MCP client starts it
#   ./start-user-instance.sh alice --stdio    claude mcp add servicedesk -- /path/to/start-user-instance.sh alice --stdio
#   ./start-user-instance.sh alice --http
#
# Settings come from .env.alice beside this file: KEY=VALUE lines, read but never executed. A variable that is
# already set wins over the file. Nothing but MCP is written to standard output.
set -eu
LC_ALL=C

say() { printf 'sdp-mcp: %s\n' "$*" >&2; }
stop() { say "$*"; exit 64; }

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# started by a link elsewhere: the folder is where the link points
if [ -L "$0" ]; then
  target=$(readlink "$0")
  case $target in /*) ;; *) target=$(dirname -- "$0")/$target ;; esac
  here=$(CDPATH='' cd -- "$(dirname -- "$target")" && pwd -P)
fi

name=${1-}
case $name in
  '' | -*) stop "name the user: $0 alice [--stdio|--http]" ;;
  *[!a-z0-9-]* | [!a-z]* | *-) stop "\"$name\" is not a user name. Use 2 to 32 lower-case letters, digits and hyphens, beginning with a letter." ;;
esac
if [ ${#name} -lt 2 ] || [ ${#name} -gt 32 ]; then stop "\"$name\" is not a user name. Use 2 to 32 characters."; fi
shift

file=$here/.env.$name
if [ ! -r "$file" ]; then
  if [ -e "$file" ]; then stop "$file cannot be read. Check its rights."; fi
  say "$file is missing. Make it with this content, filled in, and chmod 600:"
  cat >&2 <<TEMPLATE

# the part after /app/ in the address of ServiceDesk Plus
SDP_INSTANCE_NAME=itdesk
# US, EU, IN, AU, CN, JP, CA, UK, SA or AE
SDP_DATA_CENTER=US
# your own address, if you have one; otherwise leave it away
#SDP_BASE_URL=https://helpdesk.example.com
# https://api-console.zoho.com (or .eu, .in, ...): Add Client, Self Client, tab Client Secret
SDP_CLIENT_ID=1000.ABC
SDP_CLIENT_SECRET=
# tab Generate Code; start within its time. Needed once; for another grant put in another code.
# Scope: SDPOnDemand.requests.ALL,SDPOnDemand.solutions.READ,SDPOnDemand.users.READ,SDPOnDemand.setup.READ,AaaServer.profile.READ
SDP_GRANT_CODE=
# viewer, technician, problem_change, project or power; or name the toolsets, as in SDP_TOOLSETS=core,assets
#SDP_ROLE=technician
#SDP_READ_ONLY=false
#SDP_HTTP_PORT=3456
# needed once others can reach it (SDP_HTTP_HOST=0.0.0.0); clients send it as Authorization: Bearer. openssl rand -hex 24
#SDP_API_KEY=
# where tokens are kept, sealed; by default sdp-mcp in the folder for the state of your programs
#SDP_STATE_DIR=
# in place of a grant code, if you have one already
#SDP_REFRESH_TOKEN=

TEMPLATE
  exit 66
fi
case $(ls -ld -- "$file") in
  -???------*) ;;
  *) say "$file holds secrets and others can read it. Run: chmod 600 $file" ;;
esac

number=0
while IFS= read -r line || [ -n "$line" ]; do
  number=$((number + 1))
  line=${line%"$(printf '\r')"}
  line=${line#"${line%%[![:space:]]*}"}
  case $line in '' | '#'*) continue ;; esac
  line=${line#export }
  key=${line%%=*}
  value=${line#*=}
  case $key in
    "$line" | '' | *[!A-Za-z0-9_]*) stop "line $number of $file is not KEY=VALUE. Correct it." ;;
    SDP_USERNAME) continue ;;
    SDP_* | HTTP_PROXY | HTTPS_PROXY | NO_PROXY | http_proxy | https_proxy | no_proxy | NODE_EXTRA_CA_CERTS | XDG_STATE_HOME) ;;
    *)
      say "line $number of $file sets $key, which is not a setting of this program; it is left out."
      continue
      ;;
  esac
  case $value in
    \"*)
      value=${value#\"}
      case $value in *\"*) value=${value%%\"*} ;; *) stop "line $number of $file lacks its closing quote." ;; esac
      ;;
    \'*)
      value=${value#\'}
      case $value in *\'*) value=${value%%\'*} ;; *) stop "line $number of $file lacks its closing quote." ;; esac
      ;;
    *)
      value=${value%%[[:space:]]#*}
      value=${value%"${value##*[![:space:]]}"}
      ;;
  esac
  # set by the caller already: that wins, also over the file's _FILE form
  if eval "[ -n \"\${$key+set}\" ]"; then continue; fi
  export "$key=$value"
done <"$file"
export "SDP_USERNAME=$name"

command -v node >/dev/null 2>&1 || stop "Node is missing. Install Node 20 or newer; the version this program needs is then brought by itself."
exec node "$here/bootstrap.mjs" instance/src/main.ts "$@"
