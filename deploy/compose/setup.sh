#!/usr/bin/env bash
# Prepares etc/ for three.yaml, after `wxrelay init` has written etc/relay: run it as root, in this folder. What is there
# already stays, so it can be run again.
#
# Makes an authority for PostgreSQL's certificates, the passwords, the admin token, and a self-signed certificate for
# HAProxy, which you replace: WeChat calls port 80, or 443 with a certificate that it trusts.
set -euo pipefail
cd "$(dirname "$0")"
umask 077

RELAY=65532 POSTGRES=999 HAPROXY=99 PROMETHEUS=65534
DAYS=3650
config=etc/relay/config.toml

if [[ ! -s $config ]]; then
  echo "$config is missing: run \`wxrelay init\` first, see README.md" >&2
  exit 1
fi
mkdir -p etc/postgres etc/haproxy etc/prometheus

secret() {
  if [[ ! -s $1 ]]; then openssl rand -hex 32 >"$1"; fi
}

# KEY CERT NAME SAN...: a certificate of the authority.
certify() {
  local key=$1 cert=$2 name=$3 san=$4
  if [[ -s $cert ]]; then return; fi
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$key" -out "$cert.csr" -subj "/CN=$name" 2>/dev/null
  openssl x509 -req -in "$cert.csr" -CA etc/postgres/ca.crt -CAkey etc/ca.key -CAcreateserial -days "$DAYS" -out "$cert" \
    -extfile <(printf 'subjectAltName=%s\nbasicConstraints=critical,CA:FALSE\n' "$san") 2>/dev/null
  rm "$cert.csr"
}

secret etc/postgres/relay-password
secret etc/postgres/replication-password
secret etc/relay/admin-token
install -m 600 etc/postgres/relay-password etc/relay/pg-password
install -m 600 etc/relay/admin-token etc/prometheus/admin-token

if [[ ! -s etc/postgres/ca.crt ]]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout etc/ca.key -out etc/postgres/ca.crt -days "$DAYS" \
    -subj "/CN=wxrelay PostgreSQL" -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2>/dev/null
fi
certify etc/postgres/pg-a.key etc/postgres/pg-a.crt pg-a "DNS:pg-a,IP:10.77.0.21"
certify etc/postgres/pg-b.key etc/postgres/pg-b.crt pg-b "DNS:pg-b,IP:10.77.0.22"
install -m 600 etc/postgres/ca.crt etc/relay/pg-ca.pem

if [[ ! -s etc/haproxy/relay.example.com.pem ]]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout etc/haproxy/key -out etc/haproxy/cert -days 30 \
    -subj "/CN=relay.example.com" -addext "subjectAltName=DNS:relay.example.com" 2>/dev/null
  cat etc/haproxy/cert etc/haproxy/key >etc/haproxy/relay.example.com.pem
  rm etc/haproxy/cert etc/haproxy/key
fi

# `init` writes a store in a folder. In its place, the two servers; and the address that HAProxy connects from.
if grep -q '^type = "embedded"$' "$config"; then
  sed -i -e '/^\[queue\]$/,/^$/{/^path = /d
s|^type = "embedded"$|type = "postgres"\
# The one that accepts writes is used.\
url = "postgres://wxrelay@10.77.0.21:5432,10.77.0.22:5432/wxrelay"\
password = { file = "pg-password" }\
tls = { ca = "pg-ca.pem" }|
}' -e 's|^\[server\]$|[server]\
trusted_proxies = ["10.77.0.10/32"]|' "$config"
fi

if ((EUID == 0)); then
  chown -R "$RELAY" etc/relay
  chown -R "$POSTGRES" etc/postgres
  chown -R "$HAPROXY" etc/haproxy
  chown -R "$PROMETHEUS" etc/prometheus
else
  echo "not root, so the owners in etc are not set: the containers' users must be able to read their folders" >&2
fi
