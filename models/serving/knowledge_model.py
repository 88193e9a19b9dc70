"""Loads the soft instruction model of an artifact. Apart from the ranking model, which needs no language model."""

from __future__ import annotations

from typing import Any

import orjson
from safetensors.torch import load_file

from models.language.llm import LanguageModel
from models.serving.ranking_model import CONFIG, KNOWLEDGE
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError


def knowledge_config(artifact: Artifact, llm: LanguageModel) -> dict[str, Any]:
    """Return the knowledge section of an artifact's configuration, after checking its language model.

    Raises:
        ArtifactError: the knowledge was trained with a language model of another name or width.
    """
    config = dict(orjson.loads(artifact.path(CONFIG).read_bytes()).get("knowledge", {}))
    if config.get("hidden") != llm.hidden_size or config.get("llm") != llm.model_id:
        raise ArtifactError(
            f"model {artifact.model_version} was fitted with the language model {config.get('llm')!r}, the settings "
            f"name {llm.model_id!r}; set FRESHET_LLM_NAME to the former or run `freshet fit` again")
    return config


def load_knowledge(artifact: Artifact, llm: LanguageModel) -> KnowledgeModel:
    """Return the soft instruction model of an artifact.

    Raises:
        ArtifactError: the model was trained with a language model of another name or width.
    """
    config = knowledge_config(artifact, llm)
    model = KnowledgeModel(config["dim"], config["hidden"], config["instructions"], config["codes"])
    model.load_state_dict(load_file(artifact.path(KNOWLEDGE)))
    return model.eval()
