"""A page in headless Chromium: what is cut off there, and what cannot be read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

# What is wider than the window and does not scroll, and text of too little contrast (WCAG: 4.5).
PROBE = """
<script>
function rgb(text) { return text.match(/[\\d.]+/g).map(Number); }
function luminance(c) {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const [r, g, b] = c.map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
}
function behind(node) {
  for (; node; node = node.parentElement) {
    const c = rgb(getComputedStyle(node).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
  }
  return [255, 255, 255];
}
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const wide = [], pale = [];
  for (const node of document.querySelectorAll("body *")) {
    const scrolls = node.closest(".shoal, figure");
    const right = node.getBoundingClientRect().right;
    if (!scrolls && right > innerWidth + 1) wide.push(node.outerHTML.slice(0, 80));
    const own = [...node.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    if (!own || node.closest("style, script, title, metadata")) continue;
    const style = getComputedStyle(node), svg = node.closest("svg");
    const [a, b] = [rgb(svg ? style.fill : style.color).slice(0, 3), behind(node)].map(luminance);
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) pale.push(contrast.toFixed(1) + " " + node.textContent.trim().slice(0, 40));
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.body.dataset.found = JSON.stringify({
    wide, pale, dark, page: document.documentElement.scrollWidth, window: innerWidth});
});
</script>
"""


def assert_all_can_be_read(page: Path, width: int, scheme: str) -> None:
    """Show a page that wide, in the "light" or "dark" scheme, and check it."""
    inner = page.with_name("probed.html")
    inner.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"))
    # A window of Chromium is at least 500 pixels wide; a frame may be of any width.
    outer = page.with_name("outer.html")
    outer.write_text(
        f'<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() => document.body.dataset.found ="
        "document.querySelector('iframe').contentDocument.body.dataset.found, 300))</script>"
    )
    assert BROWSER is not None
    ran = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu",
         "--allow-file-access-from-files", "--enable-logging=stderr",
         "--virtual-time-budget=3000", "--window-size=1300,1000",
         f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--dump-dom",
         outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr
    match = re.search(r'<body data-found="([^"]*)"', ran.stdout)
    assert match is not None, ran.stdout[-500:]
    found = json.loads(match[1].replace("&quot;", '"').replace("&lt;", "<").replace("&amp;", "&"))
    assert found["dark"] == (scheme == "dark")
    assert found["window"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert found["pale"] == []
