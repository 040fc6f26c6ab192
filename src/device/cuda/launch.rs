//! Launching kernels: one typed function a kernel, with the arguments laid out as its `.cu` declares them. The only unsafe code about kernels.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::driver::{DriverError, result, sys};

use super::args::{
    Address, Attend, AttendMany, Combine, Embed, Group, Matmul, Matvec, NormRows, Rope, Route,
    Router, Search, Split,
};
use super::driver::{Function, Module, Stream};
use crate::quant::TensorType;

/// Blocks of `choose_parts`.
pub const CHOOSE_BLOCKS: u32 = 64;

/// Blocks of the kernels of `candidates.cu`, at most.
pub const SEARCH_BLOCKS: usize = 128;

/// Threads of a block of them.
pub const SEARCH_THREADS: u32 = 256;

/// Positions that one block of `attend` works on.
pub const SPLIT: usize = 128;

/// Instances of `matvec`: tokens at once.
pub const MATVEC_TOKENS: [usize; 3] = [1, 2, 8];

/// Types that files mix in one layer, and for whose neighbouring segments `matvec` has instances.
pub const MATVEC_PAIRS: [[TensorType; 2]; 3] = [
    [TensorType::Q4_K, TensorType::Q6_K],
    [TensorType::Q5_K, TensorType::Q6_K],
    [TensorType::Q5_0, TensorType::Q8_0],
];

/// Shared memory that most kernels declare themselves, at most.
const OWN_BYTES: usize = 2048;

/// Threads of a block of `matvec_floats`.
pub const MATVEC_THREADS: usize = 512;

/// Threads of a block of `matvec`: 32 times `WARPS` of `cuda/matvec.cu`.
pub const TILE_THREADS: usize = 512;

/// Widths of a head and queries of a block for which `attend_many` was built; of a width what is best first.
pub const ATTEND_MANY: [(usize, usize); 5] =
    [(64, 128), (96, 128), (128, 128), (128, 64), (256, 64)];

/// Widths of a head for which `attend_hopper` was built.
pub const ATTEND_HOPPER: [usize; 4] = [64, 96, 128, 256];

macro_rules! images {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")).as_slice())),*]
    };
}

/// The fat binaries that the build made, by the names of their sources.
static IMAGES: [(&str, &[u8]); 19] = images!(
    "attend",
    "attend_hopper",
    "attend_many",
    "candidates",
    "choose",
    "embed",
    "expand",
    "experts",
    "matmul",
    "matmul_half",
    "matmul_hopper",
    "matvec",
    "matvec_floats",
    "norm",
    "read",
    "rope",
    "rope_many",
    "router",
    "split"
);

/// The source that a kernel is in: the one that begins its name, but for a few.
fn image_of(kernel: &str) -> &str {
    match kernel {
        "norm_rows" | "norm_half" | "share_rows" | "gate_rows" => "norm",
        "route" | "group" | "combine" => "experts",
        "choose_parts" => "choose",
        other => {
            let begins = IMAGES.iter().filter(|(name, _)| other.starts_with(name));
            begins
                .map(|(name, _)| *name)
                .max_by_key(|name| name.len())
                .unwrap_or(other)
        }
    }
}

/// All kernels that a model needs, found at load.
pub struct Kernels {
    modules: Vec<Module>,
    found: HashMap<String, Kernel>,
    shared_max: usize,
    hopper: bool,
}

/// A kernel that was found.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    function: Function,
    /// It waits for its inputs itself, so that it may be started while the kernel before it ends.
    waits: bool,
}

/// Blocks, threads and shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// In three dimensions.
    pub blocks: (u32, u32, u32),
    /// Of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

impl Grid {
    /// So many blocks in a row.
    pub fn line(blocks: usize, threads: u32, shared_bytes: usize) -> Self {
        Self {
            blocks: (blocks as u32, 1, 1),
            threads,
            shared_bytes,
        }
    }
}

impl Kernels {
    /// Loads the fat binaries. `shared_max`: most shared memory that a block may have on this card.
    pub fn load(shared_max: usize) -> Result<Self, DriverError> {
        let modules = IMAGES
            .iter()
            .map(|(_, image)| Module::load(image))
            .collect::<Result<Vec<_>, _>>()?;
        let place = IMAGES.iter().position(|(of, _)| *of == "matmul_hopper");
        let hopper = place.and_then(|place| modules.get(place));
        Ok(Self {
            // code for other cards has no such kernels
            hopper: hopper.is_some_and(|m| m.function("matmul_hopper_F16").is_ok()),
            modules,
            found: HashMap::new(),
            shared_max,
        })
    }

    /// Most dynamic shared memory that a block may have on this card, bytes, of a kernel whose own takes no more than [`OWN_BYTES`].
    pub fn shared_max(&self) -> usize {
        self.shared_max.saturating_sub(OWN_BYTES)
    }

    /// Whether a block may have so much shared memory on this card.
    pub fn has_shared(&self, bytes: usize) -> bool {
        bytes <= self.shared_max()
    }

    /// Whether the card and this build have the products of warpgroups.
    pub fn has_hopper(&self) -> bool {
        self.hopper
    }

    /// Finds a kernel, so that a launch only looks it up.
    pub fn prepare(&mut self, name: &str) -> Result<(), DriverError> {
        if self.found.contains_key(name) {
            return Ok(());
        }
        let image = image_of(name);
        let place = IMAGES.iter().position(|(of, _)| *of == image);
        let module = place.and_then(|place| self.modules.get(place));
        let missing = DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND);
        let function = module.ok_or(missing)?.function(name)?;
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
        // less than the card has: what a kernel declares itself counts too
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC;
        // SAFETY: the function belongs to a module that lives as long as `self`.
        let fixed = unsafe { result::function::get_function_attribute(function.0, STATIC) }?;
        let fixed = usize::try_from(fixed).unwrap_or(0).max(OWN_BYTES);
        let most = self.shared_max.saturating_sub(fixed) as i32;
        // SAFETY: the function belongs to a module that lives as long as `self`.
        unsafe { result::function::set_function_attribute(function.0, SHARED, most) }?;
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as SPLIT_OF_CACHE;
        // the same for all: a multiprocessor divides its memory anew only when it is empty, so that kernels that differ never run side by side
        // SAFETY: as above.
        unsafe { result::function::set_function_attribute(function.0, SPLIT_OF_CACHE, 100) }?;
        // `wait_for_inputs` does nothing in code for cards before Hopper, nor where a newer card runs that code
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION as BUILT_FOR;
        // SAFETY: as above.
        let built_for = unsafe { result::function::get_function_attribute(function.0, BUILT_FOR) }?;
        let waits = built_for >= 90 && name != "split";
        self.found
            .insert(name.to_owned(), Kernel { function, waits });
        Ok(())
    }

    fn launch(
        &self,
        name: &str,
        stream: &Stream,
        grid: Grid,
        args: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        let Kernel { function, waits } = *self
            .found
            .get(name)
            .ok_or(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?;
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks.0,
            gridDimY: grid.blocks.1,
            gridDimZ: grid.blocks.2,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: stream.raw(),
            attrs: &raw mut early,
            numAttrs: u32::from(waits),
        };
        // SAFETY: the typed functions below pass the arguments that the kernel of this name declares; addresses in them are those of the
        // device's buffers, whose shapes the caller made the grid from.
        unsafe {
            sys::cuLaunchKernelEx(&config, function.0, args.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
    }

    /// A launch of a kernel whose one argument is a structure.
    fn launch_struct<T: bytemuck::Pod>(
        &self,
        name: &str,
        stream: &Stream,
        grid: Grid,
        args: &T,
    ) -> Result<(), DriverError> {
        self.launch(
            name,
            stream,
            grid,
            &mut [std::ptr::from_ref(args).cast_mut().cast()],
        )
    }

    /// `matvec` of one type, or of a pair of [`MATVEC_PAIRS`], for at most `tokens`, one of [`MATVEC_TOKENS`].
    pub fn matvec(
        &self,
        kinds: &[TensorType],
        tokens: usize,
        stream: &Stream,
        grid: Grid,
        args: &Matvec,
    ) -> Result<(), DriverError> {
        self.launch_struct(&matvec_name(kinds, tokens), stream, grid, args)
    }

    /// `share_rows`: `args.out`, rows of `args.out_stride`, is multiplied by the sigmoid of `share` times the row of x, normalised.
    pub fn share_rows(
        &self,
        stream: &Stream,
        rows: usize,
        args: &NormRows,
        mut share: Address,
    ) -> Result<(), DriverError> {
        let args: &mut [*mut c_void] = &mut [
            std::ptr::from_ref(args).cast_mut().cast(),
            (&raw mut share).cast(),
        ];
        self.launch("share_rows", stream, Grid::line(rows, 256, 0), args)
    }

    /// `matmul` of a type, or on Hopper `matmul_hopper`.
    pub fn matmul(
        &self,
        kind: TensorType,
        stream: &Stream,
        grid: Grid,
        args: &Matmul,
    ) -> Result<(), DriverError> {
        let on = if self.hopper {
            "matmul_hopper"
        } else {
            "matmul"
        };
        self.launch_struct(&format!("{on}_{}", kind.name()), stream, grid, args)
    }

    /// `expand` of a type.
    pub fn expand(
        &self,
        kind: TensorType,
        stream: &Stream,
        grid: Grid,
        args: &Matmul,
    ) -> Result<(), DriverError> {
        self.launch_struct(&format!("expand_{}", kind.name()), stream, grid, args)
    }

    /// `matmul_half` for tiles of so many tokens, 128 or 256.
    pub fn matmul_half(
        &self,
        tokens: usize,
        stream: &Stream,
        grid: Grid,
        args: &Matmul,
    ) -> Result<(), DriverError> {
        self.launch_struct(&format!("matmul_half_{tokens}"), stream, grid, args)
    }

    /// `embed` of a type.
    pub fn embed(
        &self,
        kind: TensorType,
        stream: &Stream,
        grid: Grid,
        args: &Embed,
    ) -> Result<(), DriverError> {
        self.launch_struct(&format!("embed_{}", kind.name()), stream, grid, args)
    }

    /// `norm_rows`.
    pub fn norm_rows(
        &self,
        stream: &Stream,
        rows: usize,
        args: &NormRows,
    ) -> Result<(), DriverError> {
        self.launch_struct("norm_rows", stream, Grid::line(rows, 256, 0), args)
    }

    /// `norm_half`.
    pub fn norm_half(
        &self,
        stream: &Stream,
        rows: usize,
        args: &NormRows,
    ) -> Result<(), DriverError> {
        self.launch_struct("norm_half", stream, Grid::line(rows, 256, 0), args)
    }

    /// `rope_append`, for pages of such numbers.
    pub fn rope_append(
        &self,
        kv: &str,
        stream: &Stream,
        grid: Grid,
        args: &Rope,
    ) -> Result<(), DriverError> {
        self.launch_struct(&format!("rope_append_{kv}"), stream, grid, args)
    }

    /// `rope_many`, for f16 or f32 pages: one block a token.
    pub fn rope_many(
        &self,
        kv: &str,
        stream: &Stream,
        n_tokens: usize,
        args: &Rope,
    ) -> Result<(), DriverError> {
        let grid = Grid::line(n_tokens, 256, 0);
        self.launch_struct(&format!("rope_many_{kv}"), stream, grid, args)
    }

    /// `attend`: an instance by its name.
    pub fn attend(
        &self,
        name: &str,
        stream: &Stream,
        grid: Grid,
        args: &Attend,
    ) -> Result<(), DriverError> {
        self.launch_struct(name, stream, grid, args)
    }

    /// `attend_hopper` or `attend_many`, for a width of [`ATTEND_HOPPER`] or [`ATTEND_MANY`].
    pub fn attend_many(
        &self,
        name: &str,
        stream: &Stream,
        grid: Grid,
        args: &AttendMany,
    ) -> Result<(), DriverError> {
        self.launch_struct(name, stream, grid, args)
    }

    /// `route`: one warp a token.
    pub fn route(&self, stream: &Stream, args: &Route) -> Result<(), DriverError> {
        self.launch_struct(
            "route",
            stream,
            Grid::line(args.n_tokens as usize, 32, 0),
            args,
        )
    }

    /// `group`: one block an expert.
    pub fn group(&self, stream: &Stream, args: &Group) -> Result<(), DriverError> {
        let experts = args.n_experts as usize;
        self.launch_struct("group", stream, Grid::line(experts, 256, 4 * experts), args)
    }

    /// `router` of a type.
    pub fn router(
        &self,
        kind: TensorType,
        stream: &Stream,
        grid: Grid,
        args: &Router,
    ) -> Result<(), DriverError> {
        self.launch_struct(&format!("router_{}", kind.name()), stream, grid, args)
    }

    /// `combine`: x (n_tokens, width) += factor × the weighted sum of y (n_tokens × n_used, width).
    pub fn combine(
        &self,
        stream: &Stream,
        n_tokens: usize,
        args: Combine,
    ) -> Result<(), DriverError> {
        let Combine {
            mut x,
            mut y,
            mut weights,
            mut width,
            mut n_used,
            mut factor,
        } = args;
        let grid = Grid {
            blocks: (width.div_ceil(256), n_tokens as u32, 1),
            threads: 256,
            shared_bytes: 0,
        };
        let args: &mut [*mut c_void] = &mut [
            (&raw mut x).cast(),
            (&raw mut y).cast(),
            (&raw mut weights).cast(),
            (&raw mut width).cast(),
            (&raw mut n_used).cast(),
            (&raw mut factor).cast(),
        ];
        self.launch("combine", stream, grid, args)
    }

    /// `gate_rows`: n values of `gate` become activation(gate, up).
    pub fn gate_rows(
        &self,
        stream: &Stream,
        (mut gate, mut up): (Address, Address),
        mut n: u64,
        (mut activation, mut alpha, mut limit): (u32, f32, f32),
    ) -> Result<(), DriverError> {
        let args: &mut [*mut c_void] = &mut [
            (&raw mut gate).cast(),
            (&raw mut up).cast(),
            (&raw mut n).cast(),
            (&raw mut activation).cast(),
            (&raw mut alpha).cast(),
            (&raw mut limit).cast(),
        ];
        self.launch(
            "gate_rows",
            stream,
            Grid::line(n.div_ceil(256) as usize, 256, 0),
            args,
        )
    }

    /// `split`: one plane of some rows.
    pub fn split(&self, stream: &Stream, args: &Split) -> Result<(), DriverError> {
        let bytes = args.n_blocks * u64::from(args.bytes);
        let blocks = bytes.div_ceil(256).clamp(1, 132 * 32);
        self.launch_struct("split", stream, Grid::line(blocks as usize, 256, 0), args)
    }

    /// `read`: all of `bytes` once, on every multiprocessor.
    pub fn read(
        &self,
        stream: &Stream,
        (mut from, mut sink): (Address, Address),
        bytes: u64,
        multiprocessors: usize,
    ) -> Result<(), DriverError> {
        let mut words = bytes / 16;
        let args: &mut [*mut c_void] = &mut [
            (&raw mut from).cast(),
            (&raw mut words).cast(),
            (&raw mut sink).cast(),
        ];
        self.launch(
            "read",
            stream,
            Grid::line(multiprocessors * 4, 512, 0),
            args,
        )
    }

    /// `choose_parts` and `choose`: the likeliest token of a row, and the first bad one, at `chosen`.
    pub fn choose(
        &self,
        stream: &Stream,
        mut logits: Address,
        mut n_vocab: u32,
        (mut parts, mut chosen): (Address, Address),
    ) -> Result<(), DriverError> {
        let args: &mut [*mut c_void] = &mut [
            (&raw mut logits).cast(),
            (&raw mut n_vocab).cast(),
            (&raw mut parts).cast(),
        ];
        self.launch(
            "choose_parts",
            stream,
            Grid::line(CHOOSE_BLOCKS as usize, 256, 0),
            args,
        )?;
        let args: &mut [*mut c_void] = &mut [(&raw mut parts).cast(), (&raw mut chosen).cast()];
        self.launch("choose", stream, Grid::line(1, 64, 0), args)
    }

    /// `candidates_largest`, `candidates_count` and `candidates_take`: the largest logits of a row, and what the others weigh.
    pub fn candidates(
        &self,
        stream: &Stream,
        blocks: usize,
        args: &Search,
    ) -> Result<(), DriverError> {
        let grid = Grid::line(blocks, SEARCH_THREADS, 0);
        for name in CANDIDATES {
            self.launch_struct(name, stream, grid, args)?;
        }
        Ok(())
    }

    /// `candidates_gather`: the logits of `n` tokens; ids and results lie in page-locked memory.
    pub fn gather(
        &self,
        stream: &Stream,
        mut logits: Address,
        n: usize,
        (mut ids, mut out): (Address, Address),
    ) -> Result<(), DriverError> {
        let mut count = n as u32;
        let args: &mut [*mut c_void] = &mut [
            (&raw mut logits).cast(),
            (&raw mut ids).cast(),
            (&raw mut count).cast(),
            (&raw mut out).cast(),
        ];
        let blocks = n.div_ceil(SEARCH_THREADS as usize).max(1);
        let grid = Grid::line(blocks, SEARCH_THREADS, 0);
        self.launch("candidates_gather", stream, grid, args)
    }
}

/// The kernels of a search, in their order.
pub const CANDIDATES: [&str; 3] = ["candidates_largest", "candidates_count", "candidates_take"];

/// "matvec_Q4_K_1", "matvec_Q4_K_Q6_K_1", "matvec_floats_F16_1".
pub fn matvec_name(kinds: &[TensorType], tokens: usize) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let floats = if kinds.iter().any(|k| is_float(*k)) {
        "floats_"
    } else {
        ""
    };
    format!("matvec_{floats}{}_{tokens}", names.join("_"))
}

/// Whether a type has no blocks.
pub const fn is_float(kind: TensorType) -> bool {
    matches!(kind, TensorType::F32 | TensorType::F16 | TensorType::BF16)
}
