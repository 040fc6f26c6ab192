//! The CUDA driver's objects, each freed when it is dropped: context, memory, stream, event, module, graph. The unsafe calls are made here.
//!
//! None of these is Send or Sync: the one thread that made the context uses it.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cudarc::driver::{DriverError, result, sys};

use crate::model::weights::Files;

/// Keeps what holds it on its thread.
type OneThread = PhantomData<*const ()>;

/// A card's primary context, current on this thread.
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    opening: Duration,
}

/// Why there is no context.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The library `libcuda` is not there.
    #[error("no CUDA driver is installed on this machine (libcuda.so was not found)")]
    NoDriver,
    /// There are fewer cards.
    #[error("there is no card number {ordinal}: the driver knows {count}")]
    NoCard {
        /// Asked for.
        ordinal: usize,
        /// There are.
        count: usize,
    },
    /// The driver says no.
    #[error("the CUDA driver refuses: {}", explain(.0))]
    Driver(#[from] DriverError),
}

/// "CUDA_ERROR_OUT_OF_MEMORY (out of memory)".
pub fn explain(error: &DriverError) -> String {
    let text = |c: Result<&std::ffi::CStr, DriverError>| {
        c.map_or_else(
            |_| "unknown".to_owned(),
            |c| c.to_string_lossy().into_owned(),
        )
    };
    format!(
        "{} ({})",
        text(error.error_name()),
        text(error.error_string())
    )
}

/// Looks for card number `ordinal`.
pub fn find(ordinal: usize) -> Result<sys::CUdevice, OpenError> {
    // SAFETY: it looks whether the library can be opened, and nothing else. Everything else here panics without it.
    if !unsafe { sys::is_culib_present() } {
        return Err(OpenError::NoDriver);
    }
    result::init()?;
    let count = usize::try_from(result::device::get_count()?).unwrap_or(0);
    if ordinal >= count {
        return Err(OpenError::NoCard { ordinal, count });
    }
    Ok(result::device::get(ordinal as i32)?)
}

impl Context {
    /// Opens card number `ordinal`.
    pub fn open(ordinal: usize) -> Result<Self, OpenError> {
        let begin = Instant::now();
        let device = find(ordinal)?;
        // SAFETY: the device was just got; the context is released once, on drop.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }?;
        Ok(Self {
            device,
            context,
            opening: begin.elapsed(),
        })
    }

    /// How long opening it took.
    pub fn opening(&self) -> Duration {
        self.opening
    }

    /// "NVIDIA H100 80GB HBM3".
    pub fn name(&self) -> Result<String, DriverError> {
        result::device::get_name(self.device)
    }

    /// The newest CUDA version that the driver knows: "13.0".
    pub fn driver_version(&self) -> Result<String, DriverError> {
        let mut version = 0;
        // SAFETY: a number is written to the variable.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// A number that the driver knows of the card.
    pub fn attribute(&self, which: sys::CUdevice_attribute) -> Result<usize, DriverError> {
        // SAFETY: the device is valid as long as the driver is loaded.
        let value = unsafe { result::device::get_attribute(self.device, which) }?;
        Ok(usize::try_from(value).unwrap_or(0))
    }

    /// (free, total) bytes of the card's memory.
    pub fn memory(&self) -> Result<(u64, u64), DriverError> {
        let (free, total) = result::mem_get_info()?;
        Ok((free as u64, total as u64))
    }

    /// The raw handle, to compare with what a pointer belongs to.
    pub fn raw(&self) -> sys::CUcontext {
        self.context
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything made in it is dropped before it.
        unsafe { result::primary_ctx::release(self.device) }.ok();
    }
}

/// Plain device memory.
#[derive(Debug)]
pub struct Buffer {
    at: sys::CUdeviceptr,
    bytes: usize,
    one_thread: OneThread,
}

impl Buffer {
    /// Allocates, aligned to 256 bytes at least, and fills with zeros.
    pub fn zeroed(bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(256);
        // SAFETY: a context is current on this thread; the memory is freed once, on drop.
        let at = unsafe { result::malloc_sync(bytes) }?;
        let buffer = Self {
            at,
            bytes,
            one_thread: PhantomData,
        };
        // SAFETY: the range was just allocated.
        unsafe { result::memset_d8_sync(at, 0, bytes) }?;
        // it may still be under way, and streams do not wait for it
        result::ctx::synchronize()?;
        Ok(buffer)
    }

    /// The device address.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn range(&self, offset: usize, len: usize) -> sys::CUdeviceptr {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{len} bytes from {offset} on of {}",
            self.bytes
        );
        self.at + offset as u64
    }

    /// Copies bytes in, in the stream's order, and returns when they have been read from `from`, which is no page-locked memory.
    pub fn send(&self, stream: &Stream, offset: usize, from: &[u8]) -> Result<(), DriverError> {
        // SAFETY: the range was checked; the driver copies pageable memory aside before it returns.
        unsafe { result::memcpy_htod_async(self.range(offset, from.len()), from, stream.0) }
    }

    /// Fills it with zeros, in the stream's order.
    pub fn clear(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: the range is the whole allocation.
        unsafe { result::memset_d8_async(self.at, 0, self.bytes, stream.0) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: the range was checked.
        unsafe { result::memcpy_dtoh_sync(to, self.range(offset, to.len())) }
    }

    /// Copies within the buffer, in the stream's order.
    pub fn copy_within(
        &self,
        stream: &Stream,
        from: usize,
        to: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: both ranges were checked; pages do not overlap.
        unsafe {
            result::memcpy_dtod_async(self.range(to, len), self.range(from, len), len, stream.0)
        }
    }

    /// Whether it is plain memory of the card that this context belongs to: neither managed nor host memory.
    pub fn is_resident(&self, context: &Context) -> Result<bool, DriverError> {
        use sys::CUpointer_attribute::{
            CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_IS_MANAGED,
            CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        };
        let (mut kind, mut managed, mut owner) = (0u32, 0u32, std::ptr::null_mut::<c_void>());
        let asks: [(sys::CUpointer_attribute, *mut c_void); 3] = [
            (CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (&raw mut kind).cast()),
            (CU_POINTER_ATTRIBUTE_IS_MANAGED, (&raw mut managed).cast()),
            (CU_POINTER_ATTRIBUTE_CONTEXT, (&raw mut owner).cast()),
        ];
        for (which, to) in asks {
            // SAFETY: each attribute is written to a variable of the type that the driver's documentation names for it.
            unsafe { sys::cuPointerGetAttribute(to, which, self.at) }.result()?;
        }
        let device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32;
        Ok(kind == device && managed == 0 && owner.cast() == context.raw())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed`, freed here only. An error has nobody to tell.
        unsafe { result::free_sync(self.at) }.ok();
    }
}

/// Page-locked host memory, the small staging area between the processor and the card.
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// Allocates and fills with zeros.
    pub fn zeroed(bytes: usize) -> Result<Self, DriverError> {
        let bytes = bytes.max(16);
        // SAFETY: a context is current; the memory is freed once, on drop.
        let at = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        // SAFETY: the range was just allocated.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self { at, bytes })
    }

    /// What it holds.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with this length and initialised. The device writes to it only in copies and kernels that were waited for.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    /// What it holds, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }

    /// Where it lies for the card, which reads and writes it directly.
    pub fn at(&self) -> u64 {
        self.at as u64
    }

    /// Starts a copy of `len` bytes from `from` on to a place in `to`. They must not change before the stream has come so far.
    pub fn send_from(
        &self,
        stream: &Stream,
        from: usize,
        to: &Buffer,
        offset: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        let bytes = &self.as_slice()[from..from + len];
        // SAFETY: both ranges are checked, by the slice and by `range`.
        unsafe { result::memcpy_htod_async(to.range(offset, len), bytes, stream.0) }
    }

    /// Starts a copy of the first `len` bytes to the beginning of `to`. They must not change before the stream has come so far.
    pub fn send(&self, stream: &Stream, to: &Buffer, len: usize) -> Result<(), DriverError> {
        // SAFETY: both ranges are checked, by the slice and by `range`.
        unsafe { result::memcpy_htod_async(to.range(0, len), &self.as_slice()[..len], stream.0) }
    }

    /// Starts a copy from a buffer to the beginning.
    pub fn receive(
        &mut self,
        stream: &Stream,
        from: &Buffer,
        offset: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        self.receive_to(stream, 0, from, offset, len)
    }

    /// Starts a copy from a buffer to a place.
    pub fn receive_to(
        &mut self,
        stream: &Stream,
        to: usize,
        from: &Buffer,
        offset: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        let at = from.range(offset, len);
        let bytes = &mut self.as_mut_slice()[to..to + len];
        // SAFETY: both ranges are checked; nobody reads before the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(bytes, at, stream.0) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed`, freed here only.
        unsafe { result::free_host(self.at.cast()) }.ok();
    }
}

/// Pages of a model's file that the card reads directly while this lives.
pub struct Registered {
    at: *const u8,
    bytes: usize,
    /// Keeps the pages where they are.
    _files: Rc<dyn Files>,
}

impl Registered {
    /// Registers whole pages of a file, read-only.
    pub fn pages(
        files: &Rc<dyn Files>,
        file: usize,
        range: Range<usize>,
    ) -> Result<Self, DriverError> {
        let pages = files.file(file).get(range).unwrap_or_default();
        let at = pages.as_ptr();
        // SAFETY: `Files` gives the same bytes as long as it lives, which is as long as the registration; they are only read.
        unsafe {
            sys::cuMemHostRegister_v2(
                at.cast_mut().cast(),
                pages.len(),
                sys::CU_MEMHOSTREGISTER_READ_ONLY,
            )
        }
        .result()?;
        Ok(Self {
            at,
            bytes: pages.len(),
            _files: Rc::clone(files),
        })
    }

    /// Starts a copy of some of the bytes to `to`, from `offset` on. The registration must live until the stream has come so far.
    pub fn send(
        &self,
        stream: &Stream,
        range: Range<usize>,
        to: &Buffer,
        offset: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: the pages are there as long as `self`, and nobody writes to them.
        let pages = unsafe { std::slice::from_raw_parts(self.at, self.bytes) };
        let pages = pages.get(range).unwrap_or_default();
        // SAFETY: the range was checked.
        unsafe { result::memcpy_htod_async(to.range(offset, pages.len()), pages, stream.0) }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered in `pages`, once.
        unsafe { sys::cuMemHostUnregister(self.at.cast_mut().cast()) }
            .result()
            .ok();
    }
}

/// Work in order.
pub struct Stream(sys::CUstream);

impl Stream {
    /// One that does not wait for the default stream.
    pub fn new() -> Result<Self, DriverError> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Self)
    }

    /// Waits until everything is done.
    pub fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.0) }
    }

    /// The raw handle, for launches.
    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Records what `work` enqueues instead of running it.
    pub fn capture<E: From<DriverError>>(
        &self,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives, and the capture is ended below in every case.
        unsafe { result::stream::begin_capture(self.0, mode) }?;
        let done = work();
        // SAFETY: begun just above.
        let graph = unsafe { result::stream::end_capture(self.0) };
        done?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        // SAFETY: the graph was just made.
        let executable = unsafe { result::graph::instantiate(graph, flags) };
        // SAFETY: the executable form, if there is one, does not need the graph.
        unsafe { result::graph::destroy(graph) }?;
        Ok(Graph(executable?))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here only.
        unsafe { result::stream::destroy(self.0) }.ok();
    }
}

/// Launches that are replayed together.
pub struct Graph(sys::CUgraphExec);

impl Graph {
    /// Enqueues them.
    pub fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both live.
        unsafe { result::graph::launch(self.0, stream.0) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `capture`, destroyed here only.
        unsafe { result::graph::exec_destroy(self.0) }.ok();
    }
}

/// A point in a stream.
pub struct Event(sys::CUevent);

impl Event {
    /// One that keeps no time.
    pub fn new() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Self)
    }

    /// Moves it behind what the stream has to do so far.
    pub fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both live.
        unsafe { result::event::record(self.0, stream.0) }
    }

    /// Waits until the stream has come to it.
    pub fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.0) }
    }

    /// Whether the stream has come to it.
    pub fn is_done(&self) -> Result<bool, DriverError> {
        // SAFETY: the event lives.
        match unsafe { result::event::query(self.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here only.
        unsafe { result::event::destroy(self.0) }.ok();
    }
}

/// Compiled kernels.
pub struct Module(sys::CUmodule);

/// A kernel of a module that is kept as long as the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub(super) sys::CUfunction);

impl Module {
    /// Loads a fat binary.
    pub fn load(image: &[u8]) -> Result<Self, DriverError> {
        // SAFETY: the image is what nvcc wrote, embedded whole.
        unsafe { result::module::load_data(image.as_ptr().cast()) }.map(Self)
    }

    /// Finds a kernel.
    pub fn function(&self, name: &str) -> Result<Function, DriverError> {
        let name =
            CString::new(name).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?;
        // SAFETY: the module lives.
        unsafe { result::module::get_function(self.0, name) }.map(Function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded here only; its functions are dropped with the same device.
        unsafe { result::module::unload(self.0) }.ok();
    }
}
