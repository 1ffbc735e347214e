"""`directalign reward ...`: analyze a reward's response to control phrases, and adapt it.

phrases          measure candidate control phrases; suggests phrases, a ramp and a tolerance
soft-prompts     fit soft control tokens, usable wherever control phrases are
finetune         finetune a reward until it responds to control phrases
bias-directions  find directions of exploitation for `reward.project_out`
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import DirectAlignError
from ..io.text import isolated
from .common import (
    Debug,
    log_to_stderr,
    one_line_errors,
    option,
    require_new_file,
    require_room,
    seed_option,
    without_garbage_collection,
)

app = typer.Typer(
    help="Analyze a reward's response to control phrases, and adapt it.", no_args_is_help=True
)
RENAMED = {
    "words": "phrases",
    "tokens": "soft-prompts",
    "listen": "finetune",
    "directions": "bias-directions",
}
"""Former top-level commands."""
ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True}
LISTED = 12
"""Phrases listed at each end of the ranking; the page has all."""
NEGATIVE_SUFFIX = ".negative.safetensors"
SIDES = "--positive", "--negative"

Reward = Annotated[
    str,
    option(
        "A CLIP or SigLIP folder or hub id, world:reward, or a recipe (.yaml).",
        "R",
        show_default=False,
    ),
]
Positive = Annotated[
    list[str],
    option(
        "Phrase of the wanted side; if omitted, those of the recipe. Repeatable.",
        "PHRASE",
        "--positive",
    ),
]
Negative = Annotated[
    list[str], option("Phrase of the unwanted side. Repeatable.", "PHRASE", "--negative")
]
Images = option("Folder with wanted/ and unwanted/, or world:photo/rest, world:photo/cg.", "DIR")
Wanted = Annotated[
    str | None, option("Instead of --images: the folder of wanted images.", "DIR", "--wanted")
]
Unwanted = Annotated[str | None, option("The folder of unwanted images.", "DIR", "--unwanted")]
Caption = Annotated[
    str,
    option(
        "Captions for images without one, a .txt beside each: blip, or a folder or hub id of a "
        "BLIP or GIT.",
        "blip|MODEL|none",
    ),
]
Count = Annotated[
    int | None,
    option(
        "Images per side; default: all of a folder, 96 of the toy world.", min=1, show_default=False
    ),
]
Seed = Annotated[int, seed_option("Seed of the drawn images and of the fit.")]
Steps = Annotated[int, option("Maximum updates; stops early by the held-out loss.", min=1)]


def renamed(former: str) -> Callable[[], None]:
    """A command that names its successor and exits with an error."""

    def command() -> None:
        new = f"directalign reward {RENAMED[former]}"
        typer.echo(f"directalign: {former}: renamed to `{new}`", err=True)
        raise typer.Exit(1)

    return command


def _phrases(positive: list[str], negative: list[str], *options: str) -> Any:
    """Validate the phrases of both sides; `options` are named in errors."""
    from ..config import ControlPhrases
    from ..reward_analysis import checked_phrases

    sides = zip((positive, negative), options, strict=True)
    pos, neg = (list(checked_phrases(phrases, option)) for phrases, option in sides)
    return ControlPhrases(positive=pos, negative=neg)


def _examples(
    images: str | None, wanted: str | None, unwanted: str | None, option: str = "--images"
) -> str | tuple[str, str] | None:
    """The one source of examples among these options; None without any."""
    if wanted is None and unwanted is None:
        return images
    if images is not None:
        raise DirectAlignError(f"{option} {images}: give either this or --wanted and --unwanted")
    if wanted is None or unwanted is None:
        raise DirectAlignError(
            f"--{'wanted' if wanted else 'unwanted'} {wanted or unwanted}: give --wanted DIR and "
            "--unwanted DIR"
        )
    return wanted, unwanted


def _device() -> str:
    from ..device import default_device

    return str(default_device())


@app.command()
def phrases(
    reward: Reward,
    images: Annotated[str | None, Images] = None,
    wanted: Wanted = None,
    unwanted: Unwanted = None,
    caption: Caption = "none",
    positive: Positive = [],
    negative: Negative = [],
    candidates: Annotated[
        Path | None, option("Candidates for either side, one per line.", "FILE")
    ] = None,
    count: Count = None,
    seed: Seed = 0,
    out: Annotated[
        Path, option("Folder for phrases.html, phrases.json and recipe sections.", "DIR")
    ] = Path("runs/phrases"),
    debug: Debug = False,
) -> None:
    """Measure candidate control phrases and suggest phrases, ramps and a tolerance.

    Without images: on renders of the toy world.
    """
    with one_line_errors(debug), log_to_stderr():
        with without_garbage_collection():
            from ..reward_analysis import candidate_sides
            from ..reward_analysis.images import load_examples, source_text
            from ..reward_analysis.phrases import PhraseTable, analyze_phrases
            from ..reward_analysis.phrases_report import write_report
            from ..rewards import load_named_reward, reward_settings

        require_new_file(out / "phrases.html")
        settings = reward_settings(reward)
        sides = candidate_sides(reward, positive, negative, candidates)
        source = _examples(images, wanted, unwanted) or "world"
        examples = load_examples(source, "--images", count, seed, caption)
        device = _device()
        table = PhraseTable(load_named_reward(settings, device), examples, device)
        found = analyze_phrases(table, *sides)
        command = ["directalign", "reward", "phrases", "--reward", reward]
        one = isinstance(source, str)
        command += ["--images", source] if one else ["--wanted", source[0], "--unwanted", source[1]]
        command += [part for phrase in positive for part in ("--positive", phrase)]
        command += [part for phrase in negative for part in ("--negative", phrase)]
        command += ["--candidates", str(candidates)] if candidates else []
        command += ["--count", str(count)] if count else []
        line = shlex.join([*command, "--seed", str(seed)])
        about = {"reward": reward, "images": source_text(source), "command": line}
        page = write_report(found, examples, out, **about)
        Console().print(_phrase_table(found), _suggestion_table(found), highlight=False)
        typer.echo(page)


def _phrase_table(found: Any) -> Table:
    """Both ends of the ranking."""
    title = "Control phrases, most wanted first"
    columns = "phrase", "lift, 95 %", "size", "content", "cosine", "warnings"
    table = Table(*columns, title=title, title_justify="left")
    every = list(found.phrases)
    omitted = len(every) - 2 * LISTED
    for place, each in enumerate(every):
        if omitted > 0 and LISTED <= place < len(every) - LISTED:
            if place == LISTED:
                table.add_row("…", "", "", "", "", f"{omitted} more on the page")
            continue
        lift = f"{each.lift.value:+.3f} ±{each.lift.high - each.lift.value:.3f}"
        content = "" if each.content is None else f"{each.content:.2f}"
        cosine = "" if each.cosine is None else f"{each.cosine:.3f}"
        warnings = "; ".join(warning.split(":")[0] for warning in each.warnings)
        size = f"{each.lift.size:+.2f}"
        table.add_row(escape(isolated(each.phrase)), lift, size, content, cosine, warnings)
    return table


def _suggestion_table(found: Any) -> Table:
    """The suggestion and its warnings."""
    table = Table(show_header=False, title="Suggested", title_justify="left")
    suggestion = found.suggestion
    if suggestion is not None:
        gap, mu, tolerance = suggestion.pair.gap, suggestion.mu, suggestion.tolerance
        ramp = "unknown for this reward"
        if mu is not None:
            ramp = f"0 at low noise to {2 * mu:.2f} at high noise"
        table.add_row("positive", escape(", ".join(map(isolated, suggestion.pair.positive))))
        table.add_row("negative", escape(", ".join(map(isolated, suggestion.pair.negative))))
        table.add_row("gap", f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
        table.add_row("k_pos − k_neg", ramp)
        table.add_row("tolerance", "unknown" if tolerance is None else f"{tolerance:g}")
    for warning in found.warnings:
        table.add_row("warning", escape(warning))
    return table


@app.command()
def soft_prompts(
    reward: Reward,
    out: Annotated[
        Path,
        option(
            "NAME.safetensors, the positive side; the negative is NAME.negative.safetensors.",
            "FILE",
        ),
    ],
    images: Annotated[str | None, Images] = None,
    wanted: Wanted = None,
    unwanted: Unwanted = None,
    caption: Caption = "none",
    positive: Positive = [],
    negative: Negative = [],
    length: Annotated[
        int | None, option("Tokens per side; default: of the longest phrase, else 2.", min=1)
    ] = None,
    content: Annotated[
        float, option("Weight of caption content in pos − neg; style has 1.", min=0)
    ] = 0.15,
    bias: Annotated[
        float, option("Weight of invariance to tint, brightness, blur etc.", min=0)
    ] = 0.15,
    count: Count = None,
    num_steps: Steps = 300,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Fit soft control tokens to images, or without images take the mean of phrases.

    A recipe that trains with them, NAME.yaml, is written beside them.
    """
    with one_line_errors(debug), log_to_stderr():
        *files, recipe = _token_files(out)
        with without_garbage_collection():
            from ..io.atomic import write_text
            from ..reward_analysis import require_words
            from ..reward_analysis import soft_prompts as fit
            from ..reward_analysis.images import load_examples
            from ..rewards import load_named_reward, recipe_words, reward_settings
            from ..rewards.soft_prompts import write_tokens

        named, source = reward_settings(reward), _examples(images, wanted, unwanted)
        start = _phrases(positive, negative, *SIDES)
        start = start if positive or negative else recipe_words(reward)
        require_words([*start.positive, *start.negative], "soft tokens start from words")
        both = source is not None or bool(start.negative)  # a side without words has no tokens
        text = fit.recipe_of(reward, [str(file) for file in files[: 1 + both]])
        if source is None:
            if not start.positive:
                raise DirectAlignError(
                    "nothing to fit: give --images with wanted/ and unwanted/, or --positive"
                )
            loaded = load_named_reward(named)
            sides = (start.positive, start.negative)
            made = [fit.mean_of_phrases(loaded, side, length) for side in sides if side]
        else:
            settings = fit.SoftPromptConfig(length, content, bias, num_steps=num_steps, seed=seed)
            examples = load_examples(source, "--images", count, seed, caption)
            loaded = load_named_reward(named, _device())
            fitted = fit.fit_soft_prompts(loaded, examples, start, settings)
            Console().print(_separation_table(fitted), highlight=False)
            made = [fitted.positive, fitted.negative]
        for file, tokens in zip(files, made, strict=False):
            write_tokens(file, tokens)
            typer.echo(file)
        write_text(recipe, text)
        typer.echo(f"next: directalign train {shlex.quote(str(recipe))}")


def _token_files(out: Path) -> tuple[Path, Path, Path]:
    """The files of both sides and of the recipe, none of which exists."""
    from ..rewards.soft_prompts import SUFFIX

    if out.suffix != SUFFIX:
        raise DirectAlignError(
            f"--out {out}: learned tokens are known by their ending; name it {out.name}{SUFFIX}"
        )
    files = out, out.with_suffix(NEGATIVE_SUFFIX), out.with_suffix(".yaml")
    for file in files:
        require_new_file(file)
    return files


def _separation_table(fitted: Any) -> Table:
    """Words and tokens on held-out captions."""
    title = f"On {fitted.held_out} held-out images per side"
    columns = "pos − neg", "style", "separated", "content", "bias"
    table = Table(*columns, title=title, title_justify="left")
    rows = ("words", fitted.start), (f"tokens, step {fitted.best_step}", fitted.learned)
    for name, each in rows:
        if each is not None:
            numbers = f"{each.style:+.4f}", f"{each.separated:.0%}", f"{each.content:+.4f}"
            table.add_row(name, *numbers, f"{each.bias:.2f}")
    return table


@app.command()
def finetune(
    reward: Reward,
    out: Annotated[Path, option("New folder for the reward, for reward.path in a recipe.", "DIR")],
    images: Annotated[str | None, Images] = None,
    wanted: Wanted = None,
    unwanted: Unwanted = None,
    caption: Caption = "none",
    positive: Positive = [],
    negative: Negative = [],
    part: Annotated[
        Literal["text", "lora"] | None,
        option("Of a CLIP: text tower (default), or lora adapters in both towers."),
    ] = None,
    num_steps: Steps = 300,
    batch_size: Annotated[int, option("Images per side in an update.", min=1)] = 16,
    learning_rate: Annotated[
        float | None, option("Default: 1e-5 for text, 1e-4 for lora.", min=0)
    ] = None,
    gap: Annotated[
        float | None,
        option("Target gradient length of pos − neg; default: the reward's own.", min=0),
    ] = None,
    light: Annotated[
        float, option("Relative brightness range that pos − neg ignores.", min=0, max=1)
    ] = 0.0,
    count: Count = None,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Finetune a reward to respond to control phrases, and measure it before and after."""
    with one_line_errors(debug), log_to_stderr():
        with without_garbage_collection():
            from ..reward_analysis import require_words
            from ..reward_analysis.finetune import FinetuneConfig, finetune_to_folder
            from ..rewards import recipe_words

        require_room(out)
        source = _examples(images, wanted, unwanted)
        if source is None:
            raise DirectAlignError("no images: give --images DIR, or --wanted DIR --unwanted DIR")
        phrases, recipe = _phrases(positive, negative, *SIDES), recipe_words(reward)
        sides = {k: getattr(phrases, k) or getattr(recipe, k) for k in ("positive", "negative")}
        phrases = phrases.model_copy(update=sides)
        if learning_rate == 0:
            raise DirectAlignError("--learning-rate 0 trains nothing; give a rate such as 1e-5")
        require_words([*phrases.positive, *phrases.negative], "a reward is finetuned to words")
        settings = FinetuneConfig(part, num_steps, batch_size, learning_rate, gap, light, seed)
        record = finetune_to_folder(reward, source, phrases, out, settings, count, caption)
        before, after = _measures(record["before"]), _measures(record["after"])
        for name in after:
            typer.echo(f"{name:32} {before[name]:>24} -> {after[name]}")
        typer.echo(out)


def _measures(found: dict[str, Any]) -> dict[str, str]:
    """Every measure as text, angles with their intervals."""
    texts = {}
    for name, value in found.items():
        if isinstance(value, float):
            texts[name.replace("_", " ")] = f"{value:.3f}"
        elif name != "bias":
            interval = f"({value['low']:.1f} to {value['high']:.1f})"
            texts[name.replace("_", " ")] = f"{value['value']:.1f}° {interval}"
    for probe, change in found["bias"].items():
        texts[f"{probe} changes pos − neg by"] = f"{change['relative']:+.4f}"
    return texts


@app.command()
def bias_directions(
    reward: Reward,
    out: Annotated[Path, option("The .safetensors file to write.", "FILE")] = Path(
        "directions.safetensors"
    ),
    before: Annotated[
        Path | None, option("Images of the base model, or a run; default: --after's run.", "DIR")
    ] = None,
    after: Annotated[
        Path | None, option("Images of the trained model with the same names, or a run.", "DIR")
    ] = None,
    probe: Annotated[
        list[str], option("Instead of --after: change images, e.g. 'red tint', blur. Repeatable.")
    ] = [],
    prompts: Annotated[
        str | None, option("Instead of images: prompts (or world); common gradient.", "FILE")
    ] = None,
    keep_words: Annotated[
        list[str], option("Wanted phrase to keep, with --against. Repeatable.", "PHRASE")
    ] = [],
    against: Annotated[list[str], option("Unwanted phrase. Repeatable.", "PHRASE")] = [],
    keep_examples: Annotated[
        str | None, option("wanted/ and unwanted/, or world:photo/rest, to keep.", "DIR")
    ] = None,
    wanted: Annotated[
        str | None, option("Instead of --keep-examples: the folder of wanted images.", "DIR")
    ] = None,
    unwanted: Unwanted = None,
    caption: Caption = "none",
    components: Annotated[
        int, option("Directions: the mean shift, then the strongest of the rest.", min=1)
    ] = 1,
    num_samples: Annotated[int, option("Images sampled from a run.", min=2)] = 64,
    debug: Debug = False,
) -> None:
    """Find directions along which a reward is exploited, so that it can ignore them."""
    with one_line_errors(debug), log_to_stderr():
        with without_garbage_collection():
            from ..reward_analysis.bias_directions import Request, make_directions

        require_new_file(out)
        keep = _phrases(keep_words, against, "--keep-words", "--against")
        examples = _examples(keep_examples, wanted, unwanted, "--keep-examples")
        sources = (before, after, tuple(probe), prompts)
        request = Request(reward, *sources, keep, examples, caption, components, num_samples)
        found = make_directions(request, out)
        typer.echo(f"{found.shared:7.1%} of the shift is shared by all images")
        typer.echo(f"{found.wanted:7.1%} of the shift is along what is kept")
        typer.echo(f"{found.captured:7.1%} of the shift is along the directions")
        if found.explained is not None and found.gain is not None:
            gain = f"the gain of {found.gain:+.4f} in the mean score"
            typer.echo(f"{found.explained:7.1%} of {gain} lies along the directions")
        typer.echo(out)
