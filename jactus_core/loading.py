"""Loading a pretrained classifier: safetensors only, no code from the checkpoint, a head for the task's labels."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from jactus_core.errors import UnsupportedModel
from jactus_core.models import ModelReference

MOST_MISSING = 0.1
"""Share of the body's parameters that a checkpoint may lack, as for a pooler that pretraining did not use."""


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer; `head` names the parameters that belong to the task, not to pretraining."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: frozenset[str]
    head_is_new: bool

    @property
    def max_tokens(self) -> int:
        """The longest sequence that both the tokenizer and the position embeddings allow."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)


def load_classifier(reference: ModelReference, label_names: list[str]) -> Classifier:
    """Load in float32. The head is kept when the checkpoint was made for the same labels, else it is new.

    Raises UnsupportedModel for an architecture without a sequence classifier or a checkpoint that lacks the body.
    """
    if reference.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UnsupportedModel(
            f"transformers has no sequence classifier for the model type '{reference.model_type}'.", "model"
        )
    config = AutoConfig.from_pretrained(reference.location, revision=reference.revision)
    labels = dict(enumerate(label_names))
    same_labels = config.id2label == labels
    config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(reference.location, revision=reference.revision)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            reference.location,
            revision=reference.revision,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype="float32",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UnsupportedModel(f"'{reference.name}' cannot be loaded: {error}", "model") from error

    prefix = model.base_model_prefix + "."
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    body = {name for name in sizes if name.startswith(prefix)}
    new = ({*info["missing_keys"]} | {key[0] for key in info["mismatched_keys"]}) & sizes.keys()
    if sum(sizes[name] for name in new & body) > MOST_MISSING * sum(sizes[name] for name in body):
        raise UnsupportedModel(f"The weights of '{reference.name}' do not fit its config.json.", "model")
    head = frozenset(sizes.keys() - body | new)
    return Classifier(model, tokenizer, head, head_is_new=bool(new) or not same_labels)
