#!/usr/bin/env python3
"""Looks at a report in a headless Chromium, as a reader would.

    scripts/check_report.py report.html [FOLDER]

Opens the page 1440 and 360 pixels wide, light and dark, as it comes and with everything unfolded,
writes a screenshot of each into FOLDER (where one is given), and fails where the browser complains
on its console or the page can be scrolled sideways. Needs `chromium` on the PATH, or its name in
CHROMIUM. Standard library only.
"""

import html
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

WIDTHS = (1440, 360)
SCHEMES = {"dark": 0, "light": 1}
TALLEST = 12_000

# The page allows itself no script, so a frame around it measures it.
FRAME = """<!doctype html><body style="margin:0">
<iframe src="{page}" style="border:0;display:block" width="{width}" height="{height}"></iframe>
<script>
onload = () => {{
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement;
  if ({unfold}) inner.querySelectorAll("details").forEach(d => d.open = true);
  const wide = [...inner.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg, details:not([open])")
    && e.getBoundingClientRect().right > {width} + 1);
  const told = {{ width: root.scrollWidth, height: root.scrollHeight,
    wide: wide.slice(0, 5).map(e => e.tagName + "." + e.className) }};
  document.body.append(Object.assign(document.createElement("pre"), {{ textContent: JSON.stringify(told) }}));
}};
</script>
"""


def chromium(*flags):
    name = os.environ.get("CHROMIUM", "chromium")
    command = [name, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--allow-file-access-from-files", "--enable-logging=stderr", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, told


def look(page, width, scheme, unfold, folder, scratch):
    frame = scratch / "frame.html"
    flags = [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=9000"]

    def write(height):
        frame.write_text(FRAME.format(page=html.escape(page.as_uri()), width=width, height=height,
                                      unfold=json.dumps(unfold)))

    write(900)
    dom, told = chromium(*flags, "--dump-dom", f"--window-size={max(width, 500)},900", frame.as_uri())
    found = re.search(r"<pre>(\{.*\})</pre>", dom)
    if not found:
        return [f"{width} {scheme}: the page could not be measured"]
    size = json.loads(html.unescape(found[1]))
    complaints = [f"{width} {scheme}: {line}" for line in told]
    if size["width"] > width:
        complaints.append(f"{width} {scheme}: {size['width']} pixels wide: {size['wide']}")
    if folder:
        height = min(size["height"], TALLEST)
        name = folder / f"{width}-{scheme}{'-unfolded' if unfold else ''}.png"
        write(height)
        chromium(*flags, f"--screenshot={name}", f"--window-size={max(width, 500)},{height}",
                 frame.as_uri())
        print(name)
    return complaints


def main():
    page = pathlib.Path(sys.argv[1]).resolve()
    folder = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    complaints = []
    with tempfile.TemporaryDirectory() as scratch:
        for width in WIDTHS:
            for scheme, unfold in (("light", False), ("light", True), ("dark", False)):
                complaints += look(page, width, scheme, unfold, folder, pathlib.Path(scratch))
    print("\n".join(complaints) or "no complaints")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
