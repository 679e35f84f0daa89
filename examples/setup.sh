# Finds what a build needs and installs what is missing. Sourced by quickstart.sh and tests/run.sh:
#     setup_need 'command -v meson' meson       the packages to install unless the check succeeds
#     setup_install                             installs them all, or says what to install and fails

setup_missing=

setup_need() {
    setup_check=$1
    shift
    sh -c "$setup_check" >/dev/null 2>&1 || setup_missing="$setup_missing $*"
}

# What every build of the library needs.
setup_need_build() {
    setup_need 'echo "#include <stdlib.h>" | cc -E -' gcc libc6-dev
    setup_need 'command -v meson' meson
    setup_need 'command -v ninja' ninja-build
    setup_need 'command -v pkg-config' pkg-config
    setup_need 'pkg-config --exists libutf8proc' libutf8proc-dev
    setup_need 'pkg-config --exists jansson' libjansson-dev
}

setup_install() {
    [ -n "$setup_missing" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "Missing, by the names that Debian gives them:$setup_missing. Please install them and start again." >&2
        return 1
    fi
    if [ "$(id -u)" = 0 ]; then
        setup_root=
    elif command -v sudo >/dev/null 2>&1; then
        setup_root=sudo
    else
        echo "Please have this run as root, then start again: apt-get install$setup_missing" >&2
        return 1
    fi
    echo "==> installing$setup_missing"
    setup_log=$(mktemp)
    # Names that this release does not know are left out: some are split off from others only in newer ones.
    if $setup_root apt-get update -qq >"$setup_log" 2>&1 &&
        setup_known=$(for package in $setup_missing; do
            apt-cache show "$package" >/dev/null 2>&1 && echo "$package"
        done) &&
        $setup_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $setup_known \
            >>"$setup_log" 2>&1; then
        rm -f "$setup_log"
    else
        tail -n 20 "$setup_log" >&2
        echo "Could not install$setup_missing; see above." >&2
        return 1
    fi
}
