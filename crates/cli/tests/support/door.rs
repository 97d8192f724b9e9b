//! A proxy's door: the program behind it, and callers that show it an SVID.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::servers::Part;
use crate::support::text;

/// The program behind the door.
pub(crate) fn answer(place: &Path) {
    let listener = UnixListener::bind(place).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            // Who goes away early is not answered.
            if stream.read(&mut head).is_ok() {
                let _gone = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
                );
            }
        }
    });
}

/// What the door says to who shows the SVID in these files.
pub(crate) fn shown(door: &Part, files: &str) -> String {
    let address = door.ready["inbound"][0]["listen"].as_str().unwrap();
    let (chain, key) = (format!("{files}/svid.pem"), format!("{files}/svid-key.pem"));
    let asked = Command::new("curl")
        // The name in the certificate is a SPIFFE ID, which curl does not look at.
        .args(["-sS", "--insecure", "--max-time", "10", "--cert", &chain, "--key", &key])
        .arg(format!("https://{address}/"))
        .output()
        .unwrap();
    text(&asked.stdout) + &text(&asked.stderr)
}
