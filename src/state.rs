//! A conversation's keys and values in a file, so that another worker can go on with it.
//!
//! A file is: [`MAGIC`], the length of the header as a little-endian u32, the header as JSON, the token ids as little-endian u32, the
//! pages one after the other as the device holds them, and the SHA-256 of all of this. It can be read by a worker with the same model,
//! the same kind of device and the same `--kv-type`, and by no other: the header says what it is of.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::device::{Device, DeviceError, PAGE_TOKENS};
use crate::limits;
use crate::pages::PageTable;

/// How a file begins; the last character is the version of the format.
pub const MAGIC: &[u8; 8] = b"ORCDKV01";

/// Where files are. The worker itself opens none.
pub trait StateStore {
    /// A file that is to be written. Whatever is there stays until [`StateSink::finish`].
    fn create(&self, path: &Path) -> io::Result<Box<dyn StateSink>>;
    /// A file that is to be read.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>>;
}

/// A file that is being written; nothing of it is to be seen unless it is finished.
pub trait StateSink: Write {
    /// Puts the file in its place.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Why a state cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("the file cannot be used: {0}")]
    File(#[from] io::Error),
    /// It is no state, is damaged, or is of something else.
    #[error("{0}")]
    Refused(String),
    /// The device cannot give or take the pages.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What a file is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The model, the kind of device and the form of its pages, as [`Device::state_id`] tells it.
    pub state_id: String,
    /// Tokens whose keys and values follow.
    pub tokens: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
}

/// How much a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Tokens.
    pub tokens: usize,
    /// Bytes of the whole file.
    pub bytes: u64,
}

/// Where in the pages the next piece begins.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    page: usize,
    offset: usize,
}

impl Cursor {
    /// Length of the next piece.
    fn piece(self, page_bytes: usize) -> usize {
        (page_bytes - self.offset).min(limits::STATE_PIECE_BYTES)
    }

    fn advance(&mut self, len: usize, page_bytes: usize) {
        self.offset += len;
        if self.offset >= page_bytes {
            *self = Cursor {
                page: self.page + 1,
                offset: 0,
            };
        }
    }
}

/// A file that is being written, piece by piece.
pub struct Saving {
    sink: Box<dyn StateSink>,
    hasher: Sha256,
    header: Header,
    pages: PageTable,
    cursor: Cursor,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Saving {
    /// Begins with what is not pages. `pages` are those of `tokens`, and have to stay as they are until this is over.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn begin(
        sink: Box<dyn StateSink>,
        device: &dyn Device,
        tokens: &[u32],
        pages: PageTable,
    ) -> Result<Self, (PageTable, StateError)> {
        let header = Header {
            state_id: device.state_id(),
            tokens: tokens.len(),
            page_tokens: PAGE_TOKENS,
            page_bytes: device.page_bytes(),
        };
        let json = serde_json::to_vec(&header).unwrap_or_default();
        let mut head = MAGIC.to_vec();
        head.extend((json.len() as u32).to_le_bytes());
        head.extend(json);
        head.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        let mut saving = Self {
            sink,
            hasher: Sha256::new(),
            header,
            pages,
            cursor: Cursor::default(),
            buffer: head,
            bytes: 0,
        };
        match saving.write_buffer() {
            Ok(()) => Ok(saving),
            Err(error) => Err((saving.pages, error)),
        }
    }

    fn write_buffer(&mut self) -> Result<(), StateError> {
        self.hasher.update(&self.buffer);
        self.bytes += self.buffer.len() as u64;
        Ok(self.sink.write_all(&self.buffer)?)
    }

    /// One piece. `true` when all pages are written, and [`Saving::finish`] is next.
    ///
    /// # Errors
    ///
    /// The file cannot be written, or the device cannot give its pages.
    pub fn step(&mut self, device: &mut dyn Device) -> Result<bool, StateError> {
        let Some(page) = self.pages.as_slice().get(self.cursor.page).copied() else {
            return Ok(true);
        };
        let size = self.header.page_bytes;
        self.buffer.resize(self.cursor.piece(size), 0);
        device.read_page(page, self.cursor.offset, &mut self.buffer)?;
        self.write_buffer()?;
        self.cursor.advance(self.buffer.len(), size);
        Ok(false)
    }

    /// The checksum, and the file is in its place. The pages are given back to whoever counts them.
    pub fn finish(mut self) -> (PageTable, Result<Extent, StateError>) {
        let checksum = self.hasher.finalize();
        let extent = Extent {
            tokens: self.header.tokens,
            bytes: self.bytes + checksum.len() as u64,
        };
        let written = self.sink.write_all(&checksum);
        let finished = written.and_then(|()| self.sink.finish());
        (self.pages, finished.map(|()| extent).map_err(Into::into))
    }

    /// Gives it up; the pages are given back to whoever counts them.
    pub fn abandon(self) -> PageTable {
        self.pages
    }
}

/// A file that is being read, piece by piece.
pub struct Loading {
    source: Box<dyn Read>,
    hasher: Sha256,
    header: Header,
    tokens: Vec<u32>,
    pages: PageTable,
    cursor: Cursor,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Loading {
    /// Reads all but the pages, and checks that they are of this device's model and fit in a context of so many tokens.
    ///
    /// # Errors
    ///
    /// It cannot be read, is no state, or is of something else.
    pub fn begin(
        source: Box<dyn Read>,
        device: &dyn Device,
        context_length: usize,
    ) -> Result<Self, StateError> {
        let mut loading = Self {
            source,
            hasher: Sha256::new(),
            header: Header {
                state_id: device.state_id(),
                tokens: 0,
                page_tokens: PAGE_TOKENS,
                page_bytes: device.page_bytes(),
            },
            tokens: Vec::new(),
            pages: PageTable::default(),
            cursor: Cursor::default(),
            buffer: Vec::new(),
            bytes: 0,
        };
        loading.read_header(context_length)?;
        let tokens = loading.header.tokens;
        loading.read(tokens * size_of::<u32>())?;
        let ids = loading.buffer.as_chunks().0;
        loading.tokens = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let vocab = device.capacity().vocab;
        match loading.tokens.iter().find(|id| **id as usize >= vocab) {
            None => Ok(loading),
            Some(id) => Err(refused(format!(
                "it holds the token id {id}; the vocabulary has {vocab}"
            ))),
        }
    }

    fn read_header(&mut self, context_length: usize) -> Result<(), StateError> {
        self.read(MAGIC.len() + size_of::<u32>())?;
        let (magic, len) = self.buffer.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(refused("it is no saved state of this version".into()));
        }
        let len = u32::from_le_bytes(len.try_into().unwrap_or_default()) as usize;
        if len > limits::STATE_HEADER_BYTES_MAX {
            return Err(refused(format!(
                "it is damaged: its header has {len} bytes"
            )));
        }
        self.read(len)?;
        let header: Header = serde_json::from_slice(&self.buffer)
            .map_err(|e| refused(format!("it is damaged: its header is no header: {e}")))?;
        let tokens = header.tokens;
        let ours = std::mem::replace(&mut self.header, header);
        if self.header
            != (Header {
                tokens,
                ..ours.clone()
            })
        {
            return Err(refused(format!(
                "it is of \"{}\" with pages of {} bytes; this worker has \"{}\" with pages of {} bytes",
                self.header.state_id, self.header.page_bytes, ours.state_id, ours.page_bytes
            )));
        }
        if tokens == 0 || tokens > context_length {
            return Err(refused(format!(
                "it holds {tokens} tokens; the context holds {context_length}"
            )));
        }
        Ok(())
    }

    /// Reads so many bytes into the buffer.
    fn read(&mut self, len: usize) -> Result<(), StateError> {
        self.buffer.resize(len, 0);
        self.source
            .read_exact(&mut self.buffer)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => refused("it ends too early".into()),
                _ => StateError::File(e),
            })?;
        self.hasher.update(&self.buffer);
        self.bytes += len as u64;
        Ok(())
    }

    /// Tokens that its pages have to hold.
    pub fn tokens(&self) -> usize {
        self.header.tokens
    }

    /// The pages into which it is read, as many as [`Loading::tokens`] need.
    pub fn give_pages(&mut self, pages: PageTable) {
        self.pages = pages;
    }

    /// One piece. `true` when all pages are in place, and [`Loading::finish`] is next.
    ///
    /// # Errors
    ///
    /// The file cannot be read or ends too early, or the device cannot take its pages.
    pub fn step(&mut self, device: &mut dyn Device) -> Result<bool, StateError> {
        let Some(page) = self.pages.as_slice().get(self.cursor.page).copied() else {
            return Ok(true);
        };
        let size = self.header.page_bytes;
        self.read(self.cursor.piece(size))?;
        device.write_page(page, self.cursor.offset, &self.buffer)?;
        self.cursor.advance(self.buffer.len(), size);
        Ok(false)
    }

    /// Compares the checksum. The pages are given back to whoever counts them, with the tokens that they hold where all is well.
    pub fn finish(mut self) -> (PageTable, Result<(Vec<u32>, Extent), StateError>) {
        let wanted = self.hasher.clone().finalize();
        let mut rest = Vec::new();
        let limit = wanted.len() as u64 + 1;
        let read = (&mut self.source).take(limit).read_to_end(&mut rest);
        let result = match read {
            Err(error) => Err(error.into()),
            Ok(_) if rest != wanted.as_slice() => {
                Err(refused("it is damaged: its checksum is another".into()))
            }
            Ok(_) => {
                let extent = Extent {
                    tokens: self.header.tokens,
                    bytes: self.bytes + wanted.len() as u64,
                };
                Ok((self.tokens, extent))
            }
        };
        (self.pages, result)
    }

    /// Gives it up; the pages are given back to whoever counts them.
    pub fn abandon(self) -> PageTable {
        self.pages
    }
}

fn refused(why: String) -> StateError {
    StateError::Refused(why)
}

/// Files on the disk. One that is being written has another name until it is whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStates;

struct DiskSink {
    file: Option<BufWriter<File>>,
    partial: PathBuf,
    path: PathBuf,
}

impl StateStore for DiskStates {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StateSink>> {
        let (path, mode) = place_of(path)?;
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(name);
        // what an earlier process of this number may have left
        std::fs::remove_file(&partial).ok();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&partial)?;
        Ok(Box::new(DiskSink {
            file: Some(BufWriter::new(file)),
            partial,
            path,
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Box::new(io::BufReader::new(File::open(path)?)))
    }
}

/// Where a state goes, and who may read it: a file keeps its place behind a link, and its mode; a new one is its owner's alone, since it holds a
/// conversation. Devices, pipes and folders are no place for one.
fn place_of(path: &Path) -> io::Result<(PathBuf, u32)> {
    let is_link = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((path.to_owned(), 0o600));
        }
        found => found?.is_symlink(),
    };
    let path = if is_link {
        std::fs::canonicalize(path)?
    } else {
        path.to_owned()
    };
    let there = std::fs::metadata(&path)?;
    if !there.is_file() {
        return Err(io::Error::other("what is there is not a file"));
    }
    Ok((path, there.permissions().mode() & 0o777))
}

impl Write for DiskSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file
            .as_mut()
            .map_or(Ok(bytes.len()), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl StateSink for DiskSink {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.flush()?;
        self.file = None;
        std::fs::rename(&self.partial, &self.path)
    }
}

impl Drop for DiskSink {
    fn drop(&mut self) {
        // After `finish` it has gone to its place, and there is nothing to remove.
        std::fs::remove_file(&self.partial).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    use super::*;

    fn save(path: &Path) -> io::Result<()> {
        let mut sink = DiskStates.create(path)?;
        sink.write_all(b"state")?;
        sink.finish()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_state_takes_the_place_of_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status();
        assert!(made.unwrap().success());
        symlink(at("nowhere"), at("dangling")).unwrap();
        symlink("/dev/null", at("device")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for name in ["pipe", "dangling", "device", "folder"] {
            let before = fs::symlink_metadata(at(name)).unwrap().file_type();
            assert!(save(&at(name)).is_err(), "{name}");
            let after = fs::symlink_metadata(at(name)).unwrap().file_type();
            assert_eq!(after, before, "{name}");
        }
        assert!(save(Path::new("/dev/null")).is_err());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            4,
            "nothing is left over"
        );
    }

    #[test]
    fn a_link_leads_on_and_who_may_read_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        save(&at("new")).unwrap();
        assert_eq!(mode(&at("new")), 0o600);
        fs::write(at("old"), "before").unwrap();
        fs::set_permissions(at("old"), Permissions::from_mode(0o440)).unwrap();
        symlink(at("old"), at("link")).unwrap();
        save(&at("link")).unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("old")).unwrap(), b"state");
        assert_eq!(mode(&at("old")), 0o440);
    }
}
