//! Listening sockets: TCP, Unix, and those that systemd passes.
//!
//! Invariants: a Unix socket's file is removed only if nothing answers on it; the sockets of systemd are taken once per
//! process. A stop leaves the file of a Unix socket: it may be the next process's already.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use super::Peer;
use super::settings::Listen;

/// The most connections that the system queues until they are accepted.
const BACKLOG: u32 = 4096;
/// Ports below it need a permission.
const PRIVILEGED: u16 = 1024;
/// The `FileDescriptorName=` of a systemd socket without TLS, for port 80 beside 443.
const PLAIN_NAME: &str = "http";

/// A bound listener.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    address: String,
    /// Whether it has no TLS even if `server.tls` is set: a Unix socket, or a systemd socket named `http`.
    is_plain: bool,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An accepted connection.
pub(super) enum Stream {
    Tcp(TcpStream, Peer),
    Unix(UnixStream),
}

impl Stream {
    /// The remote address of the socket.
    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Tcp(_, peer) => *peer,
            Self::Unix(_) => Peer(None),
        }
    }
}

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen at {address}: another process listens there")]
    InUse {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen at {address}: not permitted")]
    Denied {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen at unix:{path}: the file there is not a socket")]
    NoSocket { path: PathBuf },
    #[error("no sockets passed by systemd")]
    NothingPassed,
    #[error("the sockets passed by systemd are in use by another listener")]
    Taken,
    #[error("socket {index} passed by systemd is not a listening stream socket")]
    Unfit {
        /// From 0.
        index: usize,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen at {address}")]
    Other {
        address: String,
        #[source]
        source: io::Error,
    },
}

impl BindError {
    /// How to fix it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "stop the other process, or choose another address",
            Self::Denied { .. } => {
                "for a port under 1024 use systemd socket activation (\"systemd\") or `setcap cap_net_bind_service=+ep` on \
                 the binary; for a Unix socket choose a folder that this user may write to"
            }
            Self::NoSocket { .. } => "move the file away, or choose another path",
            Self::NothingPassed => "start by a .socket unit, or configure an address instead of \"systemd\"",
            Self::Taken => "configure \"systemd\" for one listener only",
            Self::Unfit { .. } => "use ListenStream= in the .socket unit",
            Self::Other { .. } => "check that this machine has this address",
        }
    }

    /// Whether only a change of the configuration, or of what it names, fixes it: a restart does not.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::InUse { .. } => false,
            Self::Denied { .. } | Self::NoSocket { .. } | Self::NothingPassed | Self::Taken | Self::Unfit { .. } => {
                true
            }
            Self::Other { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::AddrNotAvailable
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidFilename
            ),
        }
    }
}

/// Checks that an entry of `listen` can be bound, without taking it from a relay that runs. What systemd would pass is
/// not known.
pub fn check(listen: &Listen) -> Result<(), BindError> {
    let failed = |error| bind_error(listen.to_string(), error);
    match listen {
        Listen::Systemd => Ok(()),
        Listen::Tcp(address) => {
            // The port itself may be the running relay's, and only low ones need a permission.
            let port = if address.port() < PRIVILEGED { address.port() } else { 0 };
            match std::net::TcpListener::bind((address.ip(), port)) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => Err(failed(error)),
                Ok(_) | Err(_) => Ok(()),
            }
        }
        Listen::Unix(path) => {
            if std::fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()) {
                return Err(BindError::NoSocket { path: path.clone() });
            }
            std::os::unix::net::SocketAddr::from_pathname(path).map_err(failed)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !std::fs::metadata(folder).map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(|errno| failed(errno.into()))
        }
    }
}

/// Checks that nothing listens at an entry of `listen`, as a bind would, without listening there.
pub async fn check_unused(listen: &Listen) -> Result<(), BindError> {
    let in_use = |source| BindError::InUse { address: listen.to_string(), source };
    match listen {
        Listen::Tcp(address) => match tcp_socket(*address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(in_use(error)),
            Ok(_) | Err(_) => Ok(()),
        },
        Listen::Unix(path) => match UnixStream::connect(path).await {
            Ok(_) => Err(in_use(io::ErrorKind::AddrInUse.into())),
            Err(_) => Ok(()),
        },
        Listen::Systemd => Ok(()),
    }
}

/// Binds one entry of `listen`, for which systemd may pass several sockets.
pub async fn bind(listen: &Listen) -> Result<Vec<Bound>, BindError> {
    match listen {
        Listen::Tcp(address) => Ok(vec![tcp(*address).map_err(|error| bind_error(address.to_string(), error))?]),
        Listen::Unix(path) => Ok(vec![unix(path).await?]),
        Listen::Systemd => systemd(),
    }
}

/// Binds the listeners of pushes, and that of the admin API.
///
/// # Errors
/// As for [`bind`]; then none of them is left.
pub async fn bind_all(pushes: &[Listen], admin: &Listen) -> Result<(Vec<Bound>, Vec<Bound>), BindError> {
    let mut bound = Vec::new();
    for listen in pushes {
        bound.extend(bind(listen).await?);
    }
    Ok((bound, bind(admin).await?))
}

impl Bound {
    /// The address: `127.0.0.1:8080` with the real port, or `unix:/path`.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// The TCP address with the real port; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // A response is one write, so Nagle's algorithm would only delay it. This fails only on a connection
                // that is lost already, which is not the listener's error.
                stream.set_nodelay(true).ok();
                Ok(Stream::Tcp(stream, Peer(Some(address.ip().to_canonical()))))
            }
            Listener::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }

    /// Whether a connection waits to be accepted.
    pub(super) fn has_waiting(&self) -> bool {
        let listener = match &self.listener {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        };
        let mut listeners = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        // A failure says nothing, so there may be one.
        poll(&mut listeners, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_or(true, |waiting| waiting > 0)
    }

    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    fn from_tcp(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?.to_string();
        Ok(Self { address, listener: Listener::Tcp(listener), is_plain: false })
    }

    fn from_unix(listener: UnixListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let path = address.as_pathname().unwrap_or(Path::new("?"));
        let address = format!("unix:{}", path.display());
        Ok(Self { address, listener: Listener::Unix(listener), is_plain: true })
    }
}

fn tcp(address: SocketAddr) -> io::Result<Bound> {
    Bound::from_tcp(tcp_socket(address)?.listen(BACKLOG)?)
}

/// A bound socket that does not listen yet.
fn tcp_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Else the previous process's connections in TIME_WAIT would block the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn unix(path: &Path) -> Result<Bound, BindError> {
    let address = format!("unix:{}", path.display());
    let failed = |error| bind_error(address.clone(), error);
    if let Ok(file) = std::fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(BindError::NoSocket { path: path.to_owned() });
        }
        match UnixStream::connect(path).await {
            Ok(_) => return Err(failed(io::ErrorKind::AddrInUse.into())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            // It may be alive, so the file stays: the error of binding names the cause.
            Err(_) => {}
        }
    }
    UnixListener::bind(path).and_then(Bound::from_unix).map_err(failed)
}

#[cfg(target_os = "linux")]
fn systemd() -> Result<Vec<Bound>, BindError> {
    use std::sync::atomic::{AtomicBool, Ordering};
    // Two owners of one descriptor would each close it, and the second close could hit another file.
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(BindError::Taken);
    }
    let mut passed = listenfd::ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let bound: Result<Vec<_>, _> = (0..passed.len())
        .map(|index| {
            let name = names.next();
            let bound = adopt(&mut passed, index).map_err(|source| BindError::Unfit { index, source })?;
            Ok(Bound { is_plain: bound.is_plain || name == Some(PLAIN_NAME), ..bound })
        })
        .collect();
    bound.and_then(|bound| if bound.is_empty() { Err(BindError::NothingPassed) } else { Ok(bound) })
}

#[cfg(target_os = "linux")]
fn adopt(passed: &mut listenfd::ListenFd, index: usize) -> io::Result<Bound> {
    // For a socket of another kind this fails and does not take it.
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        listener.set_nonblocking(true)?;
        return Bound::from_tcp(TcpListener::from_std(listener)?);
    }
    let listener = passed.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
    listener.set_nonblocking(true)?;
    Bound::from_unix(UnixListener::from_std(listener)?)
}

#[cfg(not(target_os = "linux"))]
fn systemd() -> Result<Vec<Bound>, BindError> {
    Err(BindError::NothingPassed)
}

fn bind_error(address: String, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address, source },
        io::ErrorKind::PermissionDenied => BindError::Denied { address, source },
        _ => BindError::Other { address, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let bound = bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap().remove(0);
        let address = bound.tcp_address().unwrap();
        let error = bind(&Listen::Tcp(address)).await.unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(folder.path().join("push.sock"));
        drop(bind(&listen).await.unwrap());
        let live = bind(&listen).await.unwrap().remove(0);
        assert_eq!(live.address(), format!("unix:{}", folder.path().join("push.sock").display()));
        assert!(matches!(bind(&listen).await, Err(BindError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(bind(&Listen::Unix(path.clone())).await, Err(BindError::NoSocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn sockets_of_systemd_are_taken_once() {
        assert!(matches!(bind(&Listen::Systemd).await, Err(BindError::NothingPassed)));
        assert!(matches!(bind(&Listen::Systemd).await, Err(BindError::Taken)));
    }
}
