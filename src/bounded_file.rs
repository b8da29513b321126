//! Bounded reads of the files that an operator names: the configuration, secrets, certificates.
//!
//! Invariants: a read is limited in size and in time, so that a file may be a pipe; a pipe that nobody writes to is an
//! error; the memory is wiped after use.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use zeroize::Zeroizing;

/// The size limit of a file: a bundle of all authorities with comments has a quarter of it.
const MAX_SIZE: u64 = 4 << 20;
/// The initial buffer for a pipe, which has no known size.
const PIPE_BUFFER: u64 = 64 << 10;
/// More than the free capacity that `read_to_end` needs to reach the end of a file without growing the buffer.
const SPARE: u64 = 64;
/// How long a pipe may stay silent, in seconds: a program that decrypts may ask its key server first.
const TIMEOUT_SECONDS: i64 = 10;

/// Reads a file and its metadata.
///
/// # Errors
/// Errors of the system; [`io::ErrorKind::FileTooLarge`]; [`io::ErrorKind::TimedOut`] for a silent pipe.
pub fn read(path: &Path) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    // Sized for the whole file: a growing buffer would leave copies of secrets in freed memory.
    let capacity = if metadata.is_file() { metadata.len().min(MAX_SIZE) + SPARE } else { PIPE_BUFFER };
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(capacity).unwrap_or(0)));
    loop {
        wait_readable(&file)?;
        let remaining = (MAX_SIZE + 1).saturating_sub(bytes.len() as u64);
        match (&file).take(remaining).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > MAX_SIZE => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("it is longer than {} MiB", MAX_SIZE >> 20),
                ));
            }
            Ok(_) => return Ok((bytes, metadata)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a text file and its metadata. The byte order mark that some editors write first is left out.
///
/// # Errors
/// As for [`read()`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<(Zeroizing<String>, Metadata)> {
    let (bytes, metadata) = read(path)?;
    let text = decode(&bytes).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
    Ok((Zeroizing::new(text.to_owned()), metadata))
}

fn decode(bytes: &[u8]) -> Result<&str, &'static str> {
    // Text of ASCII in UTF-16 would be UTF-8 with zeros in it.
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || bytes.contains(&0) {
        return Err("it is not UTF-8 but probably UTF-16; save it as UTF-8");
    }
    let text = str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Reads the certificates in a PEM file, in its order.
///
/// # Errors
/// [`pem::Error::Io`] as for [`read()`]; the other variants for invalid PEM.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let (bytes, _) = read(path).map_err(pem::Error::Io)?;
    CertificateDer::pem_slice_iter(&bytes).collect()
}

/// Waits until there is something to read, or the end of the file.
fn wait_readable(file: &File) -> io::Result<()> {
    let limit = Timespec { tv_sec: TIMEOUT_SECONDS, tv_nsec: 0 };
    match rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&limit)))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {TIMEOUT_SECONDS} s"))),
        _ => Ok(()),
    }
}
