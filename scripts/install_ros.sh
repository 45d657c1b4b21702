#!/usr/bin/env bash
# Install what the drivers of the Allegro hand and of ALOHA's arms need of ROS 1, from Debian's own packages, and say so.
#   scripts/install_ros.sh [--core]      with --core: then run roscore on loopback, until Ctrl-C
# What is there already is left alone. Exit code 3: this machine cannot install it, and why.
set -euo pipefail
packages=(ros-core python3-rospy python3-rosmaster python3-sensor-msgs python3-std-msgs)

fail() {
    echo "install_ros.sh: $1" >&2
    exit 3
}

core=""
case "${1:-}" in
    "") ;;
    --core) core=1 ;;
    *)
        echo "usage: scripts/install_ros.sh [--core]" >&2
        exit 2
        ;;
esac

is_there() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

if [ -n "${ROS_DISTRO:-}" ] && command -v rosmaster >/dev/null && [ "${ROS_VERSION:-1}" = 1 ]; then
    echo "ROS 1 $ROS_DISTRO is set up in this shell: nothing to install"
else
    command -v apt-get >/dev/null || fail "there is no apt-get here. On another system install \
ROS 1 with rospy and sensor_msgs, and source its setup.bash"
    missing=()
    for package in "${packages[@]}"; do
        is_there "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        echo "ROS 1 is installed: ${packages[*]}"
    else
        as_root=()
        if [ "$(id -u)" -ne 0 ]; then
            sudo -n true 2>/dev/null || fail "installing ${missing[*]} needs root: run it with sudo"
            as_root=(sudo -n)
        fi
        patience=(-o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=60)
        echo "installing ${missing[*]} (about 30 MB, less than a minute) ..."
        "${as_root[@]}" apt-get update -qq "${patience[@]}" || echo "install_ros.sh: no new package lists" >&2
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends "${patience[@]}" "${missing[@]}" >/dev/null ||
            fail "apt-get could not install ${missing[*]}; Debian 12 has them"
        echo "installed ${missing[*]}"
    fi
fi

if [ -n "$core" ]; then
    export ROS_MASTER_URI="${ROS_MASTER_URI:-http://127.0.0.1:11311}" ROS_HOSTNAME=127.0.0.1
    echo "in other shells: export ROS_MASTER_URI=$ROS_MASTER_URI ROS_HOSTNAME=127.0.0.1"
    exec roscore -p "${ROS_MASTER_URI##*:}"
fi
