"""How training rows are altered as they are read: the section `data.augmentation`."""

from __future__ import annotations

from tsarch.config.base import Fraction, Section


class AugmentationConfig(Section):
    """Training rows that are altered anew in every epoch, as `tsarch augment` alters them, token
    for token: contexts and labels keep their places. It depends on seed and epoch alone. See
    [Text without labels](unlabelled.md#while-training-dataaugmentation)."""

    swap: Fraction = 0.0
    """`ner`: share of the entities that have another one of their type in their place, of those of
    train that have as many words and tokens; one that comes again in a context gets the same one
    again. (Dai & Adel 2020, "An Analysis of Simple Data Augmentation for Named Entity Recognition",
    section 3.3.)"""
    mask: Fraction = 0.0
    """`ner`, `classification`: share of the words outside entities that have another one in their
    place, which the pretrained table has near it; both of one token. Words of fewer than three
    letters, and such that nothing is near, stay."""

    @property
    def is_used(self) -> bool:
        """Whether anything is altered."""
        return self.swap > 0 or self.mask > 0
