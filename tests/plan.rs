//! From a file's metadata to a plan: what it looks like, printed, and how a file that cannot be run is refused.
//!
//! The printed plans stand in `tests/goldens/plans/`; `UPDATE_GOLDENS=1 cargo test --test plan` writes them anew.

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/gguf_writer.rs"]
mod gguf_writer;

use gguf_writer::{GgufWriter, Raw, tensor_type};
use worker_orcd::gguf::{self, GgmlType};
use worker_orcd::model::plan::Plan;
use worker_orcd::model::{ModelError, arch, lower, weights::Weights};
use worker_orcd::quant::TensorType;

/// The context that plans are made for.
const CONTEXT: usize = 256;

/// A matrix or vector of F32 zeros.
trait Zeros {
    fn zeros(self, name: &str, dims: &[u64]) -> Self;
}

impl Zeros for GgufWriter {
    fn zeros(self, name: &str, dims: &[u64]) -> Self {
        let bytes = 4 * dims.iter().product::<u64>() as usize;
        self.tensor(name, dims, tensor_type::F32, vec![0; bytes])
    }
}

/// The smallest llama with grouped-query attention: 2 layers, 4 query heads over 2, heads of 8, its own output matrix.
fn llama() -> GgufWriter {
    let mut writer = GgufWriter::new()
        .key("general.architecture", "llama")
        .key("llama.block_count", 2u32)
        .key("llama.context_length", 512u32)
        .key("llama.embedding_length", 32u32)
        .key("llama.feed_forward_length", 48u32)
        .key("llama.attention.head_count", 4u32)
        .key("llama.attention.head_count_kv", 2u32)
        .key("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
        .key("llama.rope.dimension_count", 8u32)
        .key("llama.rope.freq_base", 500_000.0f32)
        .zeros("token_embd.weight", &[32, 11]);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        writer = writer
            .zeros(&name("attn_norm"), &[32])
            .zeros(&name("attn_q"), &[32, 32])
            .zeros(&name("attn_k"), &[32, 16])
            .zeros(&name("attn_v"), &[32, 16])
            .zeros(&name("attn_output"), &[32, 32])
            .zeros(&name("ffn_norm"), &[32])
            .zeros(&name("ffn_gate"), &[32, 48])
            .zeros(&name("ffn_up"), &[32, 48])
            .zeros(&name("ffn_down"), &[48, 32]);
    }
    writer
        .zeros("output_norm.weight", &[32])
        .zeros("output.weight", &[32, 11])
}

/// The file with a key's value changed, or added.
fn with(mut writer: GgufWriter, key: &str, value: impl Into<Raw>) -> GgufWriter {
    writer = without_key(writer, key);
    writer.key(key, value)
}

#[track_caller]
fn without_tensor(mut writer: GgufWriter, name: &str) -> GgufWriter {
    let before = writer.tensors.len();
    writer.tensors.retain(|t| t.name != name.as_bytes());
    assert_eq!(writer.tensors.len() + 1, before, "{name} was not there");
    writer
}

fn without_key(mut writer: GgufWriter, key: &str) -> GgufWriter {
    writer.keys.retain(|(k, _)| k != key.as_bytes());
    writer
}

/// The file with a tensor of other dimensions in the same place.
fn reshaped(writer: GgufWriter, name: &str, dims: &[u64]) -> GgufWriter {
    without_tensor(writer, name).zeros(name, dims)
}

/// Everything that a load does before it touches a device.
fn open(writer: &GgufWriter) -> Result<Plan, ModelError> {
    open_bytes(&writer.finish(), CONTEXT)
}

fn open_bytes(bytes: &[u8], context: usize) -> Result<Plan, ModelError> {
    let gguf = gguf::parse(bytes)?;
    let plan = lower::lower(&arch::spec(&gguf)?, context);
    Weights::claim(&plan, &gguf)?;
    Ok(plan)
}

#[track_caller]
fn assert_golden(name: &str, plan: &Plan) {
    let printed = plan.to_string();
    let path = format!(
        "{}/tests/goldens/plans/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &printed).expect("the golden file is written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        printed == golden,
        "{path} is not what is printed now (UPDATE_GOLDENS=1 rewrites it):\n{printed}"
    );
}

#[track_caller]
fn assert_refused(writer: &GgufWriter, wanted: &[&str]) {
    let error = open(writer)
        .expect_err("the file should be refused")
        .to_string();
    assert!(error.len() < 500, "{error}");
    for part in wanted {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn a_plan_is_printed_as_it_was() {
    let plan = |writer: &GgufWriter| open(writer).expect("a model");
    assert_golden("llama", &plan(&llama()));
    assert_golden(
        "llama_tied",
        &plan(&without_tensor(llama(), "output.weight")),
    );
    assert_golden(
        "llama_rope_freqs",
        &plan(&llama().zeros("rope_freqs.weight", &[4])),
    );
    let linear = with(llama(), "llama.rope.scaling.type", "linear");
    let linear = with(linear, "llama.rope.scaling.factor", 4.0f32);
    assert_golden("llama_linear", &plan(&linear));
}

/// One plan for each architecture of the table at least, from a file as its converter writes it.
#[test]
fn every_architecture_has_its_plan() {
    let fixtures = fixtures::all();
    for architecture in arch::ARCHITECTURES {
        let has = fixtures.iter().any(|f| f.architecture == architecture.name);
        assert!(has, "no fixture is a {}", architecture.name);
    }
    for fixture in fixtures.iter().filter(|f| f.architecture != "llama") {
        let context = fixture.context.unwrap_or(CONTEXT);
        match open_bytes(&fixture.gguf, context) {
            Ok(plan) => assert_golden(&fixture.name.replace('-', "_"), &plan),
            Err(error) => panic!("{}: {error}", fixture.name),
        }
    }
}

/// What a file may leave out has the value that converters leave out.
#[test]
fn absent_keys_have_their_defaults() {
    let plain = with(llama(), "llama.rope.freq_base", 10_000.0f32);
    let printed = |writer: &GgufWriter| open(writer).expect("a model").to_string();
    let short = ["llama.rope.freq_base", "llama.rope.dimension_count"]
        .into_iter()
        .fold(plain.clone(), without_key);
    assert_eq!(printed(&short), printed(&plain));
    for (key, value) in [
        ("llama.attention.key_length", 8u32),
        ("llama.attention.value_length", 8),
        ("llama.expert_count", 0),
    ] {
        assert_eq!(
            printed(&with(plain.clone(), key, value)),
            printed(&plain),
            "{key}"
        );
    }
    assert_eq!(
        printed(&with(plain.clone(), "llama.rope.scaling.type", "none")),
        printed(&plain)
    );
    let every_head = reshaped(
        reshaped(plain.clone(), "blk.0.attn_k.weight", &[32, 32]),
        "blk.0.attn_v.weight",
        &[32, 32],
    );
    let every_head = reshaped(
        reshaped(every_head, "blk.1.attn_k.weight", &[32, 32]),
        "blk.1.attn_v.weight",
        &[32, 32],
    );
    let key = "llama.attention.head_count_kv";
    assert_eq!(
        printed(&without_key(every_head.clone(), key)),
        printed(&with(every_head, key, 4u32))
    );
}

#[test]
fn every_tensor_must_be_there() {
    let names: Vec<String> = llama()
        .tensors
        .iter()
        .map(|t| String::from_utf8_lossy(&t.name).into_owned())
        .collect();
    for name in names.iter().filter(|n| *n != "output.weight") {
        assert_refused(&without_tensor(llama(), name), &[name, "is missing"]);
    }
}

#[test]
fn no_tensor_may_be_left_over() {
    for name in [
        "blk.2.attn_q.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "output.bias",
        "something",
    ] {
        assert_refused(
            &llama().zeros(name, &[32]),
            &[name, "not part of a llama model", "1 tensors"],
        );
    }
    // fewer layers than the file holds are not simply run without the rest
    assert_refused(
        &with(llama(), "llama.block_count", 1u32),
        &["blk.1.", "9 tensors"],
    );
}

#[test]
fn every_tensor_must_have_its_shape() {
    let cases: &[(&str, &[u64], &str)] = &[
        ("blk.0.attn_q.weight", &[32, 31], "[32, 32]"),
        ("blk.1.attn_k.weight", &[16, 32], "[32, 16]"),
        ("blk.1.ffn_down.weight", &[32, 48], "[48, 32]"),
        ("blk.0.attn_norm.weight", &[31], "[32]"),
        ("blk.0.ffn_norm.weight", &[32, 1], "[32]"),
        ("blk.0.ffn_up.weight", &[32, 48, 2], "[32, 48]"),
        ("output_norm.weight", &[64], "[32]"),
        ("output.weight", &[32, 12], "[32, 11]"),
        ("token_embd.weight", &[16, 11], "[32, 11]"),
    ];
    for (name, dims, expected) in cases {
        let found = format!("{dims:?}");
        assert_refused(&reshaped(llama(), name, dims), &[name, &found, expected]);
    }
    assert_refused(
        &reshaped(llama(), "token_embd.weight", &[352]),
        &["token_embd.weight", "[352]"],
    );
    assert_refused(
        &llama().zeros("rope_freqs.weight", &[8]),
        &["rope_freqs.weight", "[8]", "[4]"],
    );
}

#[test]
fn a_tensor_type_that_is_not_computed_with_is_refused_by_name() {
    let wide = with(llama(), "llama.feed_forward_length", 256u32);
    let name = "blk.0.ffn_down.weight";
    let gates = ["ffn_gate", "ffn_up"]
        .into_iter()
        .flat_map(|part| [0, 1].map(|layer| format!("blk.{layer}.{part}.weight")));
    let wide = gates.fold(without_tensor(wide, name), |writer, name| {
        reshaped(writer, &name, &[32, 256])
    });
    let wide = reshaped(wide, "blk.1.ffn_down.weight", &[256, 32]);
    let supported = TensorType::ALL.map(TensorType::name);
    let others = GgmlType::all()
        .iter()
        .filter(|t| !supported.contains(&t.name()));
    let mut refused = Vec::new();
    for other in others {
        let bytes = 32 * 256 / other.block_len() * other.block_bytes();
        let writer = wide.clone();
        let writer = writer.tensor(name, &[256, 32], other.id(), vec![0; bytes as usize]);
        assert_refused(&writer, &[name, other.name(), &supported.join(", ")]);
        refused.push(other.name());
    }
    for known in ["IQ1_S", "IQ2_XXS", "IQ3_S", "TQ1_0", "NVFP4", "I8", "F64"] {
        assert!(refused.contains(&known), "{known} was not tried");
    }
}

#[test]
fn a_superblock_in_a_row_that_is_too_short_for_it_is_refused_by_name() {
    let name = "blk.0.ffn_down.weight";
    let writer = without_tensor(llama(), name);
    let q4_k = GgmlType::from_name("Q4_K").expect("a type").id();
    let dims = [48, 32];
    assert_refused(
        &writer.tensor(name, &dims, q4_k, vec![0; 6 * 144]),
        &[name, "Q4_K", "256"],
    );
}

#[test]
fn an_architecture_that_is_not_known_is_refused_by_name() {
    assert_refused(
        &with(llama(), "general.architecture", "mamba"),
        &["mamba", "not supported", "llama"],
    );
    assert_refused(
        &with(llama(), "general.architecture", ""),
        &["\"\"", "not supported"],
    );
    assert_refused(
        &with(llama(), "general.architecture", 7u32),
        &["general.architecture", "string"],
    );
    assert_refused(
        &without_key(llama(), "general.architecture"),
        &["general.architecture", "missing"],
    );
    let long = "x".repeat(100_000);
    assert_refused(
        &with(llama(), "general.architecture", long.as_str()),
        &["xxx", "not supported"],
    );
}

#[test]
fn a_key_that_must_be_there_is_asked_for() {
    let keys = [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
    ];
    for key in keys.into_iter().chain(["attention.layer_norm_rms_epsilon"]) {
        let key = format!("llama.{key}");
        assert_refused(&without_key(llama(), &key), &[&key, "missing"]);
        assert_refused(&with(llama(), &key, "many"), &[&key, "string"]);
    }
}

/// The keys that count something; the head's width has its own test.
const COUNTS: [&str; 8] = [
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
];

#[test]
fn counts_of_zero_and_below_are_refused() {
    for key in COUNTS {
        assert_refused(&with(llama(), key, 0u32), &[key, "0"]);
        assert_refused(&with(llama(), key, -1i32), &[key, "-1"]);
    }
}

#[test]
fn huge_counts_are_refused_before_anything_is_made_of_them() {
    for key in COUNTS {
        assert_refused(&with(llama(), key, u32::MAX), &[key, "4294967295"]);
        assert_refused(
            &with(llama(), key, u64::MAX),
            &[key, "18446744073709551615"],
        );
    }
    assert_refused(
        &with(llama(), "llama.block_count", 1025u32),
        &["llama.block_count", "1025", "1024"],
    );
    // all at their largest: products must not overflow
    let most = 1u32 << 24;
    let largest = COUNTS[1..]
        .iter()
        .fold(llama(), |writer, key| with(writer, key, most));
    let largest = with(largest, "llama.attention.key_length", most);
    let largest = with(largest, "llama.block_count", 1024u32);
    assert_refused(&largest, &["token_embd.weight", "16777216"]);
}

#[test]
fn heads_must_share_their_keys_evenly() {
    assert_refused(
        &with(llama(), "llama.attention.head_count_kv", 3u32),
        &["head_count_kv", "3", "4 query heads"],
    );
    assert_refused(
        &with(llama(), "llama.attention.head_count_kv", 8u32),
        &["head_count_kv", "8", "4 query heads"],
    );
    let uneven = with(llama(), "llama.attention.head_count", 6u32);
    assert_refused(&uneven, &["llama.attention.head_count", "6", "32"]);
    let value_length = with(llama(), "llama.attention.value_length", 4u32);
    assert_refused(
        &value_length,
        &["llama.attention.value_length", "4", "key length 8"],
    );
}

#[test]
fn rotations_that_cannot_be_are_refused() {
    for dims in [7u32, 10, 32] {
        let wrong = with(llama(), "llama.rope.dimension_count", dims);
        assert_refused(
            &wrong,
            &["llama.rope.dimension_count", &dims.to_string(), "even", "8"],
        );
    }
    for base in [0.0f32, -10_000.0, f32::NAN, f32::INFINITY] {
        let wrong = with(llama(), "llama.rope.freq_base", base);
        assert_refused(&wrong, &["llama.rope.freq_base", "finite number above 0"]);
    }
    for eps in [0.0f32, f32::NAN] {
        let key = "llama.attention.layer_norm_rms_epsilon";
        assert_refused(&with(llama(), key, eps), &[key, "finite number above 0"]);
    }
}

#[test]
fn scalings_that_are_not_known_are_refused_by_name() {
    for kind in ["ntk", "", "Linear"] {
        assert_refused(
            &with(llama(), "llama.rope.scaling.type", kind),
            &["llama.rope.scaling.type", kind, "not supported"],
        );
    }
    let linear = with(llama(), "llama.rope.scaling.type", "linear");
    assert_refused(&linear, &["llama.rope.scaling.factor", "missing"]);
    for factor in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let wrong = with(linear.clone(), "llama.rope.scaling.factor", factor);
        assert_refused(
            &wrong,
            &["llama.rope.scaling.factor", "finite number above 0"],
        );
    }
    let both = with(linear, "llama.rope.scaling.factor", 2.0f32).zeros("rope_freqs.weight", &[4]);
    assert_refused(
        &both,
        &["llama.rope.scaling.type", "linear", "rope_freqs.weight"],
    );
}

#[test]
fn experts_are_refused() {
    assert_refused(
        &with(llama(), "llama.expert_count", 8u32),
        &["llama.expert_count", "8", "experts"],
    );
}

/// The key that is wrong is the key that is named, not another that falls back to it.
#[test]
fn a_head_of_no_width_is_refused_by_its_own_key() {
    for width in [0u32, u32::MAX] {
        let wrong = with(llama(), "llama.attention.key_length", width);
        assert_refused(&wrong, &["llama.attention.key_length", &width.to_string()]);
    }
}

/// Older converters write the factor alone, and `scale_linear` before that: both mean linear scaling. Left unread they change what
/// the model says.
#[test]
fn a_scaling_without_its_type_is_not_left_unread() {
    let plain = open(&llama()).expect("a model").to_string();
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        match open(&with(llama(), key, 4.0f32)) {
            Ok(plan) => assert!(plan.to_string() != plain, "{key} is left unread"),
            Err(error) => assert!(error.to_string().contains(key), "{error}"),
        }
    }
}

/// A fixture's file with other keys and tensors: a model of its architecture that nobody has trained.
struct Variant(&'static str);

impl Variant {
    /// The plan once the file has been changed.
    fn plan(&self, change: impl Fn(&mut gguf::Gguf)) -> Result<String, ModelError> {
        let fixture = fixtures::all().into_iter().find(|f| f.name == self.0);
        let mut gguf = gguf::parse(&fixture.expect("a fixture").gguf).expect("a GGUF file");
        change(&mut gguf);
        let plan = lower::lower(&arch::spec(&gguf)?, CONTEXT);
        Weights::claim(&plan, &gguf)?;
        Ok(plan.to_string())
    }

    /// Why the file is refused once it has been changed.
    fn refused(&self, change: impl Fn(&mut gguf::Gguf)) -> String {
        let plan = self.plan(change);
        plan.expect_err("the file should be refused").to_string()
    }

    /// The plan with more keys.
    fn with_keys(&self, keys: &[(&str, gguf::Value)]) -> String {
        let insert = |gguf: &mut gguf::Gguf| {
            for (key, value) in keys {
                gguf.metadata.insert(key, value.clone());
            }
        };
        self.plan(insert).expect("a model")
    }

    #[track_caller]
    fn assert_key_refused(
        &self,
        key: &str,
        value: impl Into<gguf::Value> + Clone,
        wanted: &[&str],
    ) {
        let error = self.refused(|gguf| drop(gguf.metadata.insert(key, value.clone())));
        for part in wanted.iter().chain([&key]) {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }

    #[track_caller]
    fn assert_needs(&self, tensor: &str) {
        let error = self.refused(|gguf| gguf.tensors.retain(|t| t.name != tensor));
        assert!(
            error.contains(tensor) && error.contains("missing"),
            "{error}"
        );
    }
}

/// Keys that change the arithmetic of some model are refused where they are not known to.
#[test]
fn keys_that_an_architecture_does_not_know_are_refused_by_name() {
    let unknown: &[(&str, &str)] = &[
        ("qwen2", "qwen2.attention.sliding_window"),
        ("qwen3", "qwen3.attention.max_alibi_bias"),
        ("olmo2", "olmo2.attention.sliding_window_pattern"),
        ("gemma3", "gemma3.attn_logit_softcapping"),
        ("gpt2", "gpt2.rope.freq_base"),
        ("granite", "granite.attention.clamp_kqv"),
        ("gpt-oss", "gpt-oss.attention.key_length_swa"),
        ("qwen2-yarn", "qwen2.rope.scaling.yarn_log_multiplier"),
        ("llama", "llama.something_new"),
    ];
    for (fixture, key) in unknown {
        Variant(fixture).assert_key_refused(key, gguf::Value::F32(2.0), &["2", "not known"]);
    }
    Variant("llama").assert_key_refused(
        "llama.attention.causal",
        gguf::Value::Bool(false),
        &["false"],
    );
    // none of it is none of it
    for (fixture, key) in unknown {
        let fixture = fixtures::all().into_iter().find(|f| f.name == *fixture);
        let mut gguf = gguf::parse(&fixture.expect("a fixture").gguf).expect("a GGUF file");
        gguf.metadata.insert(key, gguf::Value::F32(0.0));
        arch::spec(&gguf).expect("0 says that there is none");
    }
}

#[test]
fn values_that_are_not_computed_with_are_refused_by_name() {
    use gguf::Value::{F32, U32};
    let yarn = Variant("qwen2-yarn");
    yarn.assert_key_refused(
        "qwen2.rope.scaling.yarn_ext_factor",
        F32(0.5),
        &["0.5", "only 1"],
    );
    yarn.assert_key_refused("qwen2.rope.scaling.factor", F32(-4.0), &["-4"]);
    let experts = Variant("gpt-oss");
    experts.assert_key_refused("gpt-oss.expert_used_count", U32(8), &["8", "7 experts"]);
    experts.assert_key_refused("gpt-oss.expert_used_count", U32(0), &["0"]);
    experts.assert_key_refused("gpt-oss.expert_gating_func", U32(2), &["2", "softmax"]);
    Variant("qwen2").assert_key_refused("qwen2.expert_count", U32(4), &["4", "experts"]);
    let long = Variant("phi3-longrope-long");
    let other = gguf::Value::String("su".into());
    long.assert_key_refused("phi3.rope.scaling.type", other, &["su", "not supported"]);
    long.assert_key_refused("phi3.rope.scaling.original_context_length", U32(0), &["0"]);
}

/// Also what another context would read.
#[test]
fn every_tensor_of_every_architecture_must_be_there() {
    for (fixture, tensors) in [
        ("qwen2", vec!["blk.1.attn_k.bias"]),
        ("qwen3", vec!["blk.0.attn_q_norm.weight"]),
        (
            "phi3-longrope-long",
            vec!["rope_factors_short.weight", "rope_factors_long.weight"],
        ),
        (
            "phi3-longrope-short",
            vec!["rope_factors_short.weight", "rope_factors_long.weight"],
        ),
        (
            "gemma3",
            vec![
                "blk.6.post_ffw_norm.weight",
                "blk.0.post_attention_norm.weight",
            ],
        ),
        (
            "gpt2",
            vec![
                "position_embd.weight",
                "output_norm.bias",
                "blk.0.attn_qkv.bias",
            ],
        ),
        (
            "gpt-oss",
            vec![
                "blk.2.attn_sinks.weight",
                "blk.0.ffn_down_exps.bias",
                "blk.1.ffn_gate_inp.bias",
            ],
        ),
        (
            "qwen2moe",
            vec![
                "blk.0.ffn_gate_inp_shexp.weight",
                "blk.1.ffn_up_shexp.weight",
            ],
        ),
        ("stablelm", vec!["blk.1.attn_v.bias"]),
        ("falcon", vec!["blk.1.attn_norm_2.weight"]),
    ] {
        for tensor in tensors {
            Variant(fixture).assert_needs(tensor);
        }
    }
}

/// The factors follow the context that the worker is to hold, the tensors that the file must have do not.
#[test]
fn long_factors_are_those_of_a_long_context() {
    let fixture = fixtures::all()
        .into_iter()
        .find(|f| f.name == "phi3-longrope-long");
    let gguf = fixture.expect("a fixture").gguf;
    for (context, read) in [(1, "short"), (256, "short"), (257, "long"), (1024, "long")] {
        let printed = open_bytes(&gguf, context).expect("a model").to_string();
        let name = format!("factors rope_factors_{read}.weight");
        assert_eq!(printed.matches(&name).count(), 2, "{context}: {printed}");
    }
}

/// Granite 4 without recurrent layers: its converter tells of them and of experts all the same, and counts key heads layer by layer.
#[test]
fn a_granite_of_the_fourth_generation_is_a_granite() {
    use gguf::Value::{Bool, U32};
    let granite = Variant("granite");
    let plain = granite.with_keys(&[]);
    let fourth = granite.with_keys(&[
        ("granite.attention.head_count_kv", vec![2, 2].into()),
        ("granite.rope.scaling.finetuned", Bool(true)),
        ("granite.expert_count", U32(0)),
        ("granite.expert_used_count", U32(0)),
        ("granite.expert_shared_feed_forward_length", U32(76)),
        ("granite.ssm.conv_kernel", U32(4)),
        ("granite.ssm.state_size", U32(256)),
        ("granite.ssm.group_count", U32(1)),
        ("granite.ssm.inner_size", U32(128)),
        ("granite.ssm.time_step_rank", U32(128)),
    ]);
    assert_eq!(fourth, plain);

    let no_positions = &["false", "without positions"];
    granite.assert_key_refused("granite.rope.scaling.finetuned", false, no_positions);
    let shared = "granite.expert_shared_feed_forward_length";
    granite.assert_key_refused(shared, U32(7), &["7", "no experts"]);
    let kv = "granite.attention.head_count_kv";
    for uneven in [vec![2, 1], vec![2], vec![]] {
        granite.assert_key_refused(kv, uneven, &["same number", "2 layers"]);
    }
    granite.assert_key_refused(kv, vec![0, 0], &["0", "from 1 to"]);
}

/// A file that says its own magnitude says the whole of it: the one that follows from the factor is not multiplied with it.
#[test]
fn a_magnitude_of_its_own_takes_the_place_of_yarns() {
    let yarn = Variant("qwen2-yarn");
    let magnitude = |keys: &[(&str, gguf::Value)]| {
        let plan = yarn.with_keys(keys);
        let (_, after) = plan.split_once("magnitude: ").expect("a magnitude");
        let digits = |c: char| c.is_ascii_digit() || c == '.';
        let end = after.find(|c| !digits(c)).unwrap_or(after.len());
        after[..end].parse::<f32>().expect("a number")
    };
    let usual = magnitude(&[]);
    assert!(usual > 1.0, "{usual}");
    let own = ("qwen2.rope.scaling.yarn_attn_factor", 1.25f32.into());
    assert_eq!(magnitude(&[own]), 1.25);
    let more = ("qwen2.rope.scaling.attn_factor", 2.0f32.into());
    assert_eq!(magnitude(&[more]), 2.0 * usual);
}
