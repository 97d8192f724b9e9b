//! One listener for each core at the same address, among which the kernel shares out who connects: each connection waits in the
//! queue of one of them, and wakes nobody but that one's acceptor.

use std::io;
use std::net::SocketAddr;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpListener;

use crate::listener::{ListenFault, Listener, listen};

/// Listens so many times at an address that nobody else listens at; port 0 takes a free one.
///
/// Once there are several, another process of the same user can listen beside them, where it asks for that (`SO_REUSEPORT`); it gets
/// no connections, since the kernel is told how to choose.
pub(crate) fn listeners(address: SocketAddr, count: usize) -> Result<Vec<Listener>, ListenFault> {
    let first = Listener::tcp(address)?;
    let Listener::Tcp(alone) = &first else { return Ok(vec![first]) };
    match beside(alone, count) {
        Ok(more) => Ok(std::iter::once(first).chain(more.into_iter().map(Listener::Tcp)).collect()),
        Err(error) => {
            tracing::info!(listen = %address, %error, "the door has one acceptor for all cores");
            // It was alone, and stays so.
            setsockopt(alone, sockopt::ReusePort, &false)
                .map_err(|error| ListenFault::Tcp { address, error: error.into() })?;
            Ok(vec![first])
        }
    }
}

/// Those that make it so many, at the address of one that was alone until now.
fn beside(alone: &TcpListener, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut more = Vec::new();
    if count <= 1 {
        return Ok(more);
    }
    // Set only now: who sets it before it listens is not told that another process of its user did so as well.
    setsockopt(alone, sockopt::ReusePort, &true)?;
    let address = alone.local_addr()?;
    for _ in 1..count {
        more.push(listen(address, |socket| socket.set_reuseport(true))?);
    }
    choose_among(alone, count)?;
    Ok(more)
}

/// Has each connection go to one of the first so many by chance. Left to itself the kernel would choose among all who listen there.
fn choose_among(group: &TcpListener, count: usize) -> io::Result<()> {
    let count = u32::try_from(count).map_err(io::Error::other)?;
    let step = |code: u32, k: u32| -> io::Result<libc::sock_filter> {
        let code = u16::try_from(code).map_err(io::Error::other)?;
        Ok(libc::sock_filter { code, jt: 0, jf: 0, k })
    };
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random)?,
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count)?,
        step(libc::BPF_RET | libc::BPF_A, 0)?,
    ];
    let program = libc::sock_fprog { len: 3, filter: program.as_mut_ptr() };
    Ok(setsockopt(group, sockopt::AttachReusePortCbpf, &program)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const ANYWHERE: &str = "127.0.0.1:0";

    /// How many connections each has in its queue, of so many that were made.
    fn shared_out(count: usize, listeners: Vec<Listener>) -> Vec<usize> {
        let address = listeners[0].address().unwrap();
        let _open: Vec<_> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
        listeners.into_iter().map(|listener| listener.into_waiting(1024).len()).collect()
    }

    #[tokio::test]
    async fn each_has_its_share_and_nobody_is_in_no_queue() {
        let shares = shared_out(400, listeners(ANYWHERE.parse().unwrap(), 4).unwrap());
        assert_eq!(shares.iter().sum::<usize>(), 400);
        assert!(shares.len() == 4 && shares.iter().all(|share| 20 < *share), "{shares:?}");
    }

    #[tokio::test]
    async fn another_that_listens_beside_them_gets_no_connections() {
        let ours = listeners(ANYWHERE.parse().unwrap(), 4).unwrap();
        let address = ours[0].address().unwrap();
        let theirs = listen(address, |socket| socket.set_reuseport(true)).unwrap();
        assert_eq!(shared_out(400, ours).iter().sum::<usize>(), 400);
        assert_eq!(Listener::Tcp(theirs).into_waiting(1024).len(), 0);
    }

    #[tokio::test]
    async fn a_port_with_several_listeners_is_taken_and_one_where_another_shares_is_not_joined() {
        let taken = |address| {
            let refused = listeners(address, 4).err();
            assert!(
                matches!(refused, Some(ListenFault::Taken(at)) if at == address),
                "{refused:?}"
            );
        };
        let shares = |address| listen(address, |socket| socket.set_reuseport(true)).unwrap();
        let theirs = shares(ANYWHERE.parse().unwrap());
        taken(theirs.local_addr().unwrap());
        // Ours again, as soon as it is free; unless somebody else is quicker, and then it is another port's turn.
        let again = (0..8).any(|_| {
            let ours = listeners(ANYWHERE.parse().unwrap(), 4).unwrap();
            let address = ours[0].address().unwrap();
            taken(address);
            drop(ours);
            listeners(address, 4).is_ok()
        });
        assert!(again, "no port that was left can be had again");
    }

    #[tokio::test]
    async fn one_alone_lets_nobody_listen_beside_it() {
        let ours = listeners(ANYWHERE.parse().unwrap(), 1).unwrap();
        let address = ours[0].address().unwrap();
        assert!(listen(address, |socket| socket.set_reuseport(true)).is_err());
    }
}
