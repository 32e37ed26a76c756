"""Every accuracy and error in the README is that of a tracked run."""

import pytest

from tests import claims
from tests.conftest import ROOT

PAGES = ("README.md", "docs/generation.md")


def wrong(text, root=ROOT):
    """What is the matter with the figures of a text, a line each."""
    found = []
    for claim in claims.claims(text):
        if not claim.kind:
            found.append(
                f"line {claim.line}: {claim.shown} has no source; tests/claims.py says how to name one"
            )
        elif claim.kind != "no result":
            try:
                value = claims.value_of(claim, root)
            except LookupError as error:
                found.append(f"line {claim.line}: {claim.shown}: {error}")
                continue
            if not claims.agrees(claim.shown, value):
                found.append(f"line {claim.line}: {claim.shown} is {value:g} in {claim.source}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_tracked_runs(page):
    text = (ROOT / page).read_text()
    assert wrong(text) == []
    assert [claim for claim in claims.claims(text) if claim.kind in ("run", "table")]


@pytest.mark.parametrize("page", PAGES)
def test_an_edited_figure_or_a_lost_source_is_found(page):
    text = (ROOT / page).read_text()
    for claim in claims.claims(text):
        if claim.kind == "no result":
            continue
        source = f"<!-- {claim.kind}: {claim.source} -->"
        place = text.index(source) - len(claim.shown)
        assert text[place : place + len(claim.shown)] == claim.shown
        mantissa, exponent, power = claim.shown.partition("e")
        edited = f"{mantissa[:-1]}{(int(mantissa[-1]) + 5) % 10}{exponent}{power}"
        assert len(wrong(text[:place] + edited + text[place + len(claim.shown) :])) == 1, claim
        assert len(wrong(text.replace(source, "", 1))) == 1, claim


RUN = """\
metric,label,parameter,value
Ptest,all,,{}
inside_mse,4,,0.5
outside_mse,4,,1.0
inside_mse,4,15.0,0.9
"""


@pytest.fixture
def root(tmp_path):
    for seed, value in enumerate((0.98, 0.99)):
        folder = tmp_path / "docs" / "results" / f"cnn-s{seed}"
        folder.mkdir(parents=True)
        (folder / "invariance.csv").write_text(RUN.format(value))
    (tmp_path / "times.csv").write_text("how,error\nfast,0.25\nslow,0.75\n")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "A Ptest of 0.985<!-- run: cnn-s* Ptest --> over seeds",
        "98.5 %<!-- run: cnn-s* Ptest -->",
        "98.5 per cent<!-- run: cnn-s* Ptest -->",
        "98.5 percent<!-- run: cnn-s* Ptest -->",
        "0.5<!-- run: cnn-s0 inside_mse label=4 -->",
        "5E-1<!-- run: cnn-s0 inside_mse label=4 -->",
        "0.98 <!-- run: cnn-s0 Ptest -->",
        "0.99<!-- run: cnn-s*\n Ptest -->",
        "5.0e-1<!-- run: cnn-s0 inside_mse label=4 -->",
        "2.00<!-- run: cnn-s0 outside_mse/inside_mse label=4 -->",
        "0.25<!-- table: times.csv error how=fast -->, of all 0.50<!-- table: times.csv error -->",
        "from 5.1e-6<!-- no result: rounding --> on",
        "Python 3.11, `0.123`, [link](a/0.123.md), 15 epochs, s0.9876\n```\n0.123\n```\n",
        "Apache-2.0, within ±0.3",
    ],
)
def test_true_claims_pass(root, text):
    assert wrong(text, root) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.984<!-- run: cnn-s* Ptest -->", "0.984 is 0.985"),
        ("98.4 %<!-- run: cnn-s* Ptest -->", "98.4 % is 0.985"),
        ("a Ptest of 0.985", "0.985 has no source"),
        ("1.5 minutes", "1.5 has no source"),
        ("98.4 percent<!-- run: cnn-s* Ptest -->", "98.4 percent is 0.985"),
        ("1.5e+3", "1.5e+3 has no source"),
        ("97%", "97% has no source"),
        ("3e-7 or so", "3e-7 has no source"),
        ("0.985 and <!-- run: cnn-s* Ptest -->", "0.985 has no source"),
        ("0.985<!-- run: dnn-s* Ptest -->", "no tracked run dnn-s*"),
        ("0.985<!-- run: cnn-s* Pinv -->", "nothing has"),
        ("0.5000<!-- run: cnn-s0 inside_mse label=9 -->", "nothing has"),
    ],
)
def test_false_and_unfounded_claims_are_found(root, text, message):
    (found,) = wrong(text, root)
    assert message in found
