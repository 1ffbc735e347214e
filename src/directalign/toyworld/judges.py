"""The toy worlds' judges: of each world two small classifiers that no training optimizes.

The style judge classifies the style; the content judge reads what the caption says. Both were
trained on blurred, noisy, recoloured and autoencoded renders (`tools/build_toyworld/judges.py`), so
a colour cast does not change their answers on content. The second world's style judge also has an
answer for images of no style: flat, blurred, tinted, noisy.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import nn

from ..types import Images, PerSample
from . import assets
from .worlds import WORLDS, World


class Classifier(nn.Module):
    """A CNN with a linear head per question: images (b, 3, 64, 64) in [0, 1] to logits by head."""

    def __init__(self, heads: Mapping[str, int], width: int = 24) -> None:
        super().__init__()
        w = width
        self.trunk = nn.Sequential(
            _block(3, w, kernel=5, stride=2),
            _block(w, 2 * w, stride=2),
            _block(2 * w, 2 * w),
            _block(2 * w, 4 * w, stride=2),
            _block(4 * w, 4 * w),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(8 * w, n) for name, n in heads.items()})

    def forward(self, images: Images) -> dict[str, Float[torch.Tensor, "b _answers"]]:
        maps = self.trunk(images * 2 - 1)
        seen = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return {name: head(seen) for name, head in self.heads.items()}


def _block(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2),
        nn.GroupNorm(4, channels_out),
        nn.SiLU(),
    )


def plain_caption(prompt: str) -> str:
    """Remove a control phrase: "Realistic photo. a red star ..." to "a red star ..."."""
    return prompt.rsplit(". ", 1)[-1]


def foreign_prompt(world: World, prompts: Iterable[str]) -> str | None:
    """The first prompt that the judge of a world cannot read: without its phrase no caption."""
    known = set(world.scenes.all_captions())
    return next((each for each in prompts if plain_caption(each) not in known), None)


class WorldJudge:
    """Both judges as one `interfaces.Judge`: every answer is 1.0 or 0.0 per image."""

    def __init__(self, world: World, style: Classifier, content: Classifier) -> None:
        self.scenes = world.scenes
        self.style = style.eval().requires_grad_(False)
        self.content = content.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, PerSample]:
        """Judge images (b, 3, 64, 64) in [0, 1] against their prompts without control phrases.

        Returns, each (b,): style_photo, style_cg, ... (one of them is 1), photo_rate (style_photo),
        each part of the caption (color, shape, background, or thing, background), content (all
        right), photo_and_content (both), and where images can be rejected photo_among_styles (what
        the style judge would say if it had to name a style).

        Raises: ValueError quoting a prompt that is no caption of the world.
        """
        wanted = self.scenes.scenes_of([plain_caption(prompt) for prompt in prompts])
        images = images.float().cpu()
        logits = self.style(images)["style"]
        seen = logits.argmax(1)
        names = enumerate(self.scenes.JUDGED_STYLES)
        styles = {f"style_{name}": seen == index for index, name in names}
        right = {
            name: logits.argmax(1) == getattr(wanted, name)
            for name, logits in self.content(images).items()
        }
        photo, content = styles["style_photo"], torch.stack(list(right.values())).all(0)
        both = {"photo_rate": photo, "content": content, "photo_and_content": photo & content}
        if len(self.scenes.JUDGED_STYLES) > len(self.scenes.STYLES):
            is_photo = logits[:, : len(self.scenes.STYLES)].argmax(1) == 0
            both["photo_among_styles"] = is_photo
        answers = {**both, **right, **styles}
        return {name: answer.float() for name, answer in answers.items()}


def load_judge(world: World = WORLDS["world"]) -> WorldJudge:
    """The two judges of a world that are shipped with the package."""
    style = load_classifier(world, "style", {"style": len(world.scenes.JUDGED_STYLES)})
    return WorldJudge(world, style, load_classifier(world, "content", world.scenes.CONTENT))


def load_classifier(world: World, name: str, heads: Mapping[str, int]) -> Classifier:
    """One judge from its safetensors file, in float32."""
    weights = load_file(assets.file(world, f"judges/{name}.safetensors"))
    classifier = Classifier(heads, width=len(weights["trunk.0.0.weight"]))
    classifier.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return classifier
