"""A run as typed, strict YAML: `run` has the whole, `model`, `methods` and `rewards` its
sections."""

# ruff: noqa: F401 (the names of this package)

from __future__ import annotations

from .base import DtypeName, Pair, Positive, Sigma, Size, Strict
from .methods import (
    AlignPropConfig,
    AnchorConfig,
    BranchConfig,
    ConstantGainNoiseLevels,
    ControlPhrases,
    DRaFTConfig,
    DRTuneConfig,
    FlowBPConfig,
    FlowGRPOConfig,
    GridNoiseLevels,
    LeapAlignConfig,
    MethodConfig,
    NoiseConfig,
    NoiseLevels,
    ObjectiveConfig,
    PythonMethodConfig,
    RampConfig,
    ReFLConfig,
    SRPOConfig,
    UniformNoiseLevels,
)
from .model import LoRAConfig, ModelConfig
from .rewards import (
    AestheticConfig,
    ClipConfig,
    Hpsv3Config,
    HttpConfig,
    ImageRewardConfig,
    MemberConfig,
    MixtureConfig,
    MpsConfig,
    PixelStatisticsConfig,
    PythonConfig,
    QwenVLConfig,
    RewardConfig,
    SiglipConfig,
    SingleRewardConfig,
)
from .run import (
    AdherenceConfig,
    DataConfig,
    DetectorConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    RolloutConfig,
    RunConfig,
    TrackersConfig,
    TrackioConfig,
    TrainConfig,
    WandbConfig,
)
