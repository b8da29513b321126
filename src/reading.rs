//! Reading the files that an operator names: the configuration, secrets, certificates.
//!
//! Invariants: nothing without end, or of gigabytes, is read into memory; nothing is waited for without end, so that a
//! pipe may be named, and one that nobody writes to is an error; what was read is wiped.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use zeroize::Zeroizing;

/// The longest file: a bundle of all authorities with their texts is a quarter of it.
const LONGEST: u64 = 4 << 20;
/// Room for what comes by a pipe, which does not tell its length.
const PIPED: u64 = 64 << 10;
/// More than what `read_to_end` wants to have free.
const SPARE: u64 = 64;
/// How long a pipe may say nothing, in seconds: a program that decrypts may ask its key server first.
const PATIENCE: i64 = 10;

/// What is in a file, and its rights.
///
/// # Errors
/// The system's; [`io::ErrorKind::FileTooLarge`]; [`io::ErrorKind::TimedOut`] where nothing comes.
pub fn bytes(path: &Path) -> io::Result<(Zeroizing<Vec<u8>>, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    // With room for all of it and the end: what grows leaves copies behind, what is short is first read elsewhere.
    let room = if metadata.is_file() { metadata.len().min(LONGEST) + SPARE } else { PIPED };
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    loop {
        wait(&file)?;
        let left = (LONGEST + 1).saturating_sub(bytes.len() as u64);
        match (&file).take(left).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > LONGEST => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("it is longer than {} MiB", LONGEST >> 20),
                ));
            }
            Ok(_) => return Ok((bytes, metadata)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The same for a text.
///
/// # Errors
/// As for [`bytes()`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn text(path: &Path) -> io::Result<(Zeroizing<String>, Metadata)> {
    let (bytes, metadata) = bytes(path)?;
    let text = str::from_utf8(&bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok((Zeroizing::new(text.to_owned()), metadata))
}

/// The certificates in a PEM file, in its order.
///
/// # Errors
/// [`pem::Error::Io`] as for [`bytes()`]; the others for what is no PEM.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let (bytes, _) = bytes(path).map_err(pem::Error::Io)?;
    CertificateDer::pem_slice_iter(&bytes).collect()
}

/// Until there is something to read, or the end.
fn wait(file: &File) -> io::Result<()> {
    let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    match rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&limit)))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {PATIENCE} s"))),
        _ => Ok(()),
    }
}
