"""Manifest types: OCI image manifests and the lamina configs inside them.

A base, a layer, a stack and a piece of evidence are each an OCI image manifest
(image-spec 1.1) with an `artifactType`, one config blob (one of the `*Config` values below) and
payload blobs. Base, layer and stack manifests hold nothing that varies between two runs of the
same work (no time, no duration), so equal work has equal digests; what varies (cost, results,
overrides, signatures) is evidence (`core.evidence`): a manifest whose `subject` is the thing it
speaks of.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lamina.core.digest import Digest, digest_json
from lamina.core.fields import (
    MAX_NEW_TOKENS,
    MAX_RANK,
    Count,
    MediaType,
    check_file_names,
    layer_name,
    module_names,
)
from lamina.core.imported import ImportRecord
from lamina.core.recipe import Recipe, Scaling, ScorerName
from lamina.core.values import Value

MANIFEST_TYPE: Literal["application/vnd.oci.image.manifest.v1+json"] = (
    "application/vnd.oci.image.manifest.v1+json"
)
INDEX_TYPE: Literal["application/vnd.oci.image.index.v1+json"] = (
    "application/vnd.oci.image.index.v1+json"
)

BASE_TYPE = "application/vnd.lamina.base.v1"
LAYER_TYPE = "application/vnd.lamina.layer.v1"
STACK_TYPE = "application/vnd.lamina.stack.v1"

CONFIG_SUFFIX = ".config+json"
"""A config blob's mediaType is its manifest's artifactType + this."""
SAFETENSORS_TYPE = "application/vnd.safetensors"
JSON_TYPE = "application/json"
JSONL_TYPE = "application/jsonl"
TEXT_TYPE = "text/plain"

TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
SOURCE = "org.opencontainers.image.source"
CREATED = "org.opencontainers.image.created"
IDENTITY = "dev.lamina.base.identity"


class Descriptor(Value):
    """OCI content descriptor."""

    mediaType: MediaType
    digest: Digest
    size: Count
    artifactType: MediaType | None = None
    annotations: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """File name of the blob, '' where none is given."""
        return (self.annotations or {}).get(TITLE, "")

    @property
    def ref_name(self) -> str | None:
        """The `name:tag` under which an index lists it."""
        return (self.annotations or {}).get(REF_NAME)


def _plain_titles(blobs: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
    check_file_names([blob.title for blob in blobs if blob.title])
    return blobs


class ImageManifest(Value):
    """OCI image manifest, image-spec 1.1."""

    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifactType: MediaType
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], AfterValidator(_plain_titles)]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    def blob(self, title: str) -> Descriptor | None:
        """The payload blob with this file name."""
        return next((item for item in self.layers if item.title == title), None)


class ImageIndex(Value):
    """OCI image index: the store's `index.json`."""

    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.index.v1+json"] = INDEX_TYPE
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None


Quantisation = Literal["nf4", "int8"]
"""How the linears of a base's decoder are stored, where they are packed."""


class BaseConfig(Value):
    """What a base is. Its identity covers tensors, architecture, tokenizer and template only."""

    tensors: Digest
    """Over every tensor's (name, dtype, shape, bytes), sorted by name."""
    architecture: Digest
    """Over the model configuration without names, versions and paths."""
    tokenizer: Digest
    template: Digest
    family: str
    """transformers' `model_type`, or the class of a diffusers pipeline."""
    parameters: int
    dtype: str
    vocab_size: int
    template_origin: Literal["own", "chatml"]
    """'chatml' when the source had no chat template and ChatML was put in."""
    licence: str | None = None
    quantised: Quantisation | None = None
    """How its linears are stored; None for plain tensors. The tensors and the architecture say it
    too, so that a quantised base has an identity of its own."""
    made_from: Digest | None = None
    """Identity of the base that it was quantised from."""
    modality: Literal["image"] | None = None
    """What it makes; None for text."""

    @property
    def draws(self) -> bool:
        """Whether it makes images."""
        return self.modality == "image"

    @property
    def identity(self) -> str:
        """The base's digest: what layers and stacks name it by."""
        return digest_json(
            {
                "tensors": self.tensors,
                "architecture": self.architecture,
                "tokenizer": self.tokenizer,
                "template": self.template,
            }
        )


class StackedLayer(Value):
    """One layer in a stack, with its weight."""

    layer: Digest
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class SourceFile(Value):
    """One data file as it was read."""

    name: str
    sha256: Digest
    bytes: int
    rows: int


class DataFingerprint(Value):
    """What a layer was trained on, without the rows themselves."""

    content: Digest
    """Over the sorted content digests of the training rows."""
    rows: int
    tokens: int
    """Tokens in the training rows, once each."""
    supervised_tokens: int
    files: tuple[SourceFile, ...]
    format: str
    held_out_rows: int
    duplicates: int = 0
    """Exact duplicates left out."""
    skipped: int = 0
    """Bad rows left out by --skip-bad."""
    overlong: int = 0
    """Rows longer than max_length, split or truncated as the recipe says."""
    licence: str | None = None


class ExamSpec(Value):
    """An exam that a layer carries. The questions are a blob, unless they are withheld."""

    name: str
    scorer: ScorerName
    items: Digest
    """Of the questions' JSONL."""
    rows: int
    private: bool = False
    """Questions withheld: only results and this digest travel."""
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] = 128


Origin = Literal["trained", "imported", "updated", "carried", "distilled", "squashed", "merged"]
"""How a layer came to be. 'updated': trained on from the layer it supersedes. 'carried': put over
other parents with its factors kept or corrected. 'distilled': taught by the stack it was carried
from. 'squashed', 'merged': computed from its `sources`."""
Rung = Literal["copy", "project", "distil", "retrain"]
"""How a layer was carried to other parents; the cheapest first."""
RehearsalSet = Literal["sample", "synthesised", "none"]
"""What a layer's rehearsal set is: a sample of its rows; rows that its stack wrote itself, beside
those that an older version already carried; or nothing."""


class Credit(Value):
    """A layer whose work is in another layer: what is owed to whom when only the latter is left."""

    layer: Digest
    name: str | None = None
    """None where the layer was not at hand when the credit was written."""
    author: str | None = None
    licence: str | None = None
    made: Origin = "trained"
    """How that layer came to be."""
    share: float | None = None
    """Its share of the update: of the sum of |w dW|^2 over all that was added up, 0 to 1. None
    where the weights cannot tell: what an older version left in a newer one, or somebody's work
    of combining others' layers."""


class LayerConfig(Value):
    """A layer: immutable, trained over one exact stack."""

    name: Annotated[str, AfterValidator(layer_name)]
    base: Digest
    """Identity of the base."""
    parents: tuple[StackedLayer, ...]
    """The exact layers beneath, lowest first."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    alpha: Annotated[float, Field(allow_inf_nan=False)]
    scaling: Scaling
    modules: Annotated[tuple[str, ...], AfterValidator(module_names)]
    """Full names of the linears it touches."""
    parameters: Count
    recipe: Recipe | None = None
    """Resolved; None for an imported layer."""
    data: DataFingerprint | None = None
    exams: tuple[ExamSpec, ...] = ()
    licence: str | None = None
    author: str | None = None
    origin: Origin = "trained"
    supersedes: Digest | None = None
    """The layer of which this is a new version."""
    sources: tuple[StackedLayer, ...] = ()
    """What it was computed from, lowest first: the layers squashed, merged or carried."""
    credits: tuple[Credit, ...] | None = None
    """All layers whose work is in it, through every squash, merge, update and carry, also where
    they do not travel along. None for a layer with no older one in it, and in layers from before
    this was kept (`flows.credit` derives theirs from `sources`)."""
    rehearsal: RehearsalSet | None = None
    """Which rehearsal set it carries; None where that is not on record."""
    imported: ImportRecord | None = None
    """Where an imported layer comes from."""


class StackConfig(Value):
    """A stack: a base and an ordered list of layers, lowest first."""

    base: Digest
    layers: tuple[StackedLayer, ...] = ()
