"""Licences by the hub's identifiers, and what some of them ask of models made from others."""

from __future__ import annotations

OPEN = """apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense wtfpl cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr agpl-3.0
mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 ecl-2.0 artistic-2.0 afl-3.0 bsl-1.0 osl-3.0 ofl-1.1 postgresql ncsa ms-pl
etalab-2.0 odbl odc-by pddl cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 c-uda lppl-1.3c gfdl openrail
openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m openmdw-1.0"""
RESTRICTED = """cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 intel-research
apple-amlr apple-ascl fair-noncommercial-research-license deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 gemma grok2-community h-research other"""
NO_DERIVATIVES = "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0"
LICENCES = {*OPEN.split(), *RESTRICTED.split(), *NO_DERIVATIVES.split()}
"""Identifiers that the hub's `license` takes and that say something."""


def refusal(identifier: str) -> str | None:
    """Why a model under this licence must not be published in another form; None where it may."""
    if identifier in NO_DERIVATIVES.split():
        return "does not allow changed versions to be passed on"
    return "says nothing about what is allowed" if identifier in ("unknown", "none") else None


def needs_name(identifier: str) -> bool:
    """Whether the hub asks for `license_name` and `license_link` as well."""
    return identifier == "other"


def naming_rule(identifier: str, name: str) -> str | None:
    """What a licence asks of the name of a derived model, where `name` breaks it."""
    if identifier.startswith("llama") and identifier != "llama2" and not name.lower().startswith("llama"):
        return f'licence {identifier} asks that names of models made from it begin with "Llama"'
    return None


def attribution(identifier: str) -> str | None:
    """The sentence that a licence asks to be shown."""
    if identifier == "llama2":
        return "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc."
    if identifier.startswith("llama"):
        return "Built with Llama."
    if identifier == "gemma":
        return "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."
    return None
