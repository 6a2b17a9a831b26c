#!/bin/sh
# Unpacks Debian 13's RabbitMQ 4 beside the installed one (Debian, as root, with mmdebstrap), and
# prints the path for RABBITMQ_SERVER.
# Nothing outside the given folder changes: the file tree is in it, the mounts are private.
# Usage: rabbitmq4.sh FOLDER
set -eu

mkdir -p "$1"
folder=$(cd "$1" && pwd)
tree=$folder/tree

if [ ! -e "$folder/installed" ]; then
    # In a process namespace of its own, as Debian's scripts end processes by name.
    rm -rf "$tree"
    unshare --pid --fork --mount --mount-proc \
        mmdebstrap --variant=minbase --include=rabbitmq-server trixie "$tree" >"$folder/log" 2>&1 || { tail "$folder/log" >&2; exit 1; }
    for program in rabbitmq-server rabbitmqctl; do
        cat >"$folder/$program" <<END
#!/bin/sh
exec unshare --mount sh -c '
    mount --bind /tmp "$tree/tmp" && mount --bind /proc "$tree/proc" && mount --rbind /dev "$tree/dev" &&
    exec chroot "$tree" /usr/lib/rabbitmq/bin/$program "\$@"' sh "\$@"
END
        chmod +x "$folder/$program"
    done
    touch "$folder/installed"
fi
echo "$folder/rabbitmq-server"
