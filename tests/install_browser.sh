#!/bin/sh
# Chromium, for the test that looks at report.html as a reader would. Without it that test is skipped.
command -v chromium >/dev/null && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "no chromium, and no way to install it here"; exit 0; }
apt-get update -qq && apt-get install -y -qq chromium >/dev/null
