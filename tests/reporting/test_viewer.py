"""The page to scroll through cases: what it carries, and what it does in a real browser.

Everything here is synthetic.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from pages import Elements

from ctseg.errors import CaseError
from ctseg.geometry.volume import Volume
from ctseg.reporting import viewer
from ctseg.reporting.pictures import slices
from ctseg.reporting.results import Results

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SHAPE = (24, 40, 48)
NAMES = ("liver", "</script><b>spleen")


def volumes(shape=SHAPE, spacing=(3.0, 2.0, 2.0)) -> tuple[Volume, Volume, Volume]:
    """A scan that grows brighter towards the patient's left; the liver on the right, the spleen on the left,
    predicted a little higher.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    _d, _h, w = np.indices(shape)
    image = Volume((w * 5.0 - 100).astype(np.float32), affine)
    label = np.zeros(shape, dtype=np.uint8)
    label[8:16, 10:30, 5:20] = 1
    label[8:16, 10:30, 30:42] = 2
    return image, Volume(label, affine), Volume(np.roll(label, 2, axis=0), affine)


def page() -> str:
    found = Results({"model": "unet", "structures": list(NAMES), "synthetic": True})
    return viewer.render(
        found,
        [
            viewer.view_case(title, slices.on_one_grid(*volumes()), (-160.0, 240.0))
            for title in ("case a", "case b")
        ],
    )


def test_the_page_carries_the_volumes_and_nothing_else():
    text = page()
    elements = Elements(text)
    policy = next(
        dict(attributes)["content"]
        for tag, attributes in elements.tags
        if tag == "meta" and "content-security" in str(attributes).lower()
    )
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert (
        len(scripts) == 1
        and f"'sha256-{base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()}'" in policy
        and "default-src 'none'" in policy
    )
    assert not re.search(r"https?://", text) and all(
        "src" not in attributes for _, attributes in elements.tags
    )
    content = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    )
    assert content["structures"] == list(NAMES) and len(content["cases"]) == 2
    case = content["cases"][0]
    image, reference, prediction = (
        np.frombuffer(gzip.decompress(base64.b64decode(case[name])), np.uint8).reshape(case["shape"])
        for name in ("image", "reference", "prediction")
    )
    assert set(np.unique(reference)) == {0, 1, 2} and np.array_equal(
        np.roll(reference, 2, axis=0), prediction
    )
    # brighter to the left: to the right of the picture
    assert (np.diff(image.astype(int), axis=2) >= 0).all() and case["spacing"] == [3.0, 2.0, 2.0]


def test_large_scans_are_thinned_and_other_grids_refused():
    image, reference, prediction = volumes((40, 200, 380), (2.0, 1.0, 1.0))
    label = np.zeros(image.array.shape, dtype=np.uint8)
    label[5:35, 5:195, 5:370] = 1
    same = Volume(label, image.affine)
    case = viewer.view_case("big", slices.on_one_grid(image, same, same), (-160.0, 240.0))
    assert max(case["shape"]) <= viewer.LARGEST and case["spacing"] == [2.0, 2.0, 3.0]
    moved = prediction.affine.copy()
    moved[0, 3] += 5
    with pytest.raises(CaseError, match="grid"):
        slices.on_one_grid(image, reference, Volume(prediction.array, moved))


def browse(folder, text: str) -> str:
    """The page after the browser has run it."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=8000",
        "--dump-dom",
        (folder / "page.html").as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_policy_lets_the_pages_own_script_run(tmp_path):
    assert 'data-ready="yes"' in browse(tmp_path, page())


DRIVER = """
<script>
const seen = [];
const note = (what) => {
  const at = (x, y) => Array.from(canvas.getContext("2d").getImageData(x, y, 1, 1).data.slice(0, 3));
  let sum = 0;
  const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < all.length; i += 4) sum += all[i] * (i % 9973) + all[i + 1] + all[i + 2];
  seen.push({what, sum, place: document.getElementById("place").textContent,
  wide: canvas.width, tall: canvas.height,
  left: at(30, Math.floor(canvas.height / 4)),
  right: at(canvas.width - 30, Math.floor(canvas.height / 4)),
  under: document.getElementById("under").textContent}); };
const wait = setInterval(() => {
  if (document.body.dataset.ready !== "yes") return;
  clearInterval(wait);
  note("start");
  canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -100, cancelable: true})); note("wheel");
  for (let i = 0; i < 99; i++)
    canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -100, cancelable: true}));
  note("end");
  document.getElementById("slice").value = 4;
  document.getElementById("slice").dispatchEvent(new Event("input")); note("slider");
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key: "PageUp", cancelable: true})); note("key");
  document.getElementById("prediction").click(); note("no prediction");
  document.getElementById("reference").click(); note("neither");
  document.getElementById("prediction").click(); note("no reference");
  document.querySelector("button[data-plane=coronal]").click(); note("coronal");
  document.querySelector("button[data-plane=sagittal]").click(); note("sagittal");
  document.querySelector("button[data-plane=axial]").click();
  document.getElementById("reference").click();
  const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + box.width * POINT_X,
    clientY: box.top + box.height / 2})); note("pointed");
  const out = document.createElement("pre"); out.id = "seen";
  out.textContent = JSON.stringify(seen); document.body.append(out);
}, 20);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_scrolling_toggling_and_pointing_in_a_browser(tmp_path):
    # so that the driver may run
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page())
    text = text.replace("</body>", DRIVER.replace("POINT_X", "0.25") + "</body>")
    seen = {
        one["what"]: one
        for one in json.loads(
            re.search(r'<pre id="seen">(.*?)</pre>', browse(tmp_path, text), re.DOTALL)
            .group(1)
            .replace("&gt;", ">")
            .replace("&lt;", "<")
        )
    }
    number = {what: int(re.search(r"slice (\d+) of", one["place"]).group(1)) for what, one in seen.items()}
    depth = int(seen["start"]["place"].split()[-1])
    assert (
        number["wheel"] == number["start"] + 1
        and number["end"] == depth
        and number["slider"] == 5
        and number["key"] == 15
    )
    sums = [seen[what]["sum"] for what in ("key", "no prediction", "neither", "no reference")]
    assert len(set(sums)) == 4  # every switch changes the picture
    assert [seen[what]["place"].split(",")[0] for what in ("coronal", "sagittal", "pointed")] == [
        "coronal",
        "sagittal",
        "axial",
    ]
    # the patient's left, brighter here, on the right
    assert np.mean(seen["neither"]["right"]) > np.mean(seen["neither"]["left"]) + 20
    case = viewer.view_case("case", slices.on_one_grid(*volumes()), (-160.0, 240.0))
    d, h, w = case["shape"]
    assert (
        abs(seen["start"]["wide"] / seen["start"]["tall"] - w / h) < 0.05
        and abs(seen["coronal"]["wide"] / seen["coronal"]["tall"] - (2 * w) / (3 * d)) < 0.05
    )
    assert seen["pointed"]["under"] == "reference: liver, prediction: liver"
