"""A run as typed, strict YAML, section by section: `run` has the whole, `methods` what each paper adds, `preferring` what they share."""

from __future__ import annotations

from .base import DtypeName, Pair, Positive, Sigma, Size, Strict
from .methods import SRPOConfig, AlignPropConfig, AnchorConfig, BranchConfig, ConstantGainNoiseLevels, ControlPhrases, DRaFTConfig, DRTuneConfig, FlowBPConfig, FlowGRPOConfig, LeapAlignConfig, MethodConfig, NoiseLevels, NoiseConfig, ObjectiveConfig, RampConfig, ReFLConfig, Trust, UniformNoiseLevels, GridNoiseLevels
from .model import ArchitectureName, LoRAConfig, ModelConfig
from .rewards import AestheticConfig, ClipConfig, Hpsv3Config, ImageRewardConfig, MemberConfig, MixtureConfig, MpsConfig, PixelStatisticsConfig, PythonConfig, HttpConfig, RewardConfig, SiglipConfig, SingleRewardConfig, QwenVLConfig
from .run import AdherenceConfig, DataConfig, DetectorConfig, EvaluateConfig, RolloutConfig, RunConfig, EarlyStoppingConfig, TrackersConfig, TrackioConfig, TrainConfig, WandbConfig


__all__ = [
    "AdherenceConfig",
    "AestheticConfig",
    "AlignPropConfig",
    "AnchorConfig",
    "ArchitectureName",
    "BranchConfig",
    "ClipConfig",
    "ConstantGainNoiseLevels",
    "ControlPhrases",
    "DRTuneConfig",
    "DRaFTConfig",
    "DataConfig",
    "DetectorConfig",
    "DtypeName",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "FlowBPConfig",
    "FlowGRPOConfig",
    "GridNoiseLevels",
    "Hpsv3Config",
    "HttpConfig",
    "ImageRewardConfig",
    "LeapAlignConfig",
    "LoRAConfig",
    "MemberConfig",
    "MethodConfig",
    "MixtureConfig",
    "ModelConfig",
    "MpsConfig",
    "NoiseConfig",
    "NoiseLevels",
    "ObjectiveConfig",
    "Pair",
    "PixelStatisticsConfig",
    "Positive",
    "PythonConfig",
    "QwenVLConfig",
    "RampConfig",
    "ReFLConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SRPOConfig",
    "SiglipConfig",
    "Sigma",
    "SingleRewardConfig",
    "Size",
    "Strict",
    "TrackersConfig",
    "TrackioConfig",
    "TrainConfig",
    "Trust",
    "UniformNoiseLevels",
    "WandbConfig",
]
