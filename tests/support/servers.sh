#!/bin/sh
# Installs missing programs: RabbitMQ, PostgreSQL, PgBouncer and others. It starts none.
# Usage: servers.sh [rabbitmq] [postgresql] [pgbouncer] [docker] [slirp4netns] [mmdebstrap] [chromium]
set -eu

have_rabbitmq() {
    [ -n "${RABBITMQ_SERVER:-}" ] || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1
}
have_postgresql() {
    [ -n "${POSTGRESQL_BIN:-}" ] || ls -d /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1
}
have_pgbouncer() {
    [ -x /usr/sbin/pgbouncer ] || command -v pgbouncer >/dev/null 2>&1
}
have_docker() { command -v dockerd >/dev/null 2>&1 || [ -x /usr/sbin/dockerd ]; }
have_slirp4netns() { command -v slirp4netns >/dev/null 2>&1; }
have_chromium() { command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1; }
have_mmdebstrap() { command -v mmdebstrap >/dev/null 2>&1; }

missing=
for server in "$@"; do
    "have_$server" || missing="$missing $server"
done
[ -n "$missing" ] || exit 0

packages=
for server in $missing; do
    case $server in
        rabbitmq) packages="$packages rabbitmq-server" ;;
        postgresql) packages="$packages postgresql" ;;
        docker) packages="$packages docker.io" ;;
        *) packages="$packages $server" ;;
    esac
done

install() {
    echo "Installing$packages"
    # Keep the installation from starting services: we start our own, on our own ports.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    # Wait for other installations to finish.
    wait="-o DPkg::Lock::Timeout=300"
    # shellcheck disable=SC2086
    apt-get update -qq $wait &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $wait --no-install-recommends $packages >/dev/null </dev/null
}

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    install && exit 0
    echo "The installation failed." >&2
fi

{
    echo "Not on this machine:$missing."
    echo "On Debian or Ubuntu: sudo apt-get install$packages"
    echo "Elsewhere: install it, and set RABBITMQ_SERVER to the path of rabbitmq-server, POSTGRESQL_BIN to the folder of initdb."
    case $missing in *rabbitmq*) echo "Or have a broker ready and set WORKER_AMQP_URL (for 'make demo' and 'make run')." ;; esac
} >&2
exit 1
