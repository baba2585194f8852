#!/bin/sh
# Runs in the first stage of each image: makes the root file system all of them share as their lowest layer.
# Node.js, the libraries it is linked with, CA certificates, a user and /tmp; no shell, no package manager, nothing
# that would serve an intruder. Usage: sh root-file-system.sh <folder>
set -eu
target=$1

install -d "$target/app" "$target/etc/ssl/certs" "$target/usr/local/bin"
install -d -m 1777 "$target/tmp"

cp -p /usr/local/bin/node "$target/usr/local/bin/node"
ldd /usr/local/bin/node | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
  cp -pL --parents "$library" "$target"
done

# Mozilla's list as Node.js carries it, for SSL_CERT_FILE and --use-openssl-ca: a slim base need not have the file.
node -p 'require("node:tls").rootCertificates.join("\n")' >"$target/etc/ssl/certs/ca-certificates.crt"

echo 'root:x:0:0:root:/:/sbin/nologin
app:x:10001:10001:app:/app:/sbin/nologin' >"$target/etc/passwd"
echo 'root:x:0:
app:x:10001:' >"$target/etc/group"
echo 'hosts: files dns' >"$target/etc/nsswitch.conf"
