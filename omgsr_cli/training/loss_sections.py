"""The tables of what is learned from: the losses, the teacher and the discriminator.

Plain records: importing this loads no torch. The defaults are those of OMGSR-S (arXiv:2508.08227).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from omgsr_cli.training.fields import Betas, Count, Fraction, Number, Positive, Section, Switch, Text, Whole, refuse

BACKBONES = ("dinov3", "vgg16")
"""Feature networks that have a name; any other is taken for a folder."""


class TeacherConfig(Section):
    """Another network whose pictures are a target: T = t + G * (hq - t), with the photograph's low frequencies."""

    model: Text = Field(description="a preset, a model's folder or hub repository, or a file that spandrel reads")
    weight: Number = Field(default=1.0, description="of the absolute difference to T")
    lpips: Number = Field(default=0.0, description="of LPIPS-AlexNet to T; needs loss.lpips_path")
    dists: Number = Field(default=0.0, description="of DISTS to T, on loss.backbone")
    dists_every: Count = Field(default=1, description="steps between those that measure it, as it is slow")
    dists_px: Whole = Field(default=0, description="side of the drawn window that it measures; 0 for all")
    encoder: Number = Field(
        default=0.0, description="of the absolute difference to T without the step: the encoder learns it by itself"
    )
    low_frequencies: Literal["hq", "none"] = Field(
        default="hq", description="whose low frequencies T has: the photograph's, or the teacher's own"
    )
    sigma_px: Positive = Field(default=3.0, description="deviation of the Gaussian G, px")
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="of its convolutions")
    crops: Count = Field(
        default=1000, description="how many crops the teacher sees; training draws windows and turns of these alone"
    )
    cache: Text = Field(default="cache/teacher", description="folder of its pictures, kept by content")

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not (self.weight or self.lpips or self.dists or self.encoder):
            raise refuse("every weight of the teacher is 0: leave [loss.teacher] out", "loss.teacher")
        return self


class LossConfig(Section):
    """The weight of each loss; 0 leaves it out."""

    lrr: Number = Field(default=5.0, description="noisy latent of the sharp picture v. latent of the low-quality one")
    l1: Number = Field(default=0.5, description="absolute difference of the pixels")
    dv3cd: Number = Field(default=5.0, description="structure and texture distance (DISTS) on the feature network")
    gan: Number = Field(default=0.5, description="the discriminator's judgement")
    discriminator: Literal["heads", "unet"] = Field(
        default="heads",
        description="what judges for gan: learned heads on the feature network, or Real-ESRGAN's U-Net, "
        "which needs no feature network and judges every pixel",
    )
    lpips: Number = Field(default=0.0, description="LPIPS-AlexNet; needs lpips_path")
    denoise: Number = Field(
        default=0.0, description="pre-training: foreseeing noise in sharp pictures' latents; stands alone"
    )
    clamp: Switch | None = Field(
        default=None,
        description="keep the restored image in [-1, 1] before it is measured and judged [as published: true for "
        "omgsr-s-512, false for omgsr-tiny and for FLUX]",
    )
    backbone: Text = Field(
        default="dinov3",
        description='the feature network of dv3cd and gan: "dinov3", "vgg16", or a folder with one of them',
        examples=[*BACKBONES],
    )
    backbone_path: Text | None = Field(
        default=None,
        description="folder, hub repository or published file of the named network; vgg16 needs one "
        "[DINOv3's repository]",
    )
    backbone_precision: Literal["bf16", "fp32"] = Field(
        default="fp32", description="of VGG16's convolutions; the statistics and DINOv3 are always fp32"
    )
    lpips_path: Text | None = Field(
        default=None, description="folder with alexnet-*.pth and LPIPS' alex.pth, or one file with both"
    )

    teacher: TeacherConfig | None = Field(default=None, description="another network to learn from [none]")

    @property
    def needs_backbone(self) -> bool:
        """Whether anything measures on the feature network."""
        has_heads = self.gan and self.discriminator == "heads"
        return bool(self.dv3cd or has_heads or (self.teacher and self.teacher.dists))

    @property
    def needs_lpips(self) -> bool:
        """Whether a loss is LPIPS."""
        return bool(self.lpips or (self.teacher and self.teacher.lpips))

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        others = (self.lrr, self.l1, self.dv3cd, self.gan, self.lpips, self.teacher)
        if self.denoise and any(others):
            reason = "pre-training has no other loss: set lrr, l1, dv3cd and gan to 0, or denoise"
            raise refuse(reason, "loss.denoise")
        if not (self.denoise or any(others)):
            raise refuse("every loss has the weight 0: nothing would be learned", "loss.l1")
        if self.needs_lpips and self.lpips_path is None:
            raise refuse("this loss needs lpips_path, the file with its weights", "loss.lpips", "loss.lpips_path")
        if self.backbone == "vgg16" and self.backbone_path is None and self.needs_backbone:
            reason = "vgg16 needs backbone_path, torchvision's vgg16-*.pth"
            raise refuse(reason, "loss.backbone", "loss.backbone_path")
        if self.backbone not in BACKBONES and self.backbone_path is not None:
            reason = 'backbone names the folder already: leave this out, or set backbone to "dinov3" or "vgg16"'
            raise refuse(reason, "loss.backbone_path", "loss.backbone")
        return self


class GanConfig(Section):
    """The discriminator; it is there where [loss] gan is above 0."""

    start_step: Whole = Field(default=0, description="first step that it takes part in")
    alone_steps: Whole = Field(
        default=0, description="steps from start_step on in which it learns alone, while the model stays as it is"
    )
    px: Whole = Field(
        default=0, description="side of the random window that it sees of each batch, px; 0 for the whole crop"
    )
    width: Count = Field(default=64, description="channels of the U-Net at the image's size; the heads have their own")
    lr: Positive = Field(default=5e-5, description="its learning rate")
    betas: Betas = Field(default=(0.9, 0.999), description="of its AdamW")
    real_label: Fraction = Field(
        default=0.8, description="target for sharp pictures; below 1 it is less sure of itself"
    )
    fake_label: Fraction = Field(default=0.0, description="target for restored pictures")
    augment: tuple[Literal["color", "translation", "cutout"], ...] = Field(
        default=("color", "translation", "cutout"), description="DiffAugment's changes to what it sees; [] for none"
    )
    blur_pool: Switch = Field(default=True, description="blur before each halving, as published; else means of 2x2")
    parity: Switch = Field(
        default=False, description="as the published script: the generator's gradients stay in the discriminator's step"
    )

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if self.real_label <= self.fake_label:
            raise refuse(f"not above fake_label {self.fake_label:g}", "gan.real_label", "gan.fake_label")
        return self
