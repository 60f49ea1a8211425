"""Diversity, cleanliness and accuracy of the images of one sparse prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.judge import (
    attribute_coverage,
    attribute_vendi,
    features_of,
    judge,
    most_common_share,
)
from fastrepulse.default_model.rendered import off_data
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.metrics.diversity import vendi_score

PROMPTS = {subject.prompt: subject for subject in SUBJECTS}
"""The sparse prompts of the shipped model."""


@dataclass(frozen=True)
class Figures:
    """The measures of the N images of one prompt.

    Args:
        attribute_vendi: Effective number of different images by their attributes, in [1, N]; 0 if
            no image shows the subject. Only images of the subject count.
        coverage: Share of the attributes' values that appear, in [0, 1].
        most_common: Share of an attribute's most common value, in [0, 1].
        accuracy: Share of images that show the subject, in [0, 1].
        off_data: Distance to rendered pictures, 1 for rendered pictures; lower is cleaner.
        vendi: Vendi score of the judge's features, in [1, N]; artefacts can raise it.
    """

    attribute_vendi: float
    coverage: float
    most_common: float
    accuracy: float
    off_data: float
    vendi: float

    @classmethod
    def of(cls, images: Sequence[Image.Image], subject: Subject) -> "Figures":
        """Measures the images of a subject's prompt."""
        shown = [attributes for judged, attributes in judge(images) if judged is subject]
        return cls(
            attribute_vendi(shown),
            attribute_coverage(shown, subject, len(images)),
            most_common_share(shown, subject),
            len(shown) / len(images),
            off_data(images, subject),
            vendi_score(features_of(images)),
        )
