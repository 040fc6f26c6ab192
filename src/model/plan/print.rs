//! A plan as text: `--print-plan`, the golden plans and the fingerprint of a model. What most models lack is printed only where it is there.

use std::fmt::{self, Formatter};

use super::{ExpertLinear, Hidden, Join, Linear, Matrix, NormOp, Op, Plan, Qkv, RopeOp, TensorId};
use crate::model::spec::{Norm, Rope};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} layers, n_embd {}, n_vocab {}, context {}",
            self.architecture,
            self.kv.len(),
            self.n_embd,
            self.n_vocab,
            self.context_length
        )?;
        for (i, op) in self.ops.iter().enumerate() {
            write!(f, "{i:4} ")?;
            self.write_op(f, op)?;
            writeln!(f)?;
        }
        for decl in &self.unread {
            writeln!(f, "     not read: {} {:?}", decl.name, decl.shape)?;
        }
        Ok(())
    }
}

/// A value that is printed only where there is one.
fn write_some(f: &mut Formatter<'_>, label: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {label}={value}"))
}

/// A factor that is printed only where it changes something.
fn write_factor(f: &mut Formatter<'_>, label: &str, factor: f32) -> fmt::Result {
    write_some(f, label, (factor != 1.0).then_some(factor))
}

impl Plan {
    fn name(&self, id: TensorId) -> &str {
        &self.tensors[id.0].name
    }

    fn write_matrix(&self, f: &mut Formatter<'_>, label: &str, m: Matrix) -> fmt::Result {
        let name = self.name(m.tensor);
        write!(f, " {label}={name}({}, {})", m.rows, m.cols)
    }

    fn write_bias(&self, f: &mut Formatter<'_>, bias: Option<TensorId>) -> fmt::Result {
        bias.map_or(Ok(()), |id| write!(f, "+{}", self.name(id)))
    }

    fn write_linear(&self, f: &mut Formatter<'_>, label: &str, l: &Linear) -> fmt::Result {
        self.write_matrix(f, label, l.matrix)?;
        self.write_bias(f, l.bias)
    }

    fn write_experts(&self, f: &mut Formatter<'_>, label: &str, e: &ExpertLinear) -> fmt::Result {
        let name = self.name(e.tensor);
        write!(
            f,
            " {label}={name}({}, {}, {})",
            e.n_experts, e.rows, e.cols
        )?;
        self.write_bias(f, e.bias)
    }

    fn write_norm(&self, f: &mut Formatter<'_>, label: &str, n: Option<&NormOp>) -> fmt::Result {
        let Some(n) = n else {
            return Ok(());
        };
        let (kind, eps) = match n.norm {
            Norm::Rms { eps } => ("rms", eps),
            Norm::Layer { eps } => ("layer", eps),
        };
        write!(f, " {label}={kind}({}", self.name(n.weight))?;
        self.write_bias(f, n.bias)?;
        if n.len != self.n_embd {
            write!(f, ", len {}", n.len)?;
        }
        write!(f, ", eps {eps:e})")
    }

    fn write_join(&self, f: &mut Formatter<'_>, join: &Join) -> fmt::Result {
        self.write_norm(f, "post_norm", join.norm.as_ref())?;
        write_factor(f, "residual_scale", join.scale)
    }

    fn write_rope(&self, f: &mut Formatter<'_>, rope: Option<&RopeOp>) -> fmt::Result {
        let Some(RopeOp { rope, factors }) = rope else {
            return Ok(());
        };
        let Rope {
            style,
            dims,
            base,
            scaling,
        } = rope;
        write!(
            f,
            " rope={style:?}(dims {dims}, base {base}, scaling {scaling:?}"
        )?;
        if let Some(id) = factors {
            write!(f, ", factors {}", self.name(*id))?;
        }
        write!(f, ")")
    }

    fn write_hidden(&self, f: &mut Formatter<'_>, hidden: &Hidden) -> fmt::Result {
        let activation = match hidden {
            Hidden::Gated {
                gate,
                up,
                activation,
            } => {
                self.write_linear(f, "gate", gate)?;
                self.write_linear(f, "up", up)?;
                activation
            }
            Hidden::GatedFused {
                gate_up,
                activation,
            } => {
                self.write_linear(f, "gate_up", gate_up)?;
                activation
            }
            Hidden::Plain { up, activation } => {
                self.write_linear(f, "up", up)?;
                activation
            }
        };
        write!(f, " activation={activation:?}")
    }

    fn write_op(&self, f: &mut Formatter<'_>, op: &Op) -> fmt::Result {
        match op {
            Op::Embed {
                table,
                scale,
                positions,
            } => {
                write!(f, "Embed  ")?;
                self.write_matrix(f, "table", *table)?;
                write_factor(f, "scale", *scale)?;
                positions.map_or(Ok(()), |m| self.write_matrix(f, "positions", m))
            }
            Op::AttnIn { .. } => self.write_attn_in(f, op),
            Op::Attend { .. } => self.write_attend(f, op),
            Op::AttnOut { proj, join } => {
                write!(f, "AttnOut")?;
                self.write_linear(f, "proj", proj)?;
                self.write_join(f, join)
            }
            Op::FfnIn {
                norm,
                hidden,
                share,
            } => {
                write!(f, "FfnIn  ")?;
                self.write_norm(f, "norm", norm.as_ref())?;
                self.write_hidden(f, hidden)?;
                write_some(f, "share", share.map(|id| self.name(id)))
            }
            Op::FfnOut { down, join } => {
                write!(f, "FfnOut ")?;
                self.write_linear(f, "down", down)?;
                self.write_join(f, join)
            }
            Op::Route { .. } | Op::ExpertsIn { .. } | Op::ExpertsOut { .. } => {
                self.write_routed(f, op)
            }
            Op::Head {
                norm,
                logits,
                scale,
                softcap,
            } => {
                write!(f, "Head   ")?;
                self.write_norm(f, "norm", Some(norm))?;
                self.write_linear(f, "logits", logits)?;
                write_factor(f, "scale", *scale)?;
                write_some(f, "softcap", *softcap)
            }
        }
    }

    fn write_attn_in(&self, f: &mut Formatter<'_>, op: &Op) -> fmt::Result {
        let Op::AttnIn {
            layer,
            norm,
            qkv,
            n_heads: _,
            n_kv_heads: _,
            head_dim,
            q_norm,
            k_norm,
            rope,
        } = op
        else {
            return Ok(());
        };
        write!(f, "AttnIn  layer={layer}")?;
        self.write_norm(f, "norm", norm.as_ref())?;
        match qkv {
            Qkv::Separate { q, k, v } => {
                self.write_linear(f, "q", q)?;
                self.write_linear(f, "k", k)?;
                self.write_linear(f, "v", v)?;
            }
            Qkv::Fused(qkv) => self.write_linear(f, "qkv", qkv)?,
        }
        write!(f, " head_dim={head_dim}")?;
        self.write_norm(f, "q_norm", q_norm.as_ref())?;
        self.write_norm(f, "k_norm", k_norm.as_ref())?;
        self.write_rope(f, rope.as_ref())
    }

    fn write_attend(&self, f: &mut Formatter<'_>, op: &Op) -> fmt::Result {
        let Op::Attend {
            layer,
            n_heads,
            n_kv_heads,
            head_dim,
            scale,
            window,
            sinks,
            softcap,
        } = op
        else {
            return Ok(());
        };
        write!(
            f,
            "Attend  layer={layer} heads={n_heads} kv_heads={n_kv_heads} head_dim={head_dim} scale={scale}"
        )?;
        write_some(f, "window", *window)?;
        write_some(f, "sinks", sinks.map(|id| self.name(id)))?;
        write_some(f, "softcap", *softcap)
    }

    fn write_routed(&self, f: &mut Formatter<'_>, op: &Op) -> fmt::Result {
        match op {
            Op::Route {
                norm,
                router,
                n_used,
                gating,
                scale,
            } => {
                write!(f, "Route  ")?;
                self.write_norm(f, "norm", norm.as_ref())?;
                self.write_linear(f, "router", router)?;
                write!(f, " used={n_used} gating={gating:?}")?;
                write_factor(f, "scale", *scale)
            }
            Op::ExpertsIn {
                gate,
                up,
                activation,
            } => {
                write!(f, "ExpertsIn")?;
                self.write_experts(f, "gate", gate)?;
                self.write_experts(f, "up", up)?;
                write!(f, " activation={activation:?}")
            }
            Op::ExpertsOut { down, join } => {
                write!(f, "ExpertsOut")?;
                self.write_experts(f, "down", down)?;
                self.write_join(f, join)
            }
            Op::Embed { .. } | Op::AttnIn { .. } | Op::Attend { .. } | Op::AttnOut { .. } => Ok(()),
            Op::FfnIn { .. } | Op::FfnOut { .. } | Op::Head { .. } => Ok(()),
        }
    }
}
