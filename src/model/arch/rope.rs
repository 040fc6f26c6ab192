//! The keys of the rotary embedding, which all architectures share.

use super::keys::Keys;
use crate::model::ModelError;
use crate::model::spec::{Rope, RopeScaling, RopeStyle, Yarn, YarnBounds};

/// What a file says that scales its positions.
struct Told<'a> {
    /// `rope.scaling.type`.
    kind: Option<&'a str>,
    /// The factor, under its present or its older key.
    factor: Option<f32>,
    tensors: Tensors,
}

/// Divisors in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tensors {
    None,
    /// `rope_freqs.weight`.
    Factors,
    /// `rope_factors_long.weight` and its short sister, or one of them.
    LongShort,
}

impl<'a> Keys<'a> {
    /// The rotary embedding of heads of this width, scaled as the file says; `bounds` matter where that is by YaRN.
    pub(super) fn rope(
        &mut self,
        style: RopeStyle,
        head_dim: usize,
        bounds: YarnBounds,
    ) -> Result<Rope, ModelError> {
        let name = "rope.dimension_count";
        let dims = self.optional_count(name)?.unwrap_or(head_dim);
        if dims > head_dim || !dims.is_multiple_of(2) {
            let expected = format!("but must be even and at most the head's width {head_dim}");
            return Err(self.wrong(name, dims, expected));
        }
        Ok(Rope {
            style,
            dims,
            base: self.positive("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: self.rope_scaling(bounds)?,
        })
    }

    /// `rope.scaling.type`, without which a factor means linear scaling, as files older than the key have it.
    fn rope_scaling(&mut self, bounds: YarnBounds) -> Result<RopeScaling, ModelError> {
        let told = self.told()?;
        match (told.kind, told.factor, told.tensors) {
            (Some("none") | None, None, Tensors::Factors) => Ok(RopeScaling::Factors),
            (Some("longrope") | None, None, Tensors::LongShort) => self.long_short(),
            (Some("none"), _, Tensors::None) | (None, None, Tensors::None) => Ok(RopeScaling::None),
            (Some("linear") | None, Some(factor), Tensors::None) => {
                Ok(RopeScaling::Linear { factor })
            }
            (Some("yarn"), Some(factor), Tensors::None) => self.yarn(factor, bounds),
            (Some(kind @ ("linear" | "yarn")), None, _) => {
                let factor = self.key("rope.scaling.factor");
                Err(self.wrong(
                    "rope.scaling.type",
                    kind,
                    format!("but {factor} is missing"),
                ))
            }
            (Some("none" | "linear" | "yarn" | "longrope") | None, _, tensors) => {
                let expected = match tensors {
                    Tensors::None => "but the tensor rope_factors_long.weight is missing",
                    Tensors::Factors => {
                        "but the tensor rope_freqs.weight is there too, and it is not known how the two combine"
                    }
                    Tensors::LongShort => {
                        "but the tensors rope_factors_long.weight and rope_factors_short.weight are there too, and it is not known how they combine"
                    }
                };
                let kind = told.kind.unwrap_or("linear by its factor");
                Err(self.wrong("rope.scaling.type", kind, expected))
            }
            (Some(other), _, _) => {
                let expected = "which is not supported here (none, linear, yarn, longrope, or rope_freqs.weight alone)";
                Err(self.wrong("rope.scaling.type", other, expected))
            }
        }
    }

    fn told(&mut self) -> Result<Told<'a>, ModelError> {
        let older = self.positive("rope.scale_linear")?;
        let factor = self.positive("rope.scaling.factor")?.or(older);
        let tensors = if self.has("rope_freqs.weight") {
            Tensors::Factors
        } else if self.has("rope_factors_long.weight") || self.has("rope_factors_short.weight") {
            Tensors::LongShort
        } else {
            Tensors::None
        };
        Ok(Told {
            kind: self.string("rope.scaling.type")?,
            factor,
            tensors,
        })
    }

    fn long_short(&mut self) -> Result<RopeScaling, ModelError> {
        Ok(RopeScaling::LongShort {
            original_context: self.count("rope.scaling.original_context_length")?,
            magnitude: self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
        })
    }

    /// The defaults are those of the paper.
    fn yarn(&mut self, factor: f32, bounds: YarnBounds) -> Result<RopeScaling, ModelError> {
        let trained = self.count("context_length")?;
        let original = self.optional_count("rope.scaling.original_context_length")?;
        let name = "rope.scaling.yarn_ext_factor";
        if let Some(other) = self.positive(name)?.filter(|f| *f != 1.0) {
            return Err(self.wrong(name, other, "but only 1 is supported"));
        }
        // a model's own magnitude takes the place of the paper's, which only follows from the factor
        let usual = (1.0 + 0.1 * libm::log(f64::from(factor.max(1.0)))) as f32;
        let own = self.positive("rope.scaling.yarn_attn_factor")?;
        let more = self.positive("rope.scaling.attn_factor")?;
        Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_context: original.unwrap_or(trained),
            beta_fast: self
                .positive("rope.scaling.yarn_beta_fast")?
                .unwrap_or(32.0),
            beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            bounds,
            magnitude: own.unwrap_or(usual) * more.unwrap_or(1.0),
        }))
    }
}
