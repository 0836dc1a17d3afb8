"""Makes the README's picture, docs/assets/heads.png: the demo's heat map of the bundled conv-attn.

    python docs/picture.py

takes the figure of `interp.head_scores`, draws it in a Chromium or Chrome that is installed, and
writes into the image which weights it shows, so that a test can tell when it is out of date.
"""

import argparse
import hashlib
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import interp
from interp.models.hub import bundled

NAME = "conv-attn"
PICTURE = Path(__file__).parent / "assets" / "heads.png"
KEYWORD = b"Weights"
MARGIN = 12
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def draw(browser: str, picture: Path) -> None:
    """Take a picture of the figure, in twice the resolution of the page."""
    figure = interp.head_scores(interp.load(NAME)).plot()
    figure.update_layout(paper_bgcolor="white")
    layout = figure.to_dict()["layout"]
    width, height = int(layout["width"]) + 2 * MARGIN, int(layout["height"]) + 2 * MARGIN
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        figure.write_html(page, include_plotlyjs=True, config={"displayModeBar": False})
        page.write_text(page.read_text().replace("<body>", f'<body style="margin:{MARGIN}px">', 1))
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--force-device-scale-factor=2",
                f"--user-data-dir={scratch}/profile",
                "--virtual-time-budget=15000",
                f"--window-size={width},{height}",
                f"--screenshot={scratch}/page.png",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        picture.write_bytes(with_text(Path(scratch, "page.png").read_bytes(), fingerprint()))


def fingerprint() -> bytes:
    """Which weights the picture shows."""
    weights = (bundled()[NAME] / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest().encode()


def with_text(png: bytes, text: bytes) -> bytes:
    """The image with a text chunk after its header (PNG specification, section 11.3.4.3)."""
    header = 8 + 4 + 4 + 13 + 4
    chunk = b"tEXt" + KEYWORD + b"\0" + text
    sized = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:header] + sized + png[header:]


def main() -> None:
    """Find a browser and draw."""
    parser = argparse.ArgumentParser(description="Make the README's picture.")
    parser.add_argument("--browser", default=next(filter(shutil.which, BROWSERS), None))
    browser = parser.parse_args().browser
    if browser is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed; name another one with --browser")
    draw(browser, PICTURE)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
