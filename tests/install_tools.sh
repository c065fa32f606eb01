#!/bin/sh
# Chromium, for the test that looks at report.html as a reader would; qemu-user (static, and not, for its plugins),
# gcc and Debian's keyring, for emulated CPUs and `make arm-root`; adb, for phones; sshd, for boards (on
# loopback, with keys of its own). Without them those tests are skipped.
missing=""
command -v chromium >/dev/null || missing="chromium"
command -v qemu-aarch64-static >/dev/null || missing="$missing qemu-user-static"
command -v qemu-aarch64 >/dev/null || missing="$missing qemu-user"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
command -v adb >/dev/null || missing="$missing adb"
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "no way to install here:" $missing; exit 0; }
apt-get update -qq
for package in $missing; do apt-get install -y -qq $package >/dev/null || echo "could not install $package"; done
exit 0
