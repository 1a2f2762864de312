//! Telling the service manager how the service is: sd_notify(3), without its library.
//!
//! Must not know: when which news is due.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Where the news goes; nowhere, if nobody asked for it.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// As `NOTIFY_SOCKET` says: a path, or an abstract address behind `@`.
    ///
    /// # Errors
    /// If it says something else, or there is no socket to be had.
    pub fn from_environment() -> io::Result<Notifier> {
        match std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) {
            Some(name) => Notifier::to(name.as_bytes()),
            None => Ok(Notifier::default()),
        }
    }

    /// To this address.
    ///
    /// # Errors
    /// See [`Notifier::from_environment`].
    pub fn to(name: &[u8]) -> io::Result<Notifier> {
        let address = match name {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(name)))?,
            _ => {
                let why = "NOTIFY_SOCKET is neither an absolute path nor begins with @";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not stop the service.
        socket.set_nonblocking(true)?;
        Ok(Notifier { to: Some((socket, address)) })
    }

    /// Sends assignments such as `READY=1`, a line each, in one message.
    ///
    /// # Errors
    /// What sendto(2) says.
    pub fn send(&self, lines: &[&str]) -> io::Result<()> {
        let Some((socket, address)) = &self.to else { return Ok(()) };
        socket.send_to_addr(lines.join("\n").as_bytes(), address).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn news_reaches_paths_and_abstract_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str().as_bytes()).unwrap();
        notifier.send(&["READY=1", "MAINPID=7"]).unwrap();
        assert_eq!(received(&manager), "READY=1\nMAINPID=7");

        let name = format!("zdt-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::to(format!("@{name}").as_bytes()).unwrap();
        notifier.send(&["STOPPING=1"]).unwrap();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn nobody_is_told_where_nobody_asked() {
        Notifier::default().send(&["READY=1"]).unwrap();
        assert!(Notifier::to(b"vsock:2:1").is_err());
        assert!(Notifier::to(b"/nonexistent/notify").unwrap().send(&["READY=1"]).is_err());
    }
}
