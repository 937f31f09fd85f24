#!/usr/bin/env bash
# Installs what Tenure's private servers need, if it is missing: PostgreSQL 15 or newer and nats-server 2.9 or newer. Does nothing when both are there.
# With `--tests`, also libfaketime, with which the fault tests let clocks jump, aiosmtpd, to which the mails of tests are sent, and dnsmasq, in which
# domains of tests are looked up.
# apt is what CI uses; dnf, pacman and brew are written down from their documentation and untested.
set -euo pipefail

say() { echo "setup: $*" >&2; }

# The newest major version of PostgreSQL whose initdb can be found, the way `tenure up` looks for it.
postgres_major() {
  local dir
  { IFS=:; for dir in $PATH /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
      [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && "$dir/postgres" --version; done || true; } |
    sed -nE 's/.* ([0-9]+)[.a-z].*/\1/p' | sort -n | tail -1
}

nats_version() {
  local program
  # The newest of those that can be found: an old one may stand first in PATH.
  { echo "0 0"; for program in "$(command -v nats-server || true)" /usr/sbin/nats-server /usr/local/bin/nats-server /opt/homebrew/bin/nats-server; do
      [ -n "$program" ] && [ -x "$program" ] && "$program" --version 2>&1 | sed -nE 's/.*v([0-9]+)\.([0-9]+).*/\1 \2/p'; done || true; } | sort -k1,1n -k2,2n | tail -1
}

have_postgres() { local major; major=$(postgres_major); [ "${major:-0}" -ge 15 ]; }
have_nats() { local major minor; read -r major minor <<<"$(nats_version)"; [ "${major:-0}" -gt 2 ] || { [ "${major:-0}" -eq 2 ] && [ "${minor:-0}" -ge 9 ]; }; }

command -v cargo >/dev/null || { say "a Rust toolchain is needed: https://rustup.rs"; exit 1; }
have_faketime() { [ "${1:-}" != --tests ] || compgen -G '/usr/lib*/faketime/libfaketimeMT.so.1' >/dev/null || compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null; }
have_smtp() { [ "${1:-}" != --tests ] || /usr/bin/python3 -c 'import aiosmtpd' 2>/dev/null; }
have_dns() { [ "${1:-}" != --tests ] || command -v dnsmasq >/dev/null || [ -x /usr/sbin/dnsmasq ]; }
if have_postgres && have_nats && have_faketime "$@" && have_smtp "$@" && have_dns "$@"; then exit 0; fi

as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { say "PostgreSQL >= 15 and nats-server >= 2.9 are needed; install them, or run this as root or with sudo"; exit 1; }
  as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
fi

if command -v apt-get >/dev/null; then
  "${as_root[@]}" apt-get update -qq
  if ! have_postgres; then
    say "installing PostgreSQL with apt"
    # Only the programs are wanted, not a cluster that starts with the machine.
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
    "${as_root[@]}" sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends postgresql >/dev/null
  fi
  have_nats || { say "installing nats-server with apt"; "${as_root[@]}" apt-get install -y -qq --no-install-recommends nats-server >/dev/null; }
  have_faketime "$@" || { say "installing libfaketime with apt"; "${as_root[@]}" apt-get install -y -qq --no-install-recommends libfaketime >/dev/null; }
  have_smtp "$@" || { say "installing aiosmtpd with apt"; "${as_root[@]}" apt-get install -y -qq --no-install-recommends python3-aiosmtpd >/dev/null; }
  have_dns "$@" || { say "installing dnsmasq with apt"; "${as_root[@]}" apt-get install -y -qq --no-install-recommends dnsmasq-base >/dev/null; }
elif command -v dnf >/dev/null; then
  say "installing with dnf (untested)"
  have_postgres || "${as_root[@]}" dnf install -y postgresql-server
  have_nats || "${as_root[@]}" dnf install -y nats-server
  have_faketime "$@" || "${as_root[@]}" dnf install -y libfaketime
  have_smtp "$@" || "${as_root[@]}" dnf install -y python3-aiosmtpd
  have_dns "$@" || "${as_root[@]}" dnf install -y dnsmasq
elif command -v pacman >/dev/null; then
  say "installing with pacman (untested)"
  have_postgres || "${as_root[@]}" pacman -S --noconfirm --needed postgresql
  have_nats || "${as_root[@]}" pacman -S --noconfirm --needed nats-server
  have_faketime "$@" || "${as_root[@]}" pacman -S --noconfirm --needed libfaketime
  have_dns "$@" || "${as_root[@]}" pacman -S --noconfirm --needed dnsmasq
elif command -v brew >/dev/null; then
  say "installing with brew (untested)"
  have_postgres || brew install postgresql@17
  have_nats || brew install nats-server
else
  say "no known package manager; install PostgreSQL >= 15 and nats-server >= 2.9"; exit 1
fi

have_postgres || { say "the package manager has no PostgreSQL 15 or newer; see https://www.postgresql.org/download/"; exit 1; }
have_nats || { say "the package manager has no nats-server 2.9 or newer; see https://github.com/nats-io/nats-server/releases"; exit 1; }
