//! What the operations of a plan are called in a trace: names that another program can give to the same values.

use super::plan::{Op, Plan};

impl Plan {
    /// A name for each operation: "embed", "0.attn_in", "0.attend", …, "head".
    pub fn op_names(&self) -> Vec<String> {
        let mut current = 0;
        let name = |op: &Op| {
            let of_layer = |name: &str, layer: usize| format!("{layer}.{name}");
            match op {
                Op::Embed { .. } => "embed".to_owned(),
                Op::AttnIn { layer, .. } => {
                    current = *layer;
                    of_layer("attn_in", current)
                }
                Op::Attend { .. } => of_layer("attend", current),
                Op::AttnOut { .. } => of_layer("attn_out", current),
                Op::FfnIn { .. } => of_layer("ffn_in", current),
                Op::FfnOut { .. } => of_layer("ffn_out", current),
                Op::Route { .. } => of_layer("route", current),
                Op::ExpertsIn { .. } => of_layer("experts_in", current),
                Op::ExpertsOut { .. } => of_layer("experts_out", current),
                Op::Head { .. } => "head".to_owned(),
            }
        };
        self.ops.iter().map(name).collect()
    }
}
