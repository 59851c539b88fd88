#!/usr/bin/env bash
# `llamina selftest` for NEON without an Arm CPU: an arm64 Python with its wheels, unpacked into a folder and run by qemu's user-mode emulation. Optional, and slow
# (about a quarter of an hour). Needs Debian or Ubuntu, root for apt, and a package index; nothing is installed but qemu itself.
#   usage: bash .ci/arm64_emulated.sh [FOLDER] [-- command of llamina …]          default: selftest --quick, then the kernels' digests against this machine's
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] && shift
[ "${1:-}" = -- ] && shift
mkdir -p "$folder"/{debs,root,wheels,site,names,cache}
folder=$(cd "$folder" && pwd)
chmod 700 "$folder/cache"

if ! command -v qemu-aarch64-static >/dev/null; then
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq qemu-user-static
fi
if [ ! -x "$folder/root/usr/bin/python3" ]; then
    dpkg --add-architecture arm64
    apt-get update -q
    python=$(apt-cache depends python3-minimal:arm64 | sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal.*/\1/p' | head -1)
    (cd "$folder/debs" && apt-get download -q $(printf '%s:arm64 ' libc6 libstdc++6 libgcc-s1 zlib1g libexpat1 libffi8 libssl3 libsqlite3-0 libbz2-1.0 liblzma5 \
        libncursesw6 libtinfo6 libreadline8 libuuid1 libcrypt1 libtirpc3 libnsl2 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 \
        "$python" "$python-minimal" "lib$python-stdlib" "lib$python-minimal"))
    for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/root"; done
    ln -sf "$python" "$folder/root/usr/bin/python3"
fi
version=$(readlink "$folder/root/usr/bin/python3")
if [ ! -d "$folder/site/numba" ]; then
    python3 -m pip download -q --only-binary=:all: --implementation cp --python-version "${version#python}" -d "$folder/wheels" \
        $(printf -- '--platform %s ' manylinux2014_aarch64 manylinux_2_17_aarch64 manylinux_2_27_aarch64 manylinux_2_28_aarch64) \
        numpy numba sentencepiece tokenizers gguf jinja2 click rich prompt_toolkit llguidance
    for wheel in "$folder"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$folder/site"; done
fi
ln -sfn "$here" "$folder/names/llamina"

# qemu does not tell LLVM what the emulated CPU can do: a Cortex-A76 with its byte dot product is asked for
export QEMU_LD_PREFIX="$folder/root" QEMU_CPU=max NUMBA_CPU_NAME=cortex-a76 NUMBA_CPU_FEATURES="+neon,+dotprod,+fullfp16,+fp-armv8,+lse,+crc,+rcpc"
export PYTHONPATH="$folder/site:$folder/names:$here/tests" LLAMINA_COMPILE_CACHE="$folder/cache"
arm() { qemu-aarch64-static "$folder/root/usr/bin/python3" "$@"; }
cd "$folder" # not in the checkout: its folders have names that libraries ask for
if [ $# -gt 0 ]; then
    arm -m llamina "$@"
    exit
fi
arm -c 'from llamina.kernels.target import TARGET; print("target:", TARGET); assert TARGET == "neon"'
arm -m llamina selftest --quick
arm "$here/tests/kernel_digests.py" >"$folder/neon.json"
echo "kernel digests: $folder/neon.json (compare with those that tests/kernel_digests.py prints on an x86 machine)"
