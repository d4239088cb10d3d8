"""Experiments as data: one YAML file names an experiment; its defaults are the paper's sizes and schedules.

An unknown key is an error with the nearest valid name, so that a misspelt setting never trains in silence.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clamp_ros.contract.config import unknown_key
from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import CHUNK_SIZE
from clamp_ros.contract.views import NUM_VIEWS, FusionConfig
from clamp_ros.policy.artifact import DiffusionSpec
from clamp_ros.policy.cartesian import ACTION_SPACES
from clamp_ros.policy.diffusion import DiffusionSchedule


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}")


def _check_clip_norm(where: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ConfigError(f"{where}.clip_norm is {value}, expected a norm of gradients, or 0 for no limit")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """ViT over the tiled views (paper: B/16). `string_scale` multiplies metres before STRING's frequencies.

    `encoder` 'dp3' puts a PointNet over the cloud in its place (Table III), of layers `points` and the same width.
    `tiles` are the views that are looked at, by their place in the tile: (0, 1, 2) leaves the wrist views out.
    `checkpoint` recomputes every layer, or DP3's some points at a time, in the backward pass in place of keeping it: a
    third slower, and a batch takes a fraction of the memory.
    """

    encoder: str = "vit"
    points: tuple[int, ...] = (64, 128, 256)
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.0
    string: bool = True
    string_scale: float = 20.0
    tiles: tuple[int, ...] = tuple(range(NUM_VIEWS))
    checkpoint: bool = False

    def __post_init__(self) -> None:
        _one_of("image.encoder", self.encoder, ("vit", "dp3"))
        if not self.points or min(self.points) < 1:
            raise ConfigError(f"image.points is {list(self.points)}, expected one or more positive widths")


@dataclass(frozen=True)
class ActionEncoderConfig:
    """Transformer over the action history (paper: 2 layers, feed-forward 2048, dropout 0.1)."""

    width: int = 768
    depth: int = 2
    heads: int = 12
    mlp: int = 2048
    pool_mlp: int = 3072
    dropout: float = 0.1


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP-style text tower (paper: 12 layers, 256 tokens, mT5's vocabulary).

    `tokenizer` is 'bytes', or a `tokenizers` JSON file with mT5's end of a text, '</s>', at whatever id.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    tokens: int = 256
    vocabulary: int = 250_112
    tokenizer: str = "bytes"


@dataclass(frozen=True)
class RgbConfig:
    """The ResNets over colour, one a camera (paper: ResNet-50 on 848x480, ImageNet weights).

    `weights` is a folder or file of a Hugging Face ResNet in safetensors, read where a training starts from scratch;
    empty starts at random and says so.
    `crop` is the share of each side that is kept: at random in training, about the centre on the robot (Table IV's
    random cropping; the paper's own models see the whole image).
    """

    cameras: tuple[str, ...] = ("front_left", "back_right", "wrist_left", "wrist_right")
    height: int = 480
    width: int = 848
    embedding: int = 64
    hidden: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer: str = "bottleneck"
    weights: str = ""
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.crop <= 1.0:
            raise ConfigError(f"policy.rgb.crop is {self.crop}, expected 0.1 to 1")

    @property
    def cropped(self) -> tuple[int, int]:
        """Height and width of what the ResNets see."""
        return round(self.crop * self.height), round(self.crop * self.width)


@dataclass(frozen=True)
class ActConfig:
    """ACT's latent and the weight of its KL divergence (arXiv 2304.13705, Table III: 32 and 10)."""

    latent: int = 32
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.latent < 1:
            raise ConfigError(f"policy.act.latent is {self.latent}, expected at least 1")


@dataclass(frozen=True)
class PolicyConfig:
    """The policy's Transformer (paper: 4 + 7 layers, 8 heads, feed-forward 3200, dropout 0.1).

    `kind` is 'diffusion', the paper's, or its baseline 'act'. `actions` are 'joint' targets, the paper's, or poses of
    the grippers (Table IV): 'cartesian' or 'relative_cartesian', to where they are at the observation.
    `tokens` says what it reads of the CLAMP encoders: 'unpooled' tokens; the 'pooled' embeddings (Table IV); or 'none',
    which is ALOHA Unleashed, and how the policy is pretrained (Section III-C: in parallel with the encoders).
    `prefix` trains it to continue as many as that of actions that are committed already, for real-time chunking
    (arXiv 2512.05964): a chunk's first d actions, d random from 0 to `prefix`, are given clean. The paper has none (0).
    """

    kind: str = "diffusion"
    actions: str = "joint"
    act: ActConfig = field(default_factory=ActConfig)
    width: int = 768
    heads: int = 8
    encoder_layers: int = 4
    decoder_layers: int = 7
    mlp: int = 3200
    dropout: float = 0.1
    tokens: str = "unpooled"
    prefix: int = 0
    rgb: RgbConfig = field(default_factory=RgbConfig)

    def __post_init__(self) -> None:
        _one_of("policy.tokens", self.tokens, ("unpooled", "pooled", "none"))
        _one_of("policy.kind", self.kind, ("diffusion", "act"))
        _one_of("policy.actions", self.actions, ACTION_SPACES)
        if self.kind == "act" and self.prefix:
            raise ConfigError(f"policy.prefix is {self.prefix}, but ACT does not continue actions; set 0")
        if not 0 <= self.prefix < CHUNK_SIZE:
            raise ConfigError(f"policy.prefix is {self.prefix}, expected 0 to {CHUNK_SIZE - 1}")


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule and sampler, as the manifest carries them, and how the network's output is read.

    `parametrization` is 'epsilon', the paper's, or 'velocity': the network's output v gives the noise as
    ``sqrt(alpha_bar) v + sqrt(1 - alpha_bar) noisy`` (Salimans and Ho 2022, arXiv 2202.00512). Either way the policy
    predicts noise. At high noise an epsilon network must answer its own input to within a per cent before it says
    anything about the action, which takes training that two cores do not have.
    """

    train_steps: int = 100
    schedule: str = "squared_cosine"
    prediction: str = "epsilon"
    clip: float = 1.0
    sampler: str = "ddpm"
    inference_steps: int = 100
    parametrization: str = "epsilon"

    def __post_init__(self) -> None:
        _one_of("diffusion.parametrization", self.parametrization, ("epsilon", "velocity"))
        self.spec()

    def spec(self) -> DiffusionSpec:
        """What the manifest says of it, checked as on the robot."""
        return DiffusionSpec(**{key: value for key, value in vars(self).items() if key != "parametrization"})

    def noise_schedule(self) -> DiffusionSchedule:
        """The schedule that training and the robot share."""
        return DiffusionSchedule(self.train_steps, self.clip)


@dataclass(frozen=True)
class EncoderTraining:
    """Contrastive pretraining (Appendix C: 100k steps, batch 2048, Adam b2 0.999, cosine from 1e-4, 5% warm-up).

    `steps` 0 leaves it out (Table III, row 6): the encoders are as drawn from `seed`, and only such are accepted by the
    policy's training and the export. The paper does not say whether it then trains them with the policy; they stay
    frozen unless `training.unfreeze` is set.

    `grounding` weighs an auxiliary loss that reads each object's position from the image tokens; the paper has none
    (0). Small batches carry little contrastive signal, and the positions are those of the text. `text` False trains
    image and action alone (Table III). `accumulate` computes a batch in that many parts, with the loss and gradients of
    the whole (the embeddings of all parts are computed first: Gao et al. 2021, arXiv 2101.06983). `clip_norm` scales a
    step's gradient down to that norm, 0 for never: the paper names no such limit; the small networks, at ten times its
    learning rates, have 1, lest one batch out of line throw them off. `bf16` multiplies matrices in bfloat16; weights,
    losses and coordinates stay in float32. `compile` has torch compile the Transformer blocks: a minute at the start,
    for runs that are long enough.
    """

    steps: int = 100_000
    batch: int = 2048
    learning_rate: float = 1e-4
    beta2: float = 0.999
    warmup: float = 0.05
    grounding: float = 0.0
    text: bool = True
    accumulate: int = 1
    clip_norm: float = 0.0
    bf16: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"encoders.steps is {self.steps}, expected at least 0, which leaves pretraining out")
        _check_clip_norm("encoders", self.clip_norm)


@dataclass(frozen=True)
class PolicyTraining:
    """Diffusion training (Appendix C: 1M steps of 8, Adam, weight decay 1e-4, linear warm-up of 5000 steps to 1e-4).

    The weight decay is decoupled (AdamW), as optax's and ACT's.

    `draws` noise samples share one observation's context; `decay` is 'constant' as in the paper or 'cosine';
    `ema` is the decay of the averaged weights that are exported, 0 for none; `state_noise` is the standard deviation of
    the noise added to normalised proprioception. `initial` is the part of a pretrained policy that fine-tuning starts
    from: 'all', or the 'decoder' (Table IV). `cache` encodes every observation once, before training, and holds the
    tokens in memory; without it views are rendered and encoded in every step. `unfreeze` trains the encoders as well
    (Table III). `accumulate`, `clip_norm`, `bf16` and `compile` as in EncoderTraining; batch norms see a part at a
    time.
    """

    steps: int = 1_000_000
    batch: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 5000
    decay: str = "constant"
    draws: int = 1
    ema: float = 0.0
    state_noise: float = 0.0
    initial: str = "all"
    cache: bool = True
    unfreeze: bool = False
    accumulate: int = 1
    clip_norm: float = 0.0
    bf16: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_clip_norm("training", self.clip_norm)
        _one_of("training.decay", self.decay, ("constant", "cosine"))
        _one_of("training.initial", self.initial, ("all", "decoder"))
        if self.unfreeze and self.cache:
            raise ConfigError(
                "training.unfreeze changes the encoders, whose tokens training.cache keeps; set cache: false"
            )


@dataclass(frozen=True)
class Experiment:
    """Everything that one training run is made of.

    `cameras` are the physical cameras that are fused; `fusion` overrides FusionConfig's defaults. `history_fill` is the
    chance that a history which reaches back before its episode is filled with the episode's first command, as a robot's
    that stood still before the policy was enabled, in place of the paper's zeros. `renderer` says what renders the
    views, or DP3's clouds: 'numba', row by row as the store is read; 'torch', a batch at a time on the device that
    trains, with the same result; 'auto' is torch on a GPU and numba otherwise.
    """

    name: str
    task: str
    cameras: tuple[str, ...] = ("front_left", "back_right")
    image_rate_hz: float = 10.0
    history_fill: float = 0.5
    renderer: str = "auto"
    fusion: FusionConfig = field(default_factory=FusionConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    action: ActionEncoderConfig = field(default_factory=ActionEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    encoders: EncoderTraining = field(default_factory=EncoderTraining)
    training: PolicyTraining = field(default_factory=PolicyTraining)

    def __post_init__(self) -> None:
        widths = {self.image.width, self.action.width, self.text.width, self.policy.width}
        if len(widths) != 1:
            raise ConfigError(
                f"image, action, text and policy widths differ ({sorted(widths)}); tokens are shared unprojected"
            )
        missing = set(self.policy.rgb.cameras) - set(self.cameras)
        if missing:
            raise ConfigError(f"policy.rgb.cameras names {sorted(missing)}, which are not among cameras {self.cameras}")
        views, tiles = len(self.fusion.views), self.image.tiles
        if not tiles or len(set(tiles)) != len(tiles) or not set(tiles) <= set(range(views)):
            raise ConfigError(f"image.tiles is {list(tiles)}, expected different numbers of 0 to {views - 1}")
        _one_of("renderer", self.renderer, ("auto", "numba", "torch"))
        if not 0.0 <= self.history_fill <= 1.0:
            raise ConfigError(f"history_fill is {self.history_fill}, expected 0 to 1")
        if self.training.unfreeze and self.policy.tokens == "none":
            raise ConfigError("training.unfreeze trains encoders, of which policy.tokens 'none' reads nothing")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def from_dict(cls: type, values: Any, where: str = "experiment") -> Any:
    """Builds a config dataclass from plain values, recursively.

    Raises:
        ConfigError: a key is unknown, a mapping was expected, or a value has the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {values!r}, expected a mapping")
    if cls is FusionConfig:
        return FusionConfig.from_dict(values)
    types = typing.get_type_hints(cls)
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in types], "setting")
        out[key] = _converted(types[key], value, f"{where}.{key}")
    try:
        return cls(**out)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _converted(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        item = typing.get_args(kind)[0]
        return tuple(_converted(item, v, where) for v in value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load_experiment(name_or_path: str) -> Experiment:
    """Reads `configs/NAME.yaml`, or a file; `base` in it names another file of its folder, whose settings it changes.

    Raises:
        ConfigError: there is no such file, it is not YAML, its bases go in a circle, or a setting is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name_or_path}.yaml"
    return from_dict(Experiment, _read(path, []))


def _read(path: Path, above: list[Path]) -> Any:
    if path in above:
        raise ConfigError(f"{above[0]} is its own base: {' -> '.join(p.stem for p in [*above, path])}")
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"no experiment {path.stem!r} ({path}); known are: {known}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict) or "base" not in values:
        return values
    return _changed(_read(path.parent / f"{values.pop('base')}.yaml", [*above, path]), values)


def _changed(base: Any, values: Any) -> Any:
    """`values` laid over `base`, mapping by mapping."""
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    return {**base, **{key: _changed(base.get(key), value) for key, value in values.items()}}
