//! Bytes both ways, until both ways have ended.

use std::io;

use countersign_program::seldom::Seldom;
use countersign_tls::Admitted;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::bounds::TUNNEL_BUFFER;

/// Goes on with what is done over a connection, until we cut that: its socket is shut by then, but who does not read it, because
/// what was read is not taken, would not know, and would pass that on. What leads to the program of our own side is never cut.
pub(crate) async fn until_cut(admitted: Option<&Admitted>, work: impl Future<Output = ()>) {
    let ended = admitted.map(Admitted::ended);
    let cut = Seldom::new(Box::pin(async {
        match ended {
            Some(ended) => ended.await,
            None => std::future::pending().await,
        }
    }));
    tokio::select! {
        biased;
        code = cut => tracing::debug!(%code, "a connection was cut"),
        () = work => {}
    }
}

/// Copies between the two until each has said its end to the other. An end of one way is passed on as such, so
/// a protocol that half-closes works. What is cut by the register ends both ways.
pub(crate) async fn join<A, B>(mut a: A, mut b: B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, TUNNEL_BUFFER, TUNNEL_BUFFER).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn half_a_close_is_passed_on_and_the_other_half_goes_on() {
        let (mut client, near) = tokio::io::duplex(64);
        let (mut server, far) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(near, far));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.unwrap();
        assert_eq!((&*asked, &*answered), (&b"question"[..], &b"answer"[..]));
        assert_eq!(joined.await.unwrap().unwrap(), (8, 6));
    }
}
