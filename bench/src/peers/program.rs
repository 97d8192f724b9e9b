//! The program behind the proxies: it answers requests of HTTP/1.1, and echoes what is none.

use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::caller::end_of_head;
use crate::child::say;

/// What begins with this is HTTP. No message that is to be echoed does.
const HTTP: u8 = b'G';
const ANSWER_BYTES: usize = 64;
/// Of an answer to `/bulk`.
pub(crate) const BULK_BYTES: usize = 16 * 1024 * 1024;
/// Longest head of a request, and longest message at once.
const READ_BYTES_MAX: usize = 16 * 1024;

/// The two answers, made once.
struct Answers {
    small: Vec<u8>,
    bulk: Vec<u8>,
}

/// Serves until it is stopped.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(listener.local_addr()?)?;
    let answers = Arc::new(Answers { small: answer(ANSWER_BYTES), bulk: answer(BULK_BYTES) });
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        // Whoever calls notices how a connection ends.
        tokio::spawn(connection(tcp, Arc::clone(&answers)));
    }
}

fn answer(bytes: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + bytes, b'o');
    answer
}

async fn connection(mut tcp: TcpStream, answers: Arc<Answers>) -> Result<()> {
    let mut read = vec![0; READ_BYTES_MAX];
    let mut filled = 0;
    loop {
        let more = tcp.read(&mut read[filled..]).await?;
        if more == 0 {
            return Ok(());
        }
        filled += more;
        if read[0] != HTTP {
            tcp.write_all(&read[..filled]).await?;
            filled = 0;
            continue;
        }
        // Nobody sends a request before the last one was answered.
        if end_of_head(&read[..filled]).is_some() {
            let bulk = read.starts_with(b"GET /bulk ");
            tcp.write_all(if bulk { &answers.bulk } else { &answers.small }).await?;
            filled = 0;
        }
        ensure!(filled < read.len(), "a request that is too long");
    }
}
