"""The best-known terms of the licences that models, layers and data sets are published under.

Sources: the licences' own texts (creativecommons.org, opensource.org, ai.google.dev/gemma/terms,
llama.com/llama3_1/license and its siblings, licenses.ai for RAIL), and for names the Hub's list of
licence identifiers. SPDX identifiers are checked and spelt by `packaging`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True)
class Terms:
    """One licence."""

    name: str
    """As SPDX spells it; as it was stated where SPDX does not know it."""
    known: bool = True
    obligations: tuple[str, ...] = ()
    share_alike: str | None = None
    """The kind of licence that a joined work has to be under."""
    non_commercial: bool = False
    no_derivatives: Literal["share", "make"] | None = None
    """What it bans of adaptations: sharing them (Creative Commons 4.0), or making them at all."""
    why_nc: str = "non-commercial licence"

    @property
    def weight(self) -> tuple[int, int, int, int, int]:
        """Greater: asks for more. Compared in this order where a licence offers a choice."""
        return (
            int(not self.known),
            int(self.no_derivatives is not None),
            int(self.non_commercial),
            int(self.share_alike is not None),
            len(self.obligations),
        )


ATTRIBUTE = "attribution: name the author and the licence, keep notices, say what you changed"
NOTICE = "notice: keep its copyright and licence text with what you hand on"
ALIKE = "share-alike: joined or adapted work goes on under the same licence"
NON_COMMERCIAL = "non-commercial use only"
NO_DERIVATIVES = "no derivatives: adaptations are not to be shared"

SHARE_ALIKE_INTO: dict[str, set[str]] = {
    "CC-BY-SA-3.0": {"CC-BY-SA-4.0", "GPL-3.0"},
    "CC-BY-SA-2.5": {"CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-3.0"},
    "CC-BY-SA-2.0": {"CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-3.0"},
    "CC-BY-SA-4.0": {"GPL-3.0", "AGPL-3.0"},
    "CC-BY-NC-SA-2.0": {"CC-BY-NC-SA-2.5", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0"},
    "CC-BY-NC-SA-2.5": {"CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0"},
    "CC-BY-NC-SA-3.0": {"CC-BY-NC-SA-4.0"},
    "GPL-3.0": {"AGPL-3.0"},
    "GPL-2.0+": {"GPL-2.0", "GPL-3.0", "AGPL-3.0"},
    "LGPL-2.1": {"GPL-2.0", "GPL-3.0", "AGPL-3.0"},
    "LGPL-3.0": {"GPL-3.0", "AGPL-3.0"},
    "MPL-2.0": {"GPL-2.0", "GPL-3.0", "AGPL-3.0", "LGPL-2.1", "LGPL-3.0"},
    "EUPL-1.2": {"GPL-2.0", "GPL-3.0", "AGPL-3.0", "MPL-2.0", "CC-BY-SA-3.0"},
}
"""Share-alike kind -> others under which a joined work may go on: its later versions and the
licences that its stewards declared compatible (creativecommons.org/compatiblelicenses, MPL 2.0
section 3.3, GPL 3.0 section 13, the EUPL's appendix)."""

_LONGEST = 80
"""Most characters of an unknown licence that are shown."""
_FREE = {"CC0-1.0", "Unlicense", "0BSD", "PDDL-1.0", "WTFPL", "MIT-0", "CC-PDDC"}
_NOTICE = {
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "ISC", "Zlib",
    "NCSA", "AFL-3.0", "Artistic-2.0", "BSL-1.0", "MS-PL", "ECL-2.0", "PostgreSQL", "OFL-1.1",
    "Python-2.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "etalab-2.0", "OGL-UK-3.0",
}  # fmt: skip
_ATTRIBUTE = {"ODC-By-1.0"}
_ALIKE = {
    "ODbL-1.0": "ODbL-1.0", "CDLA-Sharing-1.0": "CDLA-Sharing-1.0", "MPL-2.0": "MPL-2.0",
    "EUPL-1.1": "EUPL-1.2", "EUPL-1.2": "EUPL-1.2", "EPL-1.0": "EPL-1.0", "EPL-2.0": "EPL-2.0",
    "OSL-3.0": "OSL-3.0", "GFDL-1.3-only": "GFDL", "GFDL-1.3-or-later": "GFDL", "GFDL-1.3": "GFDL",
}  # fmt: skip
_SPELT = {
    "bsd": "BSD-3-Clause", "odc-by": "ODC-By-1.0", "odbl": "ODbL-1.0", "pddl": "PDDL-1.0",
    "gpl": "GPL-3.0-or-later", "lgpl": "LGPL-3.0-or-later", "gfdl": "GFDL-1.3-only",
    "cc0": "CC0-1.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0", "the mit license": "MIT", "mit license": "MIT",
    "public domain": "CC-PDDC",
}  # fmt: skip
"""Names that hubs and people use, to SPDX's."""
_CC = re.compile(r"cc-by(?P<nc>-nc)?(?P<more>-nd|-sa)?-(?P<version>\d\.\d)(?P<port>-[a-z]+)*", re.I)
_GPL = re.compile(r"(?P<kind>[AL]?GPL)-(?P<version>\d\.\d)(?P<later>\+|-or-later|-only)?", re.I)
_LLAMA = re.compile(r"llama-?(?P<version>\d(?:\.\d)?)(?:-community)?")
_RAIL = re.compile(r"(?:[a-z0-9-]+-)?(?:open)?rail(?:-?m|\+\+|-[a-z0-9.]+)*")
_RESEARCH = {
    "apple-amlr", "apple-ascl", "intel-research", "fair-noncommercial-research-license",
    "qwen-research", "mrl", "mnpl", "cohere-nc", "c-uda",
}  # fmt: skip
"""Licences for research and study alone."""

_GEMMA = (
    "Gemma terms: pass on the terms and their use restrictions, and a Notice file that says the "
    "model is provided under the Gemma Terms of Use; mark modified files",
    "Gemma prohibited use policy applies to whatever is made with it",
)
_RAIL_DUTY = (
    "use restrictions: the licence's list of uses not allowed has to be passed on as binding"
)


@lru_cache(maxsize=1024)
def terms_of(name: str) -> Terms:
    """The terms of one licence by name, in any case; unknown ones say so (`known`)."""
    name = name.strip()
    spelt = _SPELT.get(name.lower(), name)
    return _model_terms(spelt.lower()) or _spdx_terms(spelt) or Terms(_clipped(name), known=False)


def _clipped(name: str) -> str:
    return name if len(name) <= _LONGEST else name[:_LONGEST] + "…"


def _model_terms(name: str) -> Terms | None:
    if name == "gemma":
        return Terms("LicenseRef-gemma", obligations=_GEMMA)
    if match := _LLAMA.fullmatch(name):
        return Terms(f"LicenseRef-llama{match['version']}", obligations=_llama(match["version"]))
    if "rail" in name and _RAIL.fullmatch(name):
        return Terms(f"LicenseRef-{name}", obligations=(ATTRIBUTE, _RAIL_DUTY))
    if name in _RESEARCH:
        return Terms(
            f"LicenseRef-{name}",
            obligations=(NOTICE, NON_COMMERCIAL),
            non_commercial=True,
            why_nc="for research alone",
        )
    stated = name.removeprefix("licenseref-")
    return _model_terms(stated) if stated != name else None


def _llama(version: str) -> tuple[str, ...]:
    """What Meta's community licences ask; the name and the badge since Llama 3."""
    found = [
        "Llama community licence: hand on a copy of it and its notice; its acceptable use policy "
        "applies; above 700 million monthly users ask Meta first"
    ]
    if not version.startswith("2"):
        found.append(
            'Llama: show "Built with Llama", and begin the name of a derived model with it'
        )
    return tuple(found)


def _spdx_terms(name: str) -> Terms | None:
    plain, _, exception = name.partition(" WITH ")
    spelt = _spelt(name)
    if match := _CC.fullmatch(plain):
        return _creative_commons(spelt or plain.upper(), match)
    if match := _GPL.fullmatch(plain):
        return _gpl(spelt or plain, match, exception)
    if spelt is None:
        return None
    bare = _spelt(plain) or plain
    if bare in _FREE:
        return Terms(spelt)
    if bare in _NOTICE:
        return Terms(spelt, obligations=(NOTICE,))
    if bare in _ATTRIBUTE:
        return Terms(spelt, obligations=(ATTRIBUTE,))
    if bare in _ALIKE:
        return Terms(spelt, obligations=(NOTICE, ALIKE), share_alike=_ALIKE[bare])
    return None


def _creative_commons(name: str, match: re.Match[str]) -> Terms:
    nc, more, version = bool(match["nc"]), (match["more"] or "").lower(), match["version"]
    obligations = [ATTRIBUTE]
    obligations += [NON_COMMERCIAL] if nc else []
    obligations += [NO_DERIVATIVES] if more == "-nd" else []
    obligations += [ALIKE] if more == "-sa" else []
    return Terms(
        name,
        obligations=tuple(obligations),
        share_alike=f"CC-BY{'-NC' if nc else ''}-SA-{version}" if more == "-sa" else None,
        non_commercial=nc,
        no_derivatives=("share" if version >= "4" else "make") if more == "-nd" else None,
    )


def _gpl(name: str, match: re.Match[str], exception: str) -> Terms:
    kind, version = match["kind"].upper(), match["version"]
    later = (match["later"] or "").lower() in ("+", "-or-later")
    alike = f"{kind}-{version}" + ("+" if later and (kind, version) == ("GPL", "2.0") else "")
    texts = [NOTICE, f"{ALIKE}, with its source"]
    texts += ["source also for those who use it over a network"] if kind == "AGPL" else []
    texts += [f"an exception applies: {exception}"] if exception else []
    return Terms(name, obligations=tuple(texts), share_alike=alike)


def _spelt(name: str) -> str | None:
    """The expression as SPDX spells it; None where SPDX does not know a name in it."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(name))
    except InvalidLicenseExpression:
        return None
