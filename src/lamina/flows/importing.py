"""`lamina import`: what other tools made becomes a layer, if it is proved to be the same."""

import datetime
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.bases.gguf import write_gguf
from lamina.core.errors import UsageError
from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.imported import ImportKind, ImportRecord
from lamina.core.manifests import SOURCE, LayerConfig
from lamina.core.names import Name
from lamina.core.report import Reporter
from lamina.export.parity import LOGITS, Parity
from lamina.flows import runs
from lamina.flows.import_proof import Proof, prove
from lamina.flows.import_source import known_as, located, work_folder
from lamina.flows.landing import adapter_blobs, gate_and_name, land
from lamina.flows.naming import new_name
from lamina.imports import checkpoint, gguf_lora, kohya, mlx, peft
from lamina.imports.adapter import WORDS, Adapter, shown
from lamina.imports.base import Beneath, beneath, beneath_image
from lamina.imports.detect import detect, parse_kind
from lamina.imports.place import How, Placed, place
from lamina.stack.compile import base_directory, layer_factors
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

_READERS: dict[ImportKind, Callable[[Path, Beneath], Adapter]] = {
    "peft": peft.read,
    "checkpoint": checkpoint.read,
    "gguf-lora": gguf_lora.read,
    "kohya": kohya.read,
    "mlx": mlx.read,
}
_SHOWN = 4
_RECORDED = 200
"""Most sentences of what was left out that a manifest holds."""


@dataclass(frozen=True)
class Request:
    """What is imported, over what, and how. See the options of `lamina import`."""

    source: str
    """A file, a folder, or hf:org/name[@revision]."""
    on: str
    name: str
    kind: str | None = None
    dora: str | None = None
    rank: int | None = None
    tolerance: float | None = None
    ignore_rest: bool = False
    licence: str | None = None
    author: str | None = None
    override: str | None = None


def take_in(store: Store, request: Request, reporter: Reporter) -> dict[str, Any]:
    """Make a layer of what another tool wrote, over the stack `request.on`, and name the new stack.

    Everything is read, checked and compared in logits before anything lands in the store.
    Raises LayerError listing every fault, CheckError where it is not the same model, GateError,
    UsageError, BaseError.
    """
    name = new_name(store, request.name)
    how = _how(request)
    asked = parse_kind(request.kind)
    began = runs.now()
    stack = resolve(store, request.on)
    with tempfile.TemporaryDirectory(prefix="lamina-import-") as temporary:
        path = located(store, request.source, reporter)
        kind, path = (asked, path) if asked else detect(path)
        if kind in ("peft", "mlx") and path.is_file():
            path = path.parent
        directory = base_directory(store, stack.base)
        layers = [layer_factors(store, layer) for layer in stack.layers]
        if stack.draws:
            base = beneath_image(directory, layers)
        else:
            base = beneath(directory, layers, stack.base_config.quantised)
        adapter = _read(kind, path, base, Path(temporary))
        reporter.say(f"{shown(path.resolve().name)}: a {WORDS[kind]}")
        for note in (*adapter.notes, *_about_base(adapter, stack)):
            reporter.say(note)
        placed = place(adapter, base, how, _progress(reporter, kind))
        for line in _lines(adapter, placed):
            reporter.say(line)
        proof = prove(store, stack, base, adapter, placed, reporter)
        done = _land(store, request, stack, adapter, placed, proof, name, reporter, began)
    shutil.rmtree(work_folder(store, request.source), ignore_errors=True)
    return done


def _how(request: Request) -> How:
    """The options as one value. Raises UsageError."""
    if request.dora not in (None, "fold"):
        raise UsageError(f"--dora {request.dora!r}: fold is the only way to take it")
    if request.rank is not None and request.rank < 1:
        raise UsageError(f"--rank {request.rank}: give 1 or more")
    if request.tolerance is not None and not 0 < request.tolerance < 1:
        raise UsageError(f"--tolerance {request.tolerance}: give a share between 0 and 1")
    return How(
        fold_dora=request.dora == "fold",
        rank=request.rank,
        tolerance=request.tolerance,
        ignore_rest=request.ignore_rest,
    )


def _read(kind: ImportKind, path: Path, base: Beneath, work: Path) -> Adapter:
    """What the files say. A GGUF model is dequantised into a folder first."""
    if kind != "checkpoint" or path.suffix != ".gguf":
        return _READERS[kind](path, base)
    folder = work / path.stem
    folder.mkdir()
    write_gguf(path, folder)
    adapter = checkpoint.read(folder, base, of_gguf=True)
    return Adapter(
        kind="checkpoint",
        files=(path,),
        pairs={},
        rest=adapter.rest,
        notes=("GGUF: what its quantisation rounded away counts as difference",),
    )


def _progress(reporter: Reporter, kind: str) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        text = f"{kind}: {done}/{total} tensors"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    return progress


def _about_base(adapter: Adapter, stack: ResolvedStack) -> list[str]:
    """The base that the source names, beside the one that it goes over."""
    if adapter.made_on is None:
        return []
    own = (stack.base.annotations or {}).get(SOURCE, "")
    if known_as(adapter.made_on) & known_as(own):
        return [f"made on {adapter.made_on}, as this base is"]
    return [
        f"made on {adapter.made_on}, by its own words; the base here comes from {own or '?'}. "
        "Shapes fit, but whether it is the same model nobody can tell but an exam"
    ]


def _lines(adapter: Adapter, placed: Placed) -> list[str]:
    """What was approximated, dropped and left out, for people."""
    lines = []
    if placed.equal:
        what = _some(placed.equal) if adapter.kind != "checkpoint" else f"{len(placed.equal)}"
        lines.append(f"the base's own, left out without loss: {what} whole tensors")
    if placed.left_out:
        lines.append(f"left out, with loss: {_some(placed.left_out)}")
    if placed.error is not None:
        kept = [part.rank for part in placed.nearest.values()]
        worst = max(placed.nearest, key=lambda module: placed.nearest[module].share)
        lines.append(
            f"{len(kept)} linears approximated by rank {min(kept)} to {max(kept)}: "
            f"{placed.error:.1e} of the difference is lost (Frobenius), at most "
            f"{placed.nearest[worst].share:.1e} ({worst})"
        )
        lines += _noise_lines(placed)
    return lines


def _noise_lines(placed: Placed) -> list[str]:
    if not placed.noise:
        return []
    cut = sum(part.cut for part in placed.nearest.values())
    if not cut and placed.noise > 1:
        return [
            "most changes are smaller than the rounding of the stored weights, so that noise "
            "cannot be told from them: --tolerance or --rank say how much is kept, and a "
            "checkpoint in float32 would tell more"
        ]
    chosen = f"; singular values at its level were not kept in {cut} linears" if cut else ""
    return [f"rounding of the stored weights is about {placed.noise:.1e} of the difference{chosen}"]


def _recorded(items: tuple[str, ...]) -> tuple[str, ...]:
    more = (f"and {len(items) - _RECORDED} more",) if len(items) > _RECORDED else ()
    return items[:_RECORDED] + more


def _some(items: tuple[str, ...]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


def _land(
    store: Store,
    request: Request,
    stack: ResolvedStack,
    adapter: Adapter,
    placed: Placed,
    proof: Proof,
    name: Name,
    reporter: Reporter,
    began: datetime.datetime,
) -> dict[str, Any]:
    for line in _proof_lines(proof, placed):
        reporter.say(line)
    author, licence = request.author or adapter.author, request.licence or adapter.licence
    config = _config(stack, adapter, placed, name.name, licence, author)
    blobs = adapter_blobs(
        store,
        placed.factors,
        rank=config.rank,
        alpha=config.alpha,
        scaling=config.scaling,
        target_modules=config.modules,
        base=(stack.base.annotations or {}).get(SOURCE, "") or stack.config.base,
    )
    layer, made = land(store, config, blobs, label=name.name)
    if proof.parity and not store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence):
        store.put_evidence(
            CERTIFICATE_TYPE, _certificate(adapter, placed, proof, proof.parity, began), layer
        )
    named = gate_and_name(
        store, layer, made, stack, name, reporter, override=request.override, author=author
    )
    assert config.imported is not None
    return {
        "name": str(named.name),
        "stack": made.digest,
        "layer": layer.digest,
        "kind": adapter.kind,
        "rank": config.rank,
        "linears": len(config.modules),
        "error": placed.error,
        "left_out": list(placed.left_out),
        "effect": proof.effect,
        "parity": proof.parity.facts() if proof.parity and placed.exact else None,
        "logits_difference": proof.parity.max_rel if proof.parity else None,
        "unproved": proof.unproved,
        "licence": licence,
        "author": author,
        "imported": config.imported.model_dump(mode="json"),
    }


def _config(
    stack: ResolvedStack,
    adapter: Adapter,
    placed: Placed,
    name: str,
    licence: str | None,
    author: str | None,
) -> LayerConfig:
    widest = max(placed.factors.values(), key=lambda part: part.rank)
    return LayerConfig(
        name=name,
        base=stack.config.base,
        parents=stack.config.layers,
        rank=widest.rank,
        alpha=widest.scale * widest.rank,
        scaling="lora",
        modules=tuple(sorted(placed.factors)),
        parameters=sum(part.parameters for part in placed.factors.values()),
        licence=licence,
        author=author,
        origin="imported",
        imported=ImportRecord(
            kind=adapter.kind,
            files=adapter.sources(),
            made_on=adapter.made_on,
            error=placed.error,
            left_out=_recorded(placed.left_out),
        ),
    )


def _proof_lines(proof: Proof, placed: Placed) -> list[str]:
    lines = []
    if proof.parity is None:
        lines.append(f"NOT PROVED: {proof.unproved}")
    elif placed.exact:
        lines.append(
            f"the same model as its source: {proof.parity.said}"
            f"{' of the largest' if proof.parity.measure == LOGITS else ''}, on "
            f"{proof.parity.prompts} prompts"
        )
    else:
        lines.append(
            f"outputs differ from the source's by at most {proof.lost:.1e} of the largest, on "
            f"{proof.parity.prompts} prompts; the layer itself moves them by {proof.effect:.1e}"
        )
    if proof.effect == 0.0 and proof.parity is not None:
        lines.append("on these prompts the layer changes nothing at all: was it ever trained?")
    return lines


def _certificate(
    adapter: Adapter, placed: Placed, proof: Proof, parity: Parity, began: datetime.datetime
) -> CertificateEvidence:
    parts = placed.nearest
    worst = max(parts, key=lambda module: parts[module].share, default="")
    now = runs.now()
    return CertificateEvidence(
        created=now.isoformat(),
        method=f"imported from {adapter.kind}",
        rank=max(part.rank for part in placed.factors.values()),
        rank_before=_rank_before(adapter),
        discarded=placed.error or 0.0,
        worst_module=worst,
        worst_discarded=parts[worst].share if worst else 0.0,
        logits_difference=parity.max_rel,
        probes=parity.prompts,
        seconds=round((now - began).total_seconds(), 2),
    )


def _rank_before(adapter: Adapter) -> int:
    """The largest rank that the source can have: an adapter's own, or a whole matrix's."""
    ranks = [pair.a_RI.shape[0] for pair in adapter.pairs.values()]
    return max(ranks or [min(stored.shape, default=1) for stored in adapter.rest.values()])
