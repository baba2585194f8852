#!/bin/sh
# Runs in a container before anything else starts: are all secrets there? Prints what is wrong and what to do.
set -eu
cd /secrets
problems=0

problem() {
  problems=$((problems + 1))
  echo "check-secrets: $*" >&2
}

for name in db_password control_plane_password master_key admin_token; do
  if [ -d "$name" ]; then
    problem "$name is a folder, which Docker makes when a file is missing."
  elif [ ! -e "$name" ]; then
    problem "$name is missing."
  elif [ ! -s "$name" ]; then
    problem "$name is empty. Remove it first."
  elif [ "$(($(stat -c %a "$name") % 10 / 4))" != 1 ]; then
    problem "$name cannot be read by the users that containers run as. Run chmod 0644 on it."
  fi
done

[ -f master_keys_old ] || problem 'master_keys_old is missing, the list of former master keys. It may be empty.'

if [ "$problems" -gt 0 ]; then
  echo 'check-secrets: This is about the files in SDP_SECRETS_DIR. Nothing else was started.' >&2
  echo 'check-secrets: Run ./compose/make-secrets.sh, which makes what is missing and keeps what there is; then repeat "up".' >&2
  exit 1
fi
echo 'check-secrets: all secrets are there'
