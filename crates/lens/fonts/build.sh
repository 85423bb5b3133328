#!/bin/sh
# Makes the fonts in this folder anew. Needs apt-get and dpkg-deb (Debian 12), npm, python3 with fonttools.
#
#     sh build.sh SCRATCH_FOLDER
set -eu
fonts=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"

for package in fonts-noto-core fonts-dejavu-core fonts-droid-fallback; do
  apt-get download "$package"
  dpkg-deb -x "$package"_*.deb unpacked
done
tar xzf "$(npm pack @expo-google-fonts/noto-emoji@0.4.7)"
truetype=unpacked/usr/share/fonts/truetype

# Everything but hinting, which is of no use to a rasteriser that does not hint.
shrink() {
  from=$1 to=$2
  shift 2
  pyftsubset "$from" --output-file="$fonts/$to" --layout-features='*' --no-hinting --name-IDs='*' "$@"
}

for script in "" Devanagari Bengali Gurmukhi Gujarati Tamil Telugu Kannada Malayalam Sinhala Thai Lao Khmer Myanmar Ethiopic; do
  shrink "$truetype/noto/NotoSans$script-Regular.ttf" "NotoSans$script-Regular.ttf" --unicodes='*'
done
shrink unpacked/usr/share/fonts-droid-fallback/truetype/DroidSansFallback.ttf DroidSansFallback.ttf --unicodes='*'
shrink package/400Regular/NotoEmoji_400Regular.ttf NotoEmoji-Regular.ttf --unicodes='*'

# Of DejaVu Sans what Noto Sans lacks (symbols, Arabic, Hebrew, Georgian, Armenian and so on), and Latin-1, which may
# stand beside it.
python3 - "$truetype" > dejavu.unicodes <<'PYTHON'
import sys
from fontTools.ttLib import TTFont

characters = lambda file: set(TTFont(f"{sys.argv[1]}/{file}").getBestCmap())
rest = characters("dejavu/DejaVuSans.ttf") - characters("noto/NotoSans-Regular.ttf")
beside = {*range(0x20, 0x7F), *range(0xA0, 0x100), 0x2026, 0x25CC}
print(",".join(f"{character:x}" for character in sorted(rest | beside)))
PYTHON
shrink "$truetype/dejavu/DejaVuSans.ttf" DejaVuSans-Rest.ttf --unicodes-file=dejavu.unicodes
