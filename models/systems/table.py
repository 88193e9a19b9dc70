"""The table of systems. A system is backbone × instruction × extraction × adaptor × fusion × objective.

Each row names its parts; a new system is a new row plus any missing parts. A control is a row with one change, see
`CONTROLS`. `models.systems.training` trains rows from the parts in `models.systems.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import FreshetError


@dataclass(frozen=True, slots=True)
class System:
    """A row of the table.

    Args:
        name: the value for `--system`.
        about: one line of description.
        backbone: "sasrec" (item ids), "sasrec+text" (ids and item texts), "sasrec+text+neighbours" (plus the mean of
            each text's nearest texts), "sasrec+text+evidence" (plus `models.evidence.ease`), "sasrec+written" (ids and
            the language model's texts about items); "semantic-ids" is generative and does not support knowledge yet.
        instruction, extraction: the instruction to the language model, and the part of its answer that is kept.
            Together with the adaptor they name the knowledge source (`models.systems.registry.SOURCES`). "" = no user
            knowledge.
        adaptor: maps states to vectors of the backbone's width; part of the source.
        fusion: how the vectors change the user's state (`models.systems.registry.FUSIONS`).
        objective: training objective of the knowledge, or of the backbone for systems without knowledge
            (`models.systems.registry.OBJECTIVES`).
        serving: "" = fused scores, "trust-region" = scores within the calibrated radius of the reference.
    """

    name: str
    about: str
    backbone: str = "sasrec"
    instruction: str = ""
    extraction: str = ""
    adaptor: str = ""
    fusion: str = ""
    objective: str = "softmax"
    serving: str = ""

    @property
    def has_knowledge(self) -> bool:
        """Whether the system uses user knowledge."""
        return bool(self.instruction)

    @property
    def needs_llm(self) -> bool:
        """Whether training needs a language model."""
        return self.has_knowledge or self.backbone != "sasrec"

    def controls(self) -> tuple[str, ...]:
        """Return the names of the system's controls."""
        if not self.has_knowledge:
            return ("extra-steps", "text-init") if self.name == "dense" else ()
        region = ("no-trust-region",) if self.serving == "trust-region" else ()
        own = {"primal-dual": ("unconstrained", "fixed-penalty")}.get(self.objective, ())
        evidence = ("no-evidence", "no-words") if self.backbone == "sasrec+text+evidence" else ()
        softmax = ("softmax-attention",) if self.adaptor == "holistic-attention" else ()
        return ("shuffled-knowledge", *own, *region, *evidence, *softmax)


SYSTEMS = {system.name: system for system in (
    System("dense", "behaviour alone: SASRec, softmax over the catalogue; the reference of the others"),
    System("generative", "semantic IDs of item texts, spelled by a decoder within the catalogue's trie (TIGER-style)",
           backbone="semantic-ids"),
    System("kar", "texts the language model writes about items and users, hybrid experts, stored beforehand",
           backbone="sasrec+written", instruction="factorised-prompts", extraction="written-text",
           adaptor="hybrid-experts", fusion="concat-1"),
    System("coco", "soft prompts from a codebook, prompt-as-query attention, LoRA moved by contradicted events only",
           instruction="prompt-codebook", extraction="prompt-query", adaptor="experts", fusion="gated",
           objective="judged"),
    System("grasp", "descriptions of users and items, their ten nearest, holistic attention",
           backbone="sasrec+text+neighbours", instruction="descriptions", extraction="neighbours",
           adaptor="holistic-attention", fusion="concat-3"),
    System("freshet", "item texts, evidence of what items say of each other, soft instructions, a trust region",
           backbone="sasrec+text+evidence", instruction="parallel-codebooks", extraction="cached-states",
           adaptor="hybrid-experts", fusion="start-attention", objective="primal-dual", serving="trust-region"),
    System("lwgr", "soft instructions from parallel codebooks, attention at the start token, primal–dual bound on harm",
           instruction="parallel-codebooks", extraction="cached-states", adaptor="hybrid-experts",
           fusion="start-attention", objective="primal-dual"),
)}
CONTROLS = {
    "extra-steps": "as many further steps as the longest training of knowledge takes, without knowledge",
    "text-init": "item vectors start at their texts' embeddings and are trained on",
    "shuffled-knowledge": "every user gets another one's knowledge, in training, calibration and test",
    "unconstrained": "likelihood alone, nothing that bounds harm: no λ, no share of the reference, no trust region",
    "no-trust-region": "the same models, their scores served as they are",
    "fixed-penalty": "λ = 1 throughout",
    "no-evidence": "item texts, the reference's share and users' vectors, but nothing of what items say of each other",
    "no-words": "evidence of what users took alone, without the words of items' texts",
    "softmax-attention": "weights of the holistic attention sum to 1",
}


def system_named(name: str, control: str | None = None) -> System:
    """Return a row by name.

    Raises:
        FreshetError: the system does not exist, or does not have the control.
    """
    if name not in SYSTEMS:
        raise FreshetError(f"unknown system {name!r}; there are {', '.join(SYSTEMS)}")
    if control is not None and control not in SYSTEMS[name].controls():
        has = ", ".join(SYSTEMS[name].controls()) or "none"
        raise FreshetError(f"system {name!r} has no control {control!r}; it has {has}")
    return SYSTEMS[name]
