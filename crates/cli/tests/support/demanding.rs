//! A receiver that demands a certificate of whoever sends: OpenSSL's own server.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::until;
use crate::syslog::Credentials;

/// It serves one connection after the other, and says all that comes on any.
pub(crate) struct Demanding {
    pub(crate) address: String,
    child: Child,
    answers: Mutex<ChildStdin>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Demanding {
    /// One that knows itself by the first, and senders by an authority.
    pub(crate) fn start(own: &Credentials, senders: &Path) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-Verify", "1", "-verify_return_error"])
            .args([Path::new("-cert"), &own.chain, Path::new("-key"), &own.key])
            .args([Path::new("-CAfile"), senders])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut out, said) = (child.stdout.take().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
        let kept = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut buffer) {
                kept.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        let answers = Mutex::new(child.stdin.take().unwrap());
        let mut demanding = Self { address: String::new(), child, answers, said };
        demanding.address = until("the receiver listens", || {
            let said = demanding.said();
            let (_, after) = said.split_once("ACCEPT ")?;
            Some(after.split_once('\n')?.0.trim().to_owned())
        });
        demanding
    }

    /// Everything so far, what came on its connections included.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    /// Says this on the connection that is open.
    pub(crate) fn answer(&self, text: &str) {
        let mut answers = self.answers.lock().unwrap();
        answers.write_all(text.as_bytes()).unwrap();
        answers.flush().unwrap();
    }
}

impl Drop for Demanding {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
