#!/bin/sh
# Fetch the public photographs that the packaged weights were trained on into a folder.
#
#   tools/fetch_photos.sh PHOTOS
#
# | folder      | what                                             | licence                                   |
# | ----------- | ------------------------------------------------ | ----------------------------------------- |
# | cid22/      | 209 pictures of 512², the training part of       | CC BY-SA 4.0, Cloudinary (CID22)          |
# |             | Cloudinary's Image Dataset '22                   |                                           |
# | budgie/     | budgie-backgrounds, longest side 2048            | CC0 1.0                                   |
# | clic2025/   | 62 photographs, longest side 2048, of the        | Unsplash License                          |
# |             | Challenge on Learned Image Compression 2025     |                                           |
# | wallpapers/ | 12 photographs of mate-backgrounds               | GPL-2+, authors in its debian/copyright   |
# |             | 9 photographs of plasma-workspace-wallpapers     | LGPL-3, authors in their metadata.json    |
#
# Needs git, curl, ar, tar and xz, Python with Pillow, and 900 MB. Folders that exist are not fetched again.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: tools/fetch_photos.sh PHOTOS" >&2
    exit 2
fi
mkdir -p "$1"
photos=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# Re-encode like the training data: JPEG at full colour resolution, no side above 2048.
as_jpeg() { # FOLDER_OF_PICTURES OUT
    mkdir -p "$2.part"
    python3 - "$1" "$2.part" <<'PYTHON'
import pathlib
import sys

from PIL import Image

Image.MAX_IMAGE_PIXELS = None
source, out = map(pathlib.Path, sys.argv[1:])
for path in sorted(source.iterdir()):
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".jxl"):
        try:
            picture = Image.open(path).convert("RGB")
        except OSError as error:
            print(f"left out {path.name}: {error}", file=sys.stderr)
            continue
        picture.thumbnail((2048, 2048), Image.Resampling.LANCZOS)
        picture.save(out / f"{path.stem}.jpg", quality=92, subsampling=0)
PYTHON
    mv "$2.part" "$2"
}

if [ ! -d "$photos/cid22" ]; then
    git clone --quiet --depth 1 --filter=blob:none --sparse https://github.com/imazen/codec-corpus "$work/corpus"
    git -C "$work/corpus" sparse-checkout set CID22/CID22-512/training
    as_jpeg "$work/corpus/CID22/CID22-512/training" "$photos/cid22"
fi

# Names: CLIC's prefix of the part and the first 12 digits of the file's name, vali-… and test-….
if [ ! -d "$photos/clic2025" ]; then
    rm -rf "$work/corpus" && mkdir "$work/clic2025"
    git clone --quiet --depth 1 --filter=blob:none --sparse https://github.com/imazen/codec-corpus "$work/corpus"
    git -C "$work/corpus" sparse-checkout set clic2025/training clic2025/final-test
    for part in training:vali final-test:test; do
        for file in "$work/corpus/clic2025/${part%:*}"/*.png; do
            mv "$file" "$work/clic2025/${part#*:}-$(basename "$file" .png | cut -c 1-12).png"
        done
    done
    as_jpeg "$work/clic2025" "$photos/clic2025"
fi

if [ ! -d "$photos/budgie" ]; then
    git clone --quiet --depth 1 https://github.com/BuddiesOfBudgie/budgie-backgrounds "$work/budgie"
    as_jpeg "$work/budgie/backgrounds" "$photos/budgie"
fi

if [ ! -d "$photos/wallpapers" ]; then
    pool=https://deb.debian.org/debian/pool/main
    mkdir -p "$photos/wallpapers.part"
    for package in m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb \
        p/plasma-workspace-wallpapers/plasma-workspace-wallpapers_5.27.5-2_all.deb; do
        (mkdir "$work/deb" && cd "$work/deb" && curl -fsSL "$pool/$package" -o package.deb && ar x package.deb && tar xf data.tar.*)
        for file in "$work"/deb/usr/share/backgrounds/mate/nature/*.jpg; do
            [ ! -e "$file" ] || cp "$file" "$photos/wallpapers.part/mate-$(basename "$file")"
        done
        for name in BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Kite OneStandsOut Path summer_1am; do
            file=$work/deb/usr/share/wallpapers/$name/contents/images/2560x1600.jpg
            [ ! -e "$file" ] || cp "$file" "$photos/wallpapers.part/plasma-$name.jpg"
        done
        rm -rf "$work/deb"
    done
    mv "$photos/wallpapers.part" "$photos/wallpapers"
fi

for folder in cid22 budgie clic2025 wallpapers; do
    echo "$photos/$folder: $(find "$photos/$folder" -name '*.jpg' | wc -l) pictures"
done
