//! What the service manager hears of us: sd_notify(3), without its library. Says nothing to nobody:
//! without `NOTIFY_SOCKET` in the environment nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Files can be read, or databases are replicated; and one line about it.
pub(crate) fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}"));
}

/// A signal asked us to end.
pub(crate) fn stopping() {
    notify("STOPPING=1\nSTATUS=ending");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    // It goes on without us, or ends us in time.
    if let Err(error) = send(&socket, state) {
        tracing::warn!("cannot tell {}: {error}", socket.display());
    }
}

/// Sends to a socket that is named by its path, or by `@` and its abstract name.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(receiver: &UnixDatagram, socket: &OsStr) {
        send(socket, "READY=1").unwrap();
        let mut bytes = [0; 64];
        let length = receiver.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"READY=1");
    }

    #[test]
    fn a_socket_with_a_path_and_an_abstract_one_hear_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        check(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());
        let name = format!("sqlrepl-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstract_one = UnixDatagram::bind_addr(&address).unwrap();
        check(&abstract_one, OsStr::new(&format!("@{name}")));
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        send(folder.path().join("none").as_os_str(), "READY=1").unwrap_err();
    }
}
