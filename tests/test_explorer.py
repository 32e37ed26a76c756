"""The page docs/explorer in headless Chromium: networks say what Python says, and one sees them fail.

Needs the extras `explorer` and `onnx`, npm and a Chromium on the PATH; TFINV_REQUIRE_EXPLORER=1 turns a
missing one into a failure.
"""

import dataclasses
import functools
import http.server
import importlib.util
import os
import shutil
import threading

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT
from tfinv import explorer, models, report, runs
from tfinv.data import load_dataset
from tfinv.data.transforms import rotation, shift
from tfinv.errors import UsageError
from tfinv.export import load_model
from tfinv.export.single import single_endpoint
from tfinv.summary import Result

PAGE, ZOO = ROOT / "docs" / "explorer", ROOT / "saved_models" / "reference"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CNN, IMAGINING = "cnn_quick-mnist-rotate-34-s0", "cnn_quick_operators-mnist-rotate-34-s0"
RENDERING = ("hypernet_address-mnist-rotate-49-s0", "address_generator_quick-mnist-rotate-49-s0")
PHONE = {"width": 360, "height": 740}
# What every network says, by its name.
ANSWERS = """explorer.networks().map(({name, answer}) => {
  const {probabilities, picture} = answer;
  return [name, {probabilities: Array.from(probabilities ?? []), picture: Array.from(picture ?? [])}];
})"""


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = [name for name in ("playwright", "tf2onnx") if importlib.util.find_spec(name) is None]
    missing += [name for name, found in (("npm", shutil.which("npm")), ("chromium", program)) if not found]
    if missing:
        reason = f"needs {', '.join(missing)}"
        pytest.fail(reason) if os.environ.get("TFINV_REQUIRE_EXPLORER") == "1" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


def copied(folder):
    return shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns(explorer.BUILT, "node_modules"))


@pytest.fixture(scope="module")
def serve():
    """A function that serves a folder as `python -m http.server` does and returns its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def address(browser, serve, tmp_path_factory):
    page = copied(tmp_path_factory.mktemp("page") / "explorer")
    explorer.build(page, ZOO)
    return serve(page)


@pytest.fixture
def show(browser, address):
    """A function that opens the page; the test fails if anything was written to its console."""
    contexts, complaints = [], []

    def start(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        settled(page)
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def settled(page):
    page.wait_for_selector("main[aria-busy=false]", timeout=60_000)
    page.evaluate("explorer.settled()")


def change(page, **changes):
    page.evaluate("changes => { explorer.change(changes); return explorer.settled() }", changes)


def verdicts(page):
    cards = page.locator(".card").all()
    return {card.get_attribute("data-network"): card.locator(".verdict").inner_text() for card in cards}


def pick(page, label, rank=0):
    page.get_by_role("button", name=f"A {label}, ").nth(rank).click()
    settled(page)


@pytest.fixture(scope="module")
def in_python():
    """What each network of the zoo says, computed by TensorFlow."""
    functions = {}
    for folder in (path.parent for path in ZOO.glob(f"*/{runs.MODEL}")):
        config = models.read_run_config(folder)
        protocol = report.protocol_of(config)
        model, endpoint = single_endpoint(load_model(folder / runs.MODEL), protocol)
        functions[config.run_id] = (protocol.task, endpoint.function(), model)

    def answer(name, upright, seen, degrees):
        task, function, _ = functions[name]
        if task == "generation":
            return {"picture": function(upright, np.array([degrees], np.float32))["transformed"]}
        outputs = function(seen)
        answers = {"probabilities": outputs["probabilities"]}
        return answers | ({"picture": outputs["reconstruction"]} if "reconstruction" in outputs else {})

    return answer


@pytest.mark.parametrize(
    "degrees, across, down", [(0, 0, 0), (37, 0, 0), (180, 3, -5), (-90, 0, 0), (-133, -8, 2)]
)
def test_networks_say_what_they_say_in_python(show, in_python, degrees, across, down):
    dataset, page = load_dataset("mnist"), show()
    for label in (3, 7):
        pick(page, label)
        change(page, degrees=degrees, across=across, down=down)
        raw = dataset.x_test[np.flatnonzero(dataset.y_test == label)[:1]]
        upright = (raw / 255).astype(np.float32)
        turned = rotation.apply(upright, np.array([degrees], np.float32))
        seen = shift.apply(turned, np.array([[across, down]], np.float32))
        shown = page.evaluate("Array.from(explorer.view().seen)")
        np.testing.assert_allclose(shown, np.ravel(seen), atol=1e-4)
        answers = page.evaluate(ANSWERS)
        assert len(answers) == len(list(ZOO.glob(f"*/{runs.MODEL}")))
        for name, answer in answers:
            expected = in_python(name, upright, seen, degrees)
            assert {kind for kind, values in answer.items() if values} == set(expected), name
            for kind, values in expected.items():
                np.testing.assert_allclose(answer[kind], np.ravel(values), atol=1e-4, err_msg=name)


def test_one_sees_a_network_fail_and_another_pass(show):
    page = show()
    for rank in range(3):
        pick(page, 3, rank)
        change(page, degrees=0)
        upright = verdicts(page)
        assert "right" in upright[CNN] and "right" in upright[IMAGINING]
        change(page, degrees=180)
        turned = verdicts(page)
        assert "wrong" in turned[CNN] and "right" in turned[IMAGINING], turned
    curve = page.locator(f"[data-network='{CNN}'] svg").get_attribute("aria-label")
    assert "3 by angle; here 0.0" in curve and "at 180 degrees. Trained from -45 to 45 degrees" in curve
    change(page, label=8)
    curve = page.locator(f"[data-network='{CNN}'] svg").get_attribute("aria-label")
    assert "8 by angle; here 0.9" in curve and "Trained from -180 to 180" in curve
    top = "(svg) => svg.querySelector('text').nextElementSibling.nextElementSibling.textContent"
    errors = [page.locator(f"[data-network='{name}'] svg").evaluate(top) for name in RENDERING]
    assert len(set(errors)) == 1 and float(errors[0]) > 0.01, "errors share an axis"
    pick(page, 9)  # in no training image
    assert page.locator(f"[data-network='{CNN}'] .curve").is_hidden()
    assert ":" not in verdicts(page)[CNN]


def test_keyboard_alone_turns_shifts_and_picks(show):
    page = show()
    page.get_by_role("slider", name="Angle").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#seen").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    state = "(({degrees, across, down, label}) => [degrees, across, down, label])(explorer.state)"
    assert page.evaluate(state) == [1, 1, 2, 3]
    page.get_by_role("button", name="A 7, ").first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Upright, centred").press("Enter")
    assert page.evaluate(state) == [0, 0, 0, 7]
    settled(page)
    page.wait_for_function("document.getElementById('summary').textContent.includes('At 0')")
    for kind in ("button", "slider", "combobox", "img", "application"):
        for element in page.get_by_role(kind).all():
            snapshot = element.aria_snapshot()
            assert '"' in snapshot, f"without a name: {snapshot}"


def test_pointer_draws_and_drags(show):
    page = show()
    page.get_by_role("button", name="Clear").click()
    page.locator("#drawing").scroll_into_view_if_needed()

    def drag(canvas, *points):
        box = page.locator(canvas).bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=5)
        page.mouse.up()
        settled(page)

    drag("#drawing", (0.3, 0.15), (0.35, 0.85))
    assert 30 < page.evaluate("explorer.state.image.reduce((a, b) => a + b)") < 120
    _, xs = np.mgrid[:28, :28]
    seen = np.reshape(page.evaluate("Array.from(explorer.view().seen)"), (28, 28))
    assert (seen * xs).sum() / seen.sum() == pytest.approx(13.5, abs=0.2), "drawings are centred"
    assert "Says 1" in verdicts(page)[CNN] and ":" not in verdicts(page)[CNN], verdicts(page)
    page.get_by_label("It is a").select_option("1")
    settled(page)
    assert "right" in verdicts(page)[CNN]
    drag("#seen", (0.5, 0.5), (0.5 + 4 / 28, 0.5 - 3 / 28))
    assert page.evaluate("[explorer.state.across, explorer.state.down]") == [4, -3]


def test_a_phone_and_the_dark(show):
    phone, dark = show(viewport=PHONE, has_touch=True), show(color_scheme="dark")
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    backgrounds = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (phone, dark)]
    assert backgrounds == ["rgb(251, 251, 249)", "rgb(22, 24, 27)"]
    phone.locator(".card").last.scroll_into_view_if_needed()
    assert phone.evaluate("document.getElementById('angle').getBoundingClientRect().top") >= 0, (
        "stays in sight"
    )
    phone.evaluate("scrollTo(0, 0)")
    before = phone.evaluate("explorer.state.degrees")
    phone.get_by_role("button", name="Keep turning").tap()
    phone.wait_for_function(f"explorer.state.degrees > {before} + 10")
    phone.get_by_role("button", name="Keep turning").tap()


def test_page_without_networks_says_what_to_run(browser, serve, tmp_path):
    page = browser.new_page()
    page.goto(serve(copied(tmp_path / "explorer")))
    page.get_by_role("alert").wait_for(state="visible")
    assert "Run: python scripts/build_explorer.py" in page.get_by_role("alert").inner_text()
    page.close()


def test_networks_that_turn_nothing_upright_are_left_out():
    protocols = ("rotate-34", "rotate-49", "upright-49", "shift-49", "affine")
    folder, turning = ZOO / CNN, {}
    for name in protocols:
        config = dataclasses.replace(models.read_run_config(folder), protocol=name)
        turning[name] = explorer._turns(Result(folder, config, pd.DataFrame()))
    assert [name for name in protocols if turning[name]] == ["rotate-34", "rotate-49"]


def test_what_is_missing_is_named_before_anything_is_replaced(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"lacks package\.json"):
        explorer.build(tmp_path, ZOO)
    page = copied(tmp_path / "explorer")
    with pytest.raises(UsageError, match="No networks trained on rotated MNIST"):
        explorer.build(page, tmp_path / "empty")
    built = page / explorer.BUILT
    built.mkdir()
    (built / "old").touch()
    monkeypatch.setattr(explorer, "check_onnx", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="npm, which brings onnxruntime-web, is not on the PATH"):
        explorer.build(page, ZOO)
    assert [path.name for path in built.iterdir()] == ["old"]
    assert not list(page.glob("*partial*"))
