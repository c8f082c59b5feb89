//! A list of system calls to run inside of a stopped process, with the buffers they read and write.

use rustix::io::Errno;

use crate::ids::Addr;
use crate::tracee::decode;

/// Alignment of every buffer in bytes: enough for any structure of the kernel.
const ALIGNMENT: usize = 16;

/// A buffer of a [`Batch`], living in the scratch memory of the process while the batch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    start: usize,
    length: usize,
}

impl Buffer {
    /// Length in bytes.
    #[must_use]
    pub fn length(self) -> u64 {
        self.length as u64
    }
}

/// One argument of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address the program knows.
    Value(u64),
    /// The address of a buffer, plus an offset in bytes.
    Buffer(Buffer, u64),
    /// The address of the injected memory itself, at the start of a page.
    Injected,
}

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::Value(value)
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Arg {
        Arg::Value(u64::from(value))
    }
}
/// Sign-extended, as C does it: `AT_FDCWD` and -1 come out right.
impl From<i32> for Arg {
    fn from(value: i32) -> Arg {
        Arg::Value(i64::from(value).cast_unsigned())
    }
}
impl From<usize> for Arg {
    fn from(value: usize) -> Arg {
        Arg::Value(value as u64)
    }
}
impl From<Addr> for Arg {
    fn from(value: Addr) -> Arg {
        Arg::Value(value.0)
    }
}
impl From<Buffer> for Arg {
    fn from(value: Buffer) -> Arg {
        Arg::Buffer(value, 0)
    }
}

/// Which call of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(usize);

struct Call {
    number: u64,
    args: [Arg; 6],
}

/// See the module's documentation. Built up, run by [`Process::run`](crate::Process::run), then asked for results.
///
/// Calls run in order; a failing one does not keep later ones from running unless [`Batch::stop_on_error`] was called.
/// Calls that create a thread or process, or that do not return, must not be in a batch.
#[derive(Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    results: Vec<u64>,
    links: Vec<(usize, Buffer, u64)>,
    stop_on_error: bool,
}

/// Bytes of one record: number, six arguments, result.
pub(super) const RECORD: usize = 64;

/// The result of a call that was not reached.
const NOT_RUN: u64 = (-(libc::ECANCELED as i64)).cast_unsigned();

impl Batch {
    /// An empty list.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// The first failing call ends the run; later ones report `ECANCELED`.
    #[must_use]
    pub fn stop_on_error(mut self) -> Batch {
        self.stop_on_error = true;
        self
    }

    /// Adds a call. Missing arguments are 0.
    ///
    /// # Panics
    /// If there are more than six arguments.
    pub fn call(&mut self, number: i64, args: &[Arg]) -> CallId {
        let mut all = [Arg::Value(0); 6];
        all[..args.len()].copy_from_slice(args);
        self.calls.push(Call {
            number: number.cast_unsigned(),
            args: all,
        });
        CallId(self.calls.len() - 1)
    }

    /// A buffer that holds `bytes` when the batch starts.
    pub fn input(&mut self, bytes: &[u8]) -> Buffer {
        let start = self.data.len().next_multiple_of(ALIGNMENT);
        self.data.resize(start, 0);
        self.data.extend_from_slice(bytes);
        Buffer {
            start,
            length: bytes.len(),
        }
    }

    /// A zero-terminated string.
    pub fn input_str(&mut self, text: &[u8]) -> Buffer {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.input(&bytes)
    }

    /// A buffer of `length` zero bytes, to be filled by a call.
    pub fn output(&mut self, length: usize) -> Buffer {
        self.input(&vec![0; length])
    }

    /// Stores the address of `target` (8 bytes) at `offset` of `buffer`: for structures that hold pointers.
    pub fn link(&mut self, buffer: Buffer, offset: u64, target: Buffer) {
        self.links.push((
            buffer.start + usize::try_from(offset).unwrap_or(usize::MAX),
            target,
            0,
        ));
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The result of a call, after the batch ran.
    pub fn result(&self, call: CallId) -> Result<u64, Errno> {
        decode(self.results.get(call.0).copied().unwrap_or(NOT_RUN))
    }

    /// The first call that failed, by its place, and why.
    #[must_use]
    pub fn first_error(&self) -> Option<(usize, Errno)> {
        let failed = |(place, raw): (usize, &u64)| decode(*raw).err().map(|errno| (place, errno));
        self.results.iter().enumerate().find_map(failed)
    }

    /// What a buffer holds; after the run, what the calls put there.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.data[buffer.start..buffer.start + buffer.length]
    }

    pub(super) fn stops_on_error(&self) -> bool {
        self.stop_on_error
    }

    /// Bytes of scratch memory the batch needs.
    pub(super) fn size(&self) -> usize {
        self.data_offset() + self.data.len()
    }

    fn data_offset(&self) -> usize {
        (self.calls.len() * RECORD).next_multiple_of(ALIGNMENT)
    }

    fn resolve(&self, arg: Arg, base: Addr) -> u64 {
        match arg {
            Arg::Value(value) => value,
            Arg::Injected => base.0 - super::CODE_SIZE,
            Arg::Buffer(buffer, offset) => {
                base.plus((self.data_offset() + buffer.start) as u64)
                    .plus(offset)
                    .0
            }
        }
    }

    /// The number and arguments of call `place`, for scratch memory at `base`.
    pub(super) fn resolved(&self, place: usize, base: Addr) -> (u64, [u64; 6]) {
        let call = &self.calls[place];
        (call.number, call.args.map(|arg| self.resolve(arg, base)))
    }

    /// What to put into the scratch memory at `base`: the records, then the buffers.
    pub(super) fn encode(&self, base: Addr) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        for place in 0..self.calls.len() {
            let (number, args) = self.resolved(place, base);
            for word in [number].into_iter().chain(args).chain([NOT_RUN]) {
                bytes.extend_from_slice(&word.to_ne_bytes());
            }
        }
        bytes.resize(self.data_offset(), 0);
        bytes.extend_from_slice(&self.data);
        for &(at, target, offset) in &self.links {
            let at = self.data_offset() + at;
            let address = self.resolve(Arg::Buffer(target, offset), base);
            bytes[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        }
        bytes
    }

    /// Takes over results and buffers from the scratch memory.
    pub(super) fn decode(&mut self, memory: &[u8]) {
        self.results.clear();
        for record in memory.chunks_exact(RECORD).take(self.calls.len()) {
            let result = record[RECORD - 8..]
                .try_into()
                .map_or(NOT_RUN, u64::from_ne_bytes);
            self.results.push(result);
        }
        let start = self.data_offset();
        let length = self.data.len();
        self.data.copy_from_slice(&memory[start..start + length]);
    }
}
