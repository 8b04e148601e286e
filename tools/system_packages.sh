#!/bin/sh
# Installs what tests use beside Python's packages, where it is missing: Debian's postgresql, for a ledger in a real
# one, and chromium, for the page.
#
# It does so as root and where there is apt-get; else, and where the packages are out of reach, it says which tests will
# be skipped and why, and ends well all the same.
set -u

has() {
    case $1 in
    postgresql) command -v postgres && command -v initdb || ls /usr/lib/postgresql/*/bin/initdb ;;
    chromium) command -v chromium || command -v chromium-browser || command -v google-chrome ;;
    esac >/dev/null 2>&1
}

tests_of() {
    case $1 in
    postgresql) echo 'a ledger in PostgreSQL' ;;
    chromium) echo 'the page in a browser' ;;
    esac
}

apt() {
    DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qqy -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1 \
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@" >/dev/null 2>&1
}

missing=
for package in postgresql chromium; do
    has "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    why='only root can install it'
elif ! command -v apt-get >/dev/null 2>&1; then
    why='there is no apt-get here'
else
    why='apt-get could not install it'
    echo "installing$missing with apt-get (once)"
    apt update
    for package in $missing; do
        apt install --no-install-recommends "$package"
    done
fi

for package in $missing; do
    has "$package" || echo "the tests of $(tests_of "$package") are skipped: $package is missing, and $why." >&2
done
