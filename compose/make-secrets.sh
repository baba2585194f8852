#!/usr/bin/env bash
# Makes the secrets that compose.yaml hands to the containers as files; never changes one that exists.
#   db_password   password of the database owner     (written into the database when its volume is first made)
#   control_plane_password   of the role the control plane logs in with (may be replaced at any time, as admin_token: see README.md)
#   master_key    wraps every user's data key        (lost: all users must authorise anew; keep a copy in a safe place)
#   admin_token   opens the admin API                (may be replaced at any time: see README.md)
#   master_keys_old   former master keys, one a line; empty but during a rotation
# Usage: compose/make-secrets.sh [--new-master-key | --rotate-master-key | --forget-old-master-keys]
#   --new-master-key   make one although db_password shows that this installation may have been used with another
#   --rotate-master-key         makes another master key and keeps the one before in master_keys_old; then call the admin API:
#                               POST /v1/system/master-key/rewrap
#   --forget-old-master-keys    when GET /v1/system says that nothing remains to be wrapped
# They go to the folder SDP_SECRETS_DIR of the environment or of .env; without one to compose/secrets, and .env is told so.
# The folder is yours alone (0700). The files inside it are readable (0644), because the users that containers run as
# are others than you, and a file handed to a container keeps its mode: on the host the folder keeps everybody out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
given=${SDP_SECRETS_DIR:-}
[[ -n $given || ! -e $root/.env ]] || given=$(sed -n 's/^SDP_SECRETS_DIR=//p' "$root/.env" | tail -n 1)
folder=${given:-./secrets}
# as Compose reads it: relative to compose.yaml
[[ $folder == /* ]] || folder=$root/compose/${folder#./}
fail() {
  printf 'make-secrets: %s\n' "$*" >&2
  exit 1
}

{ mkdir -p "$folder" && chmod 0700 "$folder"; } ||
  fail "$folder cannot be made private. If it belongs to somebody else: sudo chown $(id -u) $folder"

new_master_key=no
rotate=no
forget=no
case ${1:-} in
  '') ;;
  --new-master-key) new_master_key=yes ;;
  --rotate-master-key) rotate=yes ;;
  --forget-old-master-keys) forget=yes ;;
  *) fail "unknown argument \"$1\". Use: compose/make-secrets.sh [--new-master-key | --rotate-master-key | --forget-old-master-keys]" ;;
esac
if [[ -s $folder/db_password && ! -s $folder/master_key && $new_master_key == no ]]; then
  fail "db_password is there, but master_key is not. If users have been added already, put your copy of master_key back
into $folder: no other key opens their tokens. If none have, run: compose/make-secrets.sh --new-master-key"
fi

random() { # <bytes>, as base64 in one line
  head -c "$1" /dev/urandom | base64 | tr -d '\n'
}

make() { # <name> <value>
  local file=$folder/$1 value=$2
  # an empty folder of this name is what Docker leaves when it was started without the file
  [[ ! -d $file ]] || rmdir "$file" 2>/dev/null ||
    fail "$file is a folder. Stop the containers, remove it (sudo rmdir $file), then run this again."
  if [[ -s $file ]]; then
    printf 'kept   %s\n' "$file"
    return
  fi
  # complete or not there: a file cut short by a full disk would pass for a secret
  (umask 077 && printf '%s\n' "$value" >"$file.new") || fail "cannot write $file. Is the disk full (df -h)?"
  chmod 0644 "$file.new"
  mv "$file.new" "$file"
  printf 'made   %s\n' "$file"
}

make db_password "$(random 33 | tr '+/' '-_')"
make control_plane_password "$(random 33 | tr '+/' '-_')"
make master_key "$(random 32)"
make admin_token "$(random 33 | tr '+/' '-_')"
if [[ ! -e $folder/master_keys_old ]]; then
  : >"$folder/master_keys_old" && chmod 0644 "$folder/master_keys_old"
  printf 'made   %s\n' "$folder/master_keys_old"
fi

# Written in place: a running container sees the file it was handed, not another one of the same name.
if [[ $rotate == yes ]]; then
  old=$(<"$folder/master_key")
  grep -qxF -- "$old" "$folder/master_keys_old" || printf '%s\n' "$old" >>"$folder/master_keys_old"
  grep -qxF -- "$old" "$folder/master_keys_old" || fail "cannot write $folder/master_keys_old. Nothing was changed."
  new=$(random 32)
  printf '%s\n' "$new" >"$folder/master_key"
  printf 'rotated %s; keep a copy of it, then call POST /v1/system/master-key/rewrap\n' "$folder/master_key"
elif [[ $forget == yes ]]; then
  : >"$folder/master_keys_old"
  printf 'emptied %s\n' "$folder/master_keys_old"
fi

# Compose starts nothing until it is told the folder: so a checkout without secrets says what to do at once.
if [[ -z $given ]]; then
  [[ -e $root/.env ]] || { cp "$root/.env.example" "$root/.env" && printf 'made   %s\n' "$root/.env"; }
  printf '\nSDP_SECRETS_DIR=./secrets\n' >>"$root/.env"
  printf 'noted  SDP_SECRETS_DIR in %s\n' "$root/.env"
fi
