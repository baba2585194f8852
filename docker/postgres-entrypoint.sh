#!/usr/bin/env bash
# Entry point of our stand-in for the official postgres image (see base-images.sh). It understands the part of that
# image's contract which compose.yaml uses, so that one compose file serves both:
#   POSTGRES_USER, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, POSTGRES_DB, POSTGRES_INITDB_ARGS,
#   POSTGRES_HOST_AUTH_METHOD, PGDATA, /docker-entrypoint-initdb.d/*.sql and *.sh
set -Eeuo pipefail

fail() {
  printf 'postgres: %s\n' "$*" >&2
  exit 1
}

# Sets $1 from the file named by $1_FILE; a value and a file together are ambiguous, so refused.
from_file() {
  local name=$1 file_name="${1}_FILE"
  local file=${!file_name:-}
  [[ -n $file ]] || return 0
  [[ -z ${!name:-} ]] || fail "both $name and $file_name are set. Keep one of them."
  [[ -f $file && -r $file ]] || fail "$file_name names $file, which is not a readable file. Create the secret first."
  printf -v "$name" '%s' "$(<"$file")"
  unset "$file_name"
}

# Identifiers and literals reach SQL only through psql's own quoting (:"name", :'name').
sql() {
  psql --no-psqlrc --no-password --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" "$@"
}

discard_half_made_cluster() {
  find "$PGDATA" -mindepth 1 -delete
  printf 'postgres: initialisation did not finish; %s is empty again. Mend the cause above and start anew.\n' "$PGDATA" >&2
}

initialise() {
  from_file POSTGRES_USER
  from_file POSTGRES_PASSWORD
  from_file POSTGRES_DB
  from_file POSTGRES_INITDB_ARGS
  POSTGRES_USER=${POSTGRES_USER:-postgres}
  POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
  local auth=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
  if [[ -z ${POSTGRES_PASSWORD:-} && $auth != trust ]]; then
    fail 'no password for the database owner. Set POSTGRES_PASSWORD_FILE to a file that holds it.'
  fi

  # A cluster without its database would pass for a complete one at the next start.
  trap discard_half_made_cluster EXIT
  trap 'exit 130' INT TERM

  # shellcheck disable=SC2086 # the variable holds several options, separated by spaces, as in the official image
  initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:-}") \
    --auth-local=trust --auth-host="$auth" ${POSTGRES_INITDB_ARGS:-}
  printf '\nhost all all all %s\n' "$auth" >>"$PGDATA/pg_hba.conf"
  unset POSTGRES_PASSWORD

  # Only the socket listens until the set-up is complete: whoever asks over TCP sees "not ready".
  pg_ctl --pgdata="$PGDATA" --options="-c listen_addresses=''" --wait --silent start
  if [[ $POSTGRES_DB != postgres ]]; then
    sql --dbname postgres --set db="$POSTGRES_DB" <<<'create database :"db";'
  fi
  local file
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sh) printf 'postgres: running %s\n' "$file"; bash "$file" ;;
      *.sql) printf 'postgres: running %s\n' "$file"; sql --dbname "$POSTGRES_DB" --file "$file" ;;
    esac
  done
  pg_ctl --pgdata="$PGDATA" --mode=fast --wait --silent stop
  trap - EXIT INT TERM
  printf 'postgres: initialised database %s, owner %s\n' "$POSTGRES_DB" "$POSTGRES_USER"
}

[[ ${1:-} != -* ]] || set -- postgres "$@"
if [[ ${1:-postgres} != postgres ]]; then exec "$@"; fi

if [[ $(id -u) == 0 ]]; then
  install -d -o postgres -g postgres -m 0700 "$PGDATA"
  install -d -o postgres -g postgres -m 2775 /var/run/postgresql
  find "$PGDATA" \! -user postgres -exec chown postgres:postgres '{}' +
  exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
fi

if [[ ! -s $PGDATA/PG_VERSION ]]; then
  mkdir -p "$PGDATA"
  chmod 0700 "$PGDATA"
  initialise
fi
major=$(postgres --version | sed -E 's/[^0-9]*([0-9]+).*/\1/')
made_by=$(<"$PGDATA/PG_VERSION")
[[ $made_by == "$major" ]] ||
  fail "$PGDATA was made by PostgreSQL $made_by, this image holds $major. Start the image of version $made_by, dump the database with pg_dump, and restore it into an empty volume of this one."

unset POSTGRES_PASSWORD POSTGRES_PASSWORD_FILE
exec "$@"
